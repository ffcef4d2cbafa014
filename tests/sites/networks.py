"""The networks of the zoo, and what their forwards take."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

import dropkit
from benchmarks import peers


def rows() -> tuple[Tensor]:
    return (torch.randn(6, 8),)


def sequences() -> tuple[Tensor]:
    return (torch.randn(3, 5, 8),)


def packed() -> tuple[Any]:
    return (pack_sequence([torch.randn(n, 8) for n in (4, 5, 2)], enforce_sorted=False),)


def pictures() -> tuple[Tensor]:
    return (torch.randn(4, 3, 16, 16),)


def tokens() -> tuple[Tensor, Tensor]:
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    return torch.randint(0, 50, (2, 7)), mask


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


def cnn() -> nn.Module:
    first = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2))
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 3))


class Functional(nn.Module):
    """Draws in its forward, and through a name that was bound early."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.p = nn.Linear(8, 8), nn.Linear(8, 3), 0.3
        self.early = F.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.first(x), self.p, self.training)
        x = torch.dropout(x, p=0.2, train=self.training)
        x = self.early(x, 0.0, self.training)
        return self.last(self.early(x.relu(), training=self.training))


class Ungated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.layer(x), 0.4)


class Shifted(nn.Module):
    """Its second call is its first in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = F.dropout(x, 0.1)
        x = F.dropout(x, 0.2)
        return F.dropout(x, 0.3, training=not self.training)


class Recurrent(nn.Module):
    """A recurrent network and what reads its last output, padded or packed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, nn.Linear(6, 3)

    def forward(self, x: Any) -> Tensor:
        output, _ = self.network(x)
        return self.head(output if isinstance(output, Tensor) else output.data)


class SelfAttention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)
        self.options = options

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.attention(x, x, x, **self.options)


class GatedAttention(nn.Module):
    """Attention whose rate is 0 in evaluation, with a norm that has buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.norm, self.p = nn.Linear(8, 24), nn.BatchNorm1d(5), 0.25

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.inputs(self.norm(x)).chunk(3, -1))
        rate = self.p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=rate).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self, p: float = 0.3) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(8, 8), nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.linear(x).tanh())


class Checkpointed(nn.Module):
    """A block that is called by a checkpoint, and one whose forward is, which is no call of the module."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.first, self.second, self.use_reentrant = Block(), Block(0.2), use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.first.linear(x)
        x = checkpoint(self.first, x, use_reentrant=self.use_reentrant)
        x = checkpoint(self.second.forward, x, use_reentrant=self.use_reentrant)
        return checkpoint(self.functional, x, use_reentrant=self.use_reentrant)

    def functional(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.1, self.training).sin()


class _Noisy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, training: bool) -> Tensor:
        ctx.scale = F.dropout(torch.ones_like(x), 0.35, training)
        return x * ctx.scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


class OwnFunction(nn.Module):
    """Draws inside a function that has its own backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return _Noisy.apply(self.layer(x), self.training)


class Shared(nn.Module):
    """Calls one block three times, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.again = self.block

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.block(self.block(x)))


class Listed(nn.Module):
    """Keeps a dropout layer in a list, where neither `eval` nor `named_modules` finds it, and makes another a call."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.last = [nn.Dropout(0.15)], nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return nn.Dropout(0.45)(self.last(x))


class HandWritten(nn.Module):
    """Masks of its own, besides noise that is no dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.training:
            x = x * torch.bernoulli(torch.full_like(x, 0.75)) / 0.75
            x = x + 0.1 * torch.randn_like(x)
            x = x * (torch.rand_like(x[:, :1]) > 0.1) / 0.9
        return x


@dataclass
class Answer:
    """What `Structured` returns."""

    logits: Tensor
    hidden: dict[str, Tensor]


class Structured(nn.Module):
    """Takes a dictionary and a number, and returns a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, batch: dict[str, Tensor], power: int, scale: Tensor | None = None) -> Answer:
        hidden = self.drop(self.layer(batch["x"]) ** power)
        return Answer(hidden.sum(1) if scale is None else hidden.sum(1) * scale, {"hidden": hidden})


class Ours(nn.Module):
    """dropkit's layers, by themselves and within PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        layers = (dropkit.nn.Dropout(0.1), dropkit.nn.LockedDropout(0.2), dropkit.nn.DropPath(0.3))
        self.layers = nn.Sequential(*layers, dropkit.nn.Dropout(0.0), dropkit.nn.DropConnect(8, 8, p=0.5))
        self.zoneout, self.noise = dropkit.nn.Zoneout(0.15), dropkit.nn.VariationalDropout(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.zoneout(self.layers(x), x)
        return dropkit.functional.dropout(self.noise(x), 0.4, self.training, broadcast_dims=-1)


def scripted(what: Any) -> Any:
    """Compile a module or a function by TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(what)


class Scripted(nn.Module):
    """A part that is compiled by TorchScript, beside one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.part = scripted(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3)))
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.part(x))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def our_encoder() -> nn.Module:
    layer = dropkit.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, attention_p=0.2, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _loaded(load: Callable[[], ModuleType | None], name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs are not ours to mend
        return load() or pytest.skip(f"{name} is not installed")


def bert(attention: str, hidden: float = 0.1) -> nn.Module:
    transformers = _loaded(peers.transformers_library, "transformers")
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 16}
    rates = {"hidden_dropout_prob": hidden, "attention_probs_dropout_prob": 0.2}
    return transformers.BertModel(transformers.BertConfig(**sizes, **rates, attn_implementation=attention))


def gpt2(attention: str) -> nn.Module:
    transformers = _loaded(peers.transformers_library, "transformers")
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    rates = {"embd_pdrop": 0.1, "attn_pdrop": 0.2, "resid_pdrop": 0.3, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(**sizes, **rates, attn_implementation=attention, use_cache=False)
    return transformers.GPT2LMHeadModel(config)


def vit() -> nn.Module:
    models = _loaded(peers.timm_models, "timm")
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    rates = {"drop_rate": 0.1, "pos_drop_rate": 0.05, "proj_drop_rate": 0.15, "attn_drop_rate": 0.2}
    return models.VisionTransformer(**sizes, **rates, drop_path_rate=0.3)


def convnext() -> nn.Module:
    models = _loaded(peers.timm_models, "timm")
    return models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=3, drop_path_rate=0.3, drop_rate=0.2)


class First(nn.Module):
    """Returns the first of several results."""

    def forward(self, results: tuple[Tensor, ...]) -> Tensor:
        return results[0]


class Plain(nn.Module):
    """Dropout in a layer and in a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(6, 8), nn.Dropout(0.25), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.second(self.drop(self.first(x))), 0.5, self.training)
