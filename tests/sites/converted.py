"""Models to place dropout in, and what recipes make of them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "PICTURES",
    "PLANS",
    "ROWS",
    "SEQUENCES",
    "WORDS",
    "Attending",
    "Convolutional",
    "Recurrent",
    "Residual",
    "mlp",
    "state",
]


class Convolutional(nn.Module):
    """Its layers are registered backwards, and share a dropout layer."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.head, self.fc = nn.Linear(16, 5), nn.Linear(8 * 2 * 2, 16)
        self.c3, self.c2, self.c1 = nn.Conv2d(6, 8, 3), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.relu(self.norm(self.c2(self.drop(x))))
        x = F.max_pool2d(F.relu(self.c3(x)), 2)
        x = self.fc(x.flatten(1)).relu()
        return self.head(self.drop(x))


class Recurrent(nn.Module):
    """Two recurrent networks, one upon the other, and a dropout layer before and after them."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.table, self.drop = nn.Embedding(11, 5), nn.Dropout(0.2)
        self.lower = kind(5, 6, 3, batch_first=True, dropout=0.3, **options)
        width = self.lower.hidden_size * (2 if self.lower.bidirectional else 1)
        self.upper, self.head = nn.GRU(width, 4, batch_first=True), nn.Linear(4, 11)

    def forward(self, words: Tensor) -> Tensor:
        x, _ = self.lower(self.drop(self.table(words)))
        x, _ = self.upper(x)
        return self.head(self.drop(x))


class Residual(nn.Module):
    """A block whose branch is added to its shortcut."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 16), nn.Linear(16, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Attending(nn.Module):
    """A transformer written by hand, without any dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.softmax, self.block, self.head = nn.Softmax(-1), Residual(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.softmax(self.q(x) @ self.k(x).transpose(-1, -2) / 8**0.5)
        return self.head(self.block(x + self.out(weights @ self.v(x))).mean(1))


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 2), nn.Dropout(0.3)
    )  # fmt: skip


PICTURES, WORDS, ROWS = torch.randn(4, 3, 12, 12), torch.randint(11, (3, 7)), torch.randn(6, 4)
SEQUENCES = torch.randn(3, 5, 8)
_OUTPUT = ("(output)", "nothing", "nothing")
PLANS: dict[str, tuple[Any, str, Tensor, list[tuple[str, str, str]]]] = {
    "mlp": (
        mlp, "srivastava", ROWS,
        [
            ("0.input_dropout", "nothing", "Dropout 0.2"),
            ("2.input_dropout", "nothing", "Dropout 0.5"),
            ("3", "dropout 0.1", "dropout 0.5"),
            ("6", "dropout 0.3", "nothing"),
            _OUTPUT,
        ],
    ),
    "cnn": (
        Convolutional, "cnn", PICTURES,
        [
            ("drop", "dropout 0.4", "nothing"),
            ("c2.input_dropout", "nothing", "Dropout2d 0.1"),
            ("c3.input_dropout", "nothing", "Dropout2d 0.175"),
            ("c3.output_dropout", "nothing", "Dropout2d 0.25"),
            ("drop", "dropout 0.4", "nothing"),
            ("head.input_dropout", "nothing", "Dropout 0.5"),
            _OUTPUT,
        ],
    ),
    "cnn with BatchNorm": (
        lambda: Convolutional(norm=True), "cnn", PICTURES,
        [
            ("drop", "dropout 0.4", "nothing"),
            ("c3.input_dropout", "nothing", "Dropout2d 0.1"),
            ("c3.output_dropout", "nothing", "Dropout2d 0.25"),
            ("drop", "dropout 0.4", "nothing"),
            ("head.input_dropout", "nothing", "Dropout 0.5"),
            ("c2", "nothing", "nothing"),
            _OUTPUT,
        ],
    ),
    "rnn": (
        Recurrent, "rnn", WORDS,
        [
            ("drop", "dropout 0.2", "nothing"),
            ("lower.input_dropout", "nothing", "LockedDropout 0.25"),
            ("lower#0", "lstm 0.3", "nothing"),
            ("lower.between_dropout", "nothing", "LockedDropout 0.25"),
            ("upper.input_dropout", "nothing", "LockedDropout 0.25"),
            ("upper.output_dropout", "nothing", "LockedDropout 0.25"),
            _OUTPUT,
        ],
    ),
    "transformer": (
        Attending, "transformer", SEQUENCES,
        [
            ("softmax.output_dropout", "nothing", "Dropout 0.1"),
            ("out.output_dropout", "nothing", "Dropout 0.1"),
            ("block.fc2.input_dropout", "nothing", "Dropout 0.1"),
            ("block.fc2.output_dropout", "nothing", "Dropout 0.1"),
            _OUTPUT,
        ],
    ),
    "vit": (
        lambda: nn.Sequential(*(Residual() for _ in range(3)), nn.Linear(8, 2)), "vit", SEQUENCES,
        [
            ("1.fc2.output_drop_path", "nothing", "DropPath 0.05"),
            ("2.fc2.output_drop_path", "nothing", "DropPath 0.1"),
            ("0.fc2", "nothing", "nothing"),
            _OUTPUT,
        ],
    ),
}  # fmt: skip


def state(model: nn.Module) -> dict[str, Any]:
    """What undoing has to bring back."""
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    kinds = [type(module) for module in model.modules()]
    flags = [module.training for module in model.modules()]
    extra = [sorted(vars(module)) for module in model.modules()]
    return {"printed": str(model), "hooks": hooks, "kinds": kinds, "flags": flags, "attributes": extra}
