"""The short way of plain calls gives what the long way gives, to which a key in a tensor leads."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dropkit.functional as F
from dropkit.nn import Dropout

Call = Callable[..., Any]
KEY = 17726000833912956920


def signed(key: int) -> Tensor:
    return torch.tensor(key - 2**64 if key >= 2**63 else key)


def sharing(axes: tuple[int, ...]) -> Call:
    return lambda x, p, **key: F.dropout(x, p, broadcast_dims=axes, **key)


CASES: dict[str, tuple[Call, tuple[int, ...]]] = {
    "one axis": (sharing((1,)), (5, 7, 9)),
    "the last": (sharing((-1,)), (5, 7, 9)),
    "the first and the last": (sharing((0, 2)), (5, 7, 9)),
    "all": (sharing((0, 1, 2)), (5, 7, 9)),
    "one column": (sharing((0,)), (130,)),
    "sequences": (F.locked_dropout, (4, 3, 70)),
    "channels": (F.dropout2d, (2, 70, 3, 5)),
    "paths": (F.drop_path, (70, 3)),
    "paths of numbers": (F.drop_path, (70,)),
    "alpha": (F.alpha_dropout, (5, 70)),
    "alpha of a number": (F.alpha_dropout, ()),
    "alpha of channels": (F.feature_alpha_dropout, (3, 70, 5)),
    "alpha about 1": (lambda x, p, **key: F.alpha_dropout(x, p, mean=1.0, variance=2.0, **key), (6, 9)),
    "blocks": (lambda x, p, **key: F.drop_block2d(x, p, block_size=3, **key), (3, 4, 9, 11)),
    "blocks of all channels": (
        lambda x, p, **key: F.drop_block2d(x, p, block_size=4, share_channels=True, **key),
        (3, 4, 9, 3),
    ),
    "nothing": (sharing((1,)), (3, 0, 4)),
    "no channel": (F.feature_alpha_dropout, (0, 3, 4)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, p: float, dtype: torch.dtype) -> None:
    call, shape = CASES[name]
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    grad = torch.randn(shape, dtype=torch.float64).to(dtype)
    found = []
    for key in (KEY, signed(KEY)):
        trained = x.clone().requires_grad_()
        output = call(trained, p, key=key)
        output.backward(grad)
        assert torch.equal(call(x, p, key=key), output)
        found.append((output.detach(), trained.grad))
    (short, short_grad), (long, long_grad) = found
    assert torch.equal(short, long)
    assert torch.equal(short_grad, long_grad)


@pytest.mark.parametrize("name", [name for name in CASES if "block" not in name and 0 not in CASES[name][1]])
def test_plain_calls_go_the_short_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the long way")

    call, shape = CASES[name]
    for module in ("dropout", "alpha"):
        monkeypatch.setattr(sys.modules[f"dropkit.functional.{module}"], "check_source", refuse)
    call(torch.ones(shape), 0.5)
    with pytest.raises(AssertionError, match="the long way"):
        call(torch.ones(shape), torch.tensor(0.5, dtype=torch.float64))


@pytest.mark.parametrize("name", CASES)
def test_a_key_is_drawn_alike(name: str) -> None:
    call, shape = CASES[name]
    x = torch.randn(shape)
    torch.manual_seed(3)
    short = call(x, 0.5)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    long = call(x, torch.tensor(0.5, dtype=torch.float64))
    assert torch.equal(short, long)
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][1] and 0 not in CASES[name][1]])
def test_gradients_of_gradients_and_of_expanded_gradients(name: str) -> None:
    call, shape = CASES[name]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    call(x, 0.5, key=KEY).sum().backward()  # an expanded gradient
    expanded = x.grad
    x.grad = None
    call(x, 0.5, key=KEY).backward(torch.ones_like(x))
    assert torch.equal(expanded, x.grad)
    y = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: call(x * x, 0.5, key=KEY), (y,), fast_mode=True)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_any_axes(shape: list[int], data: st.DataObject) -> None:
    axes = tuple(data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True)))
    x = torch.randn(shape)
    short = F.dropout(x, 0.4, key=KEY, broadcast_dims=axes)
    assert torch.equal(short, F.dropout(x, 0.4, key=signed(KEY), broadcast_dims=axes))


@pytest.mark.parametrize("axes", [(True,), (1, 1), (3,), (-4,), (1.0,), ("1",)])
def test_wrong_axes_are_refused_even_where_right_ones_are_remembered(axes: Any) -> None:
    x = torch.ones(2, 3, 4)
    F.dropout(x, 0.5, broadcast_dims=(1,))
    with pytest.raises((ValueError, TypeError), match="broadcast_dims"):
        F.dropout(x, 0.5, broadcast_dims=axes)


@pytest.mark.parametrize("axes", [range(1, 2), [1], (np.int64(1),)], ids=repr)
def test_axes_are_any_sequence_of_integers(axes: Any) -> None:
    x = torch.randn(2, 3, 4)
    want = F.dropout(x, 0.5, broadcast_dims=1, key=KEY)
    assert torch.equal(F.dropout(x, 0.5, broadcast_dims=axes, key=KEY), want)
    assert torch.equal(Dropout(0.5, broadcast_dims=axes)(x, key=KEY), want)


@pytest.mark.parametrize("axes", [None, {1}, "1"], ids=repr)
def test_what_is_no_sequence_of_axes_is_refused_as_such(axes: Any) -> None:
    with pytest.raises(TypeError, match="`broadcast_dims` must be an integer in"):
        F.dropout(torch.ones(2, 3), broadcast_dims=axes)
    with pytest.raises(TypeError, match="`broadcast_dims` must be an integer or a sequence of integers"):
        Dropout(broadcast_dims=axes)


def test_zeros_that_autograd_keeps_without_memory() -> None:
    zeros = torch._efficientzerotensor((2, 3, 4, 4))
    mask = torch.ones(2, 3, 4, 4, dtype=torch.bool)
    for found in (F.drop_block2d(zeros, 0.5, key=1), F.dropout(zeros, 0.5, mask=mask), F.dropout(zeros, 0.5, key=1)):
        assert torch.equal(found, torch.zeros(2, 3, 4, 4))
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    F.drop_block2d(x, 0.5, key=1).backward(zeros)
    assert torch.equal(x.grad, torch.zeros(2, 3, 4, 4))
