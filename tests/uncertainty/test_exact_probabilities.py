"""Models that return probabilities where `exact` asks for logits."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit.errors import UnsupportedError
from dropkit.uncertainty import exact

Last = Callable[[Tensor], Tensor]


class Ending(nn.Module):
    """A linear layer behind dropout, and what comes last."""

    def __init__(self, last: Last, in_evaluation: Last | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last, self.in_evaluation = nn.Linear(6, 3), last, in_evaluation or last

    def forward(self, x: Tensor) -> Tensor:
        last = self.last if self.training else self.in_evaluation
        return last(self.layer(F.dropout(x, 0.5, self.training)))


def inputs(rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def by_hand(x: Tensor) -> Tensor:
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


MAKERS: dict[str, tuple[Last, str]] = {
    "Softmax": (nn.Softmax(-1), "a softmax returns them"),
    "softmax_moved": (lambda x: torch.softmax(x, -1).unsqueeze(1).squeeze(1).float(), "a softmax returns them"),
    "softmax_by_hand": (by_hand, r"they are in \[0, 1\] and sum to 1 over the classes"),
    "Sigmoid": (nn.Sigmoid(), "a sigmoid returns them"),
    "sigmoid_in_place": (lambda x: x.sigmoid_(), "a sigmoid returns them"),
    "expit": (torch.special.expit, "a sigmoid returns them"),
    "hardsigmoid": (F.hardsigmoid, "a sigmoid returns them"),
    "second_class": (lambda x: x.softmax(-1)[:, 1:], "a softmax returns them"),
}


@pytest.mark.parametrize(
    ("name", "output"),
    [(name, output) for name in MAKERS for output in ("softmax", "sigmoid")
     if (name, output) not in (("softmax_by_hand", "sigmoid"),)],
)  # fmt: skip
@pytest.mark.parametrize("rows", [1, 8])
def test_probabilities_are_refused_and_the_remedy_named(name: str, output: str, rows: int) -> None:
    last, reason = MAKERS[name]
    remedy = f'[Ll]et the model return logits, for their {output} is taken; or give output="raw"'
    with pytest.raises(UnsupportedError, match=rf"^exact: the outputs are probabilities: {reason}\. {remedy}"):
        exact(Ending(last).double(), output=output)(inputs(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_softmax_by_hand_is_refused_in_any_type(dtype: torch.dtype) -> None:
    with pytest.raises(UnsupportedError, match="sum to 1 over the classes"):
        exact(Ending(by_hand).to(dtype))(inputs(4, dtype))


@pytest.mark.parametrize("last", [nn.Softmax(1), by_hand], ids=["Softmax", "by_hand"])
def test_classes_may_lie_along_another_axis(last: Last) -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(4, 6), nn.Unflatten(1, (3, 2)))
    model.append(nn.Softmax(1) if isinstance(last, nn.Module) else Moved(last)).double()
    with pytest.raises(UnsupportedError, match="the outputs are probabilities"):
        exact(model, class_dim=1)(torch.randn(3, 4).double())


class Moved(nn.Module):
    """A function of the last axis, of axis 1."""

    def __init__(self, last: Last) -> None:
        super().__init__()
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.movedim(1, -1)).movedim(-1, 1) + 0


@pytest.mark.parametrize("last", [nn.Softmax(-1), nn.Sigmoid()], ids=["softmax", "sigmoid"])
def test_probabilities_in_evaluation_alone_are_refused_too(last: nn.Module) -> None:
    with pytest.raises(UnsupportedError, match="the outputs are probabilities"):
        exact(Ending(lambda x: x, last).double())(inputs(3))


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_values_in_the_unit_interval_are_told_of_where_they_are_many(output: str) -> None:
    """A sigmoid by hand."""
    model = Ending(lambda x: 1 / (1 + (-x).exp())).double()
    with pytest.warns(UserWarning, match=r'lie in \[0, 1\].*return logits.*output="raw"'):
        exact(model, output=output)(inputs(8))
    exact(model, output=output)(inputs(2))  # so few may be logits; a warning would be an error


@pytest.mark.parametrize("last", [nn.Softmax(-1), nn.Sigmoid()], ids=["softmax", "sigmoid"])
def test_the_mean_of_probabilities_as_they_are_is_that_of_logits(last: nn.Module) -> None:
    x, output = inputs(9), "softmax" if isinstance(last, nn.Softmax) else "sigmoid"
    found = exact(Ending(last).double(), output="raw")(x).arithmetic
    torch.testing.assert_close(found, exact(Ending(lambda x: x).double(), output=output)(x).arithmetic)


@pytest.mark.parametrize(
    ("last", "output"),
    [
        (lambda x: x.log_softmax(-1), "softmax"),
        (lambda x: 4 * x.softmax(-1), "softmax"),
        (lambda x: x.softmax(-1).mul_(4), "softmax"),
        (lambda x: x.sigmoid().logit(), "sigmoid"),
        (lambda x: x * x.sigmoid(), "sigmoid"),
        (F.logsigmoid, "sigmoid"),
    ],
    ids=["log_softmax", "scaled", "scaled_in_place", "logit", "silu", "logsigmoid"],
)
def test_what_is_made_of_probabilities_is_taken(last: Last, output: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert exact(Ending(last).double(), output=output)(inputs(9)).units == 6


def test_logits_that_sum_to_one_in_evaluation_alone_are_taken() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3, bias=False)).double()
    nn.init.eye_(model[1].weight)
    assert exact(model)(torch.tensor([[0.2, 0.3, 0.5]]).double()).units == 3
