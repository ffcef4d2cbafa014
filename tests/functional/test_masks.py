"""Masks handed in and handed out."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.functional import dropout

X = torch.tensor([[1.0, -2.0, 3.0], [4.0, torch.nan, 6.0]])
MASK = torch.tensor([[True, False, True], [True, False, False]])


def test_an_injected_mask_decides_and_the_rate_scales() -> None:
    assert torch.equal(dropout(X, 0.5, mask=MASK), torch.tensor([[2.0, 0.0, 6.0], [8.0, 0.0, 0.0]]))
    assert torch.equal(dropout(X, 0.75, mask=MASK), torch.tensor([[4.0, 0.0, 12.0], [16.0, 0.0, 0.0]]))


def test_an_injected_mask_decides_at_a_rate_of_zero_too() -> None:
    out = dropout(X, 0.0, mask=MASK)
    assert torch.equal(out, torch.where(MASK, X, 0))


def test_at_a_rate_of_one_nothing_survives_an_injected_mask() -> None:
    out, keep = dropout(X, 1.0, mask=torch.ones_like(MASK), return_mask=True)
    assert torch.equal(out, torch.zeros_like(X))
    assert not keep.any()


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (1, 1)])
def test_an_injected_mask_may_share_axes(shape: tuple[int, ...]) -> None:
    mask, x = MASK[: shape[0], : shape[1]], torch.randn(2, 3)
    out, keep = dropout(x, 0.5, mask=mask, return_mask=True)
    assert torch.equal(out, dropout(x, 0.5, mask=mask.expand(2, 3).clone()))
    assert torch.equal(keep, mask)


def test_one_rate_a_slice_scales_an_injected_mask() -> None:
    p = torch.tensor([0.5, 1.0], dtype=torch.float64)
    out = dropout(X, p, mask=torch.ones_like(MASK))
    assert torch.equal(out, torch.tensor([[2.0, -4.0, 6.0], [0.0, 0.0, 0.0]]))


def test_the_mask_handed_in_is_neither_changed_nor_handed_out() -> None:
    mask = MASK.clone()
    _, keep = dropout(X, 0.5, mask=mask, return_mask=True)
    keep.logical_not_()
    assert torch.equal(mask, MASK)


@pytest.mark.parametrize("options", [{"key": 3}, {"key": 3, "broadcast_dims": 0}, {"key": torch.arange(8)}, {}])
@pytest.mark.parametrize("p", [0.1, 0.9, 1.0])
def test_a_mask_handed_out_gives_the_same_output_handed_in(options: dict[str, Any], p: float) -> None:
    x = torch.randn(8, 50)
    out, keep = dropout(x, p, return_mask=True, **options)
    assert keep.dtype == torch.bool
    assert keep.device == x.device
    assert not keep.requires_grad
    assert torch.equal(dropout(x, p, mask=keep), out)


@pytest.mark.parametrize(
    "options",
    [{}, {"broadcast_dims": (0, 2)}, {"key": torch.arange(4)}, {"key": torch.arange(4), "broadcast_dims": -1},
     {"mask": torch.ones(4, 1, 5, dtype=torch.bool)}, {"p": torch.linspace(0, 1, 4, dtype=torch.float64)},
     {"p": torch.linspace(0, 1, 4, dtype=torch.float64), "broadcast_dims": 0}],
    ids=["plain", "shared", "slices", "slices, shared", "injected", "rates", "rates, shared"],
)  # fmt: skip
def test_the_mask_of_evaluation_is_true_in_the_shape_of_training(options: dict[str, Any]) -> None:
    x = torch.randn(4, 3, 5)
    _, drawn = dropout(x, **{"p": 0.5} | options, return_mask=True)
    out, keep = dropout(x, **{"p": 0.5} | options, training=False, return_mask=True)
    assert out is x
    assert keep.all()
    assert keep.dtype == torch.bool
    assert keep.shape == drawn.shape


@pytest.mark.parametrize("wrong", [MASK.float(), MASK.tolist(), MASK.numpy(), 1, "mask"], ids=repr)
@pytest.mark.parametrize("training", [True, False])
def test_masks_of_another_type_are_refused(wrong: object, training: bool) -> None:
    with pytest.raises(ArgumentTypeError, match=r"(?s)^dropout: `mask` must be a bool tensor, got .* True is kept\.$"):
        dropout(X, 0.5, training, mask=wrong)


@pytest.mark.parametrize("shape", [(3,), (2,), (3, 2), (2, 3, 1), (1, 2, 3), (), (2, 2), (4, 3), (0, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_masks_of_another_shape_are_refused(shape: tuple[int, ...], training: bool) -> None:
    rule = r"^dropout: `mask` must be of shape \(2, 3\), or with length 1 on axes that share, got \("
    with pytest.raises(ArgumentError, match=rule):
        dropout(X, 0.5, training, mask=torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize(
    ("name", "value"),
    [("broadcast_dims", 0), ("broadcast_dims", 1), ("broadcast_dims", (0,)), ("broadcast_dims", [1]), ("stream", 1),
     ("stream", torch.tensor(0)), ("full_shape", (4, 3)), ("offset", (0, 0))],
    ids=repr,
)  # fmt: skip
def test_a_mask_has_no_address(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"`{name}` must be left out where a mask is given"):
        dropout(X, 0.5, mask=MASK, **{name: value})


@pytest.mark.parametrize("shared", [(), []])
def test_no_shared_axes_beside_a_mask(shared: Any) -> None:
    assert torch.equal(dropout(X, 0.5, mask=MASK, broadcast_dims=shared), dropout(X, 0.5, mask=MASK))


def test_a_mask_of_another_device_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`mask` must be on the input's device cpu, got device"):
        dropout(X, 0.5, mask=MASK.to("meta"))


def test_masks_of_any_stride() -> None:
    mask: Tensor = torch.rand(6, 4) > 0.5
    x = torch.randn(4, 6)
    assert torch.equal(dropout(x, 0.5, mask=mask.T), dropout(x, 0.5, mask=mask.T.contiguous()))
    row = mask[:1, :1].expand(4, 6)
    assert torch.equal(dropout(x, 0.5, mask=row), dropout(x, 0.5, mask=row.contiguous()))
