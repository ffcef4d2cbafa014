"""Numbered examples in every layer of the registry: no split and no order of a batch changes an example's noise."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dropkit
from dropkit.nn.variants import VARIANTS
from dropkit.sites import Addressing, address, samples

BATCH = 6
SPLITS: dict[str, list[list[int]]] = {
    "halves": [[0, 1, 2], [3, 4, 5]],
    "one by one": [[i] for i in range(BATCH)],
    "another order": [[4, 0, 3, 5, 2, 1]],
    "both": [[5, 1], [0, 4, 2, 3]],
}
# Layers whose noise is one for all examples, and those that scale by what is kept of a batch unless it is numbered.
SHARED = {"WeightDrop"}
SCALED = {"DropBlock1d", "DropBlock2d", "DropBlock3d"}


class Weighed(nn.Module):
    """A layer, of whose outputs the first counts."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Any) -> Tensor:
        found = self.layer(*inputs)
        return found[0] if isinstance(found, tuple) else found


def addressed(layer: nn.Module) -> tuple[Weighed, Addressing]:
    model = Weighed(layer.double())
    return model, address(model, 3)


def of_row(name: str) -> tuple[nn.Module, list[Tensor]]:
    """A layer of the registry and a batch for it."""
    row = VARIANTS[name]
    torch.manual_seed(0)
    layer = row.build(0.5 if row.rates else None)
    shapes = [(BATCH, *shape[1:]) for shape in row.inputs]
    if issubclass(row.layer, nn.Embedding):
        return layer, [torch.randint(5, shape) for shape in shapes]
    return layer, [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def output_and_gradients(
    model: nn.Module, inputs: Sequence[Tensor], split: Sequence[Sequence[int]] | None, axis: int = 0, more: int = 0
) -> list[Tensor]:
    """The outputs of a batch, the gradients of its inputs in its order, and the sums of those of parameters.

    Without a split the batch has no numbers.
    """
    model.zero_grad()
    inputs = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    output: Any = None
    for ids in [range(BATCH)] if split is None else split:
        index = torch.tensor(ids)
        chosen = [x.index_select(axis, index) for x in inputs]
        if split is None:
            part = model(*chosen)
        else:
            with samples([number + more for number in ids], dim=axis):
                part = model(*chosen)
        weights = torch.arange(1.0, part.numel() // len(ids) + 1, dtype=part.dtype).view_as(part.select(axis, 0))
        if part.requires_grad:
            (part.movedim(axis, 0) * weights).sum().backward()
        output = part.new_zeros(*part.shape[:axis], BATCH, *part.shape[axis + 1 :]) if output is None else output
        output = output.index_copy(axis, index, part.detach())
    gradients = [x.grad for x in inputs] + [each.grad for each in model.parameters()]
    return [output, *(each for each in gradients if each is not None)]


def assert_no_split_matters(layer: nn.Module, inputs: Sequence[Tensor], axis: int = 0, *, is_shared: bool) -> None:
    """Prove it for all splits; and that other numbers have other noise, unless it is one for all.

    Bit for bit, but for layers with weights: how many rows a product of matrices has may change its rounding.
    """
    model, handle = addressed(layer)
    tolerance = 1e-12 if list(layer.parameters()) else 0.0
    whole = output_and_gradients(model, inputs, [range(BATCH)], axis)
    for split in SPLITS.values():
        for found, wanted in zip(output_and_gradients(model, inputs, split, axis), whole, strict=True):
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    others = output_and_gradients(model, inputs, [range(BATCH)], axis, more=BATCH)
    assert torch.equal(others[0], whole[0]) == is_shared
    handle.close()


@pytest.mark.parametrize("name", VARIANTS)
def test_no_split_matters_to_a_layer_of_the_registry(name: str) -> None:
    assert_no_split_matters(*of_row(name), is_shared=name in SHARED)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_whole_batch_has_the_noise_it_has_without_numbers(name: str) -> None:
    layer, inputs = of_row(name)
    model, handle = addressed(layer)
    numbered = output_and_gradients(model, inputs, [range(BATCH)])
    plain = output_and_gradients(model, inputs, None)
    if name in SCALED:
        assert torch.equal(numbered[0] == 0, plain[0] == 0)
        return
    for found, wanted in zip(numbered, plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    handle.close()


def every_rate(kind: type[nn.Module], **options: Any) -> nn.Module:
    rates = dict.fromkeys(("input_p", "recurrent_p", "update_p", "output_p"), 0.3)
    zones = ("zoneout_h", "zoneout_c") if kind is dropkit.nn.LSTM else ("zoneout",)
    rates |= dict.fromkeys(("dropout", *zones), 0.2)
    return kind(3, 4, num_layers=2, bidirectional=True, **rates, **options)


def encoder(**options: Any) -> nn.Module:
    return dropkit.nn.TransformerEncoderLayer(8, 2, 16, 0.3, **options)


def with_other_noise() -> nn.Module:
    layer = encoder(batch_first=True)
    layer.dropout, layer.dropout1 = dropkit.nn.GaussianDropout(0.4), dropkit.nn.DropPath(0.5)
    return layer


def embedding(**options: Any) -> nn.Module:
    return dropkit.nn.EmbeddingDropout(7, 3, p=0.5, **options)


class Attending(nn.Module):
    """Self-attention; or of other lengths, where weights are dropped in the way that PyTorch differentiates."""

    def __init__(self, need_weights: bool, batch_first: bool) -> None:
        super().__init__()
        self.attention = dropkit.nn.MultiheadAttention(6, 6, 0.4, batch_first=batch_first)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.attention(x, x, x, need_weights=self.need_weights)[0]
        return output


class Skipping(nn.Module):
    """A residual block whose branch runs on some examples alone, and drops units of them."""

    def __init__(self) -> None:
        super().__init__()
        self.path = dropkit.nn.DropPath(0.5)
        self.branch = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), dropkit.nn.GaussianDropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        skipped: Tensor = self.path.skip(self.branch, x)
        return x + skipped


def tokens(*shape: int) -> Tensor:
    return torch.randint(7, shape)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "LSTM, every rate": (lambda: every_rate(dropkit.nn.LSTM, batch_first=True), lambda: numbers(BATCH, 5, 3), 0),
    "GRU, every rate": (lambda: every_rate(dropkit.nn.GRU, batch_first=True), lambda: numbers(BATCH, 5, 3), 0),
    "LSTM, untied": (lambda: every_rate(dropkit.nn.LSTM, tied=False), lambda: numbers(5, BATCH, 3), 1),
    "GRU, once a sequence": (
        lambda: every_rate(dropkit.nn.GRU, update_mask="sequence"), lambda: numbers(5, BATCH, 3), 1,
    ),
    "encoder, time first": (encoder, lambda: numbers(5, BATCH, 8), 1),
    "encoder, norm first": (lambda: encoder(batch_first=True, norm_first=True), lambda: numbers(BATCH, 5, 8), 0),
    "encoder, other noise in it": (with_other_noise, lambda: numbers(BATCH, 5, 8), 0),
    "attention": (lambda: Attending(False, True), lambda: numbers(BATCH, 5, 6), 0),
    "attention, weights": (lambda: Attending(True, True), lambda: numbers(BATCH, 5, 6), 0),
    "attention, as many heads as examples": (lambda: Attending(True, False), lambda: numbers(5, BATCH, 6), 1),
    "skipped branches": (Skipping, lambda: numbers(BATCH, 4), 0),
    "embedding, time first": (lambda: embedding(batch_first=False), lambda: tokens(5, BATCH), 1),
    "unknown words": (lambda: dropkit.nn.WordDropout(0.5, unknown=9), lambda: tokens(BATCH, 5), 0),
    "unknown words, time first": (lambda: dropkit.nn.WordDropout(0.5, unknown=9), lambda: tokens(5, BATCH), 1),
    "words, time first": (lambda: dropkit.nn.WordDropout(0.5), lambda: numbers(5, BATCH, 2), 1),
    "Gaussian, time first": (lambda: dropkit.nn.GaussianDropout(0.5), lambda: numbers(5, BATCH, 2), 1),
    "Gaussian, last": (lambda: dropkit.nn.GaussianDropout(0.5), lambda: numbers(5, BATCH), -1),
    "Concrete, maps": (
        lambda: dropkit.nn.ConcreteDropout(nn.Conv2d(3, 4, 3), 0.5), lambda: numbers(BATCH, 3, 4, 4), 0,
    ),
    "Concrete, time first": (
        lambda: dropkit.nn.ConcreteDropout(nn.Linear(3, 4), 0.5), lambda: numbers(5, BATCH, 3), 1,
    ),
    "variational, time first": (lambda: dropkit.nn.VariationalDropout(3), lambda: numbers(5, BATCH, 3), 1),
    "variational map, time first": (lambda: dropkit.nn.VariationalLinear(3, 4), lambda: numbers(5, BATCH, 3), 1),
    "DropConnect, time first": (lambda: dropkit.nn.DropConnect(3, 4), lambda: numbers(5, BATCH, 3), 1),
    "DropConnect, averaged in evaluation": (
        lambda: dropkit.nn.DropConnect(3, 4, activation=torch.tanh, inference="gaussian", samples=9).eval(),
        lambda: numbers(BATCH, 5, 3), 0,
    ),
    "DropConnect, several axes": (lambda: dropkit.nn.DropConnect(3, 4), lambda: numbers(BATCH, 2, 5, 3), 0),
    "DropBlock, channels alike": (
        lambda: dropkit.nn.DropBlock2d(0.4, 2, share_channels=True), lambda: numbers(BATCH, 3, 6, 5), 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_no_split_matters_in_any_layout(case: str) -> None:
    build, made, axis = CASES[case]
    torch.manual_seed(1)
    layer, x = build(), made()
    assert_no_split_matters(layer, [x], axis % x.dim(), is_shared=False)
