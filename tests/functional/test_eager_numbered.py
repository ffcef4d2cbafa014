"""The short way of numbered examples and passes gives what the long way gives, that of masks that are returned."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dropkit.functional as F
from dropkit.errors import ArgumentError
from dropkit.functional.eager_numbered import drop, numbered
from dropkit.functional.examples import NumberedKey

pytestmark = [
    pytest.mark.native,
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

Call = Callable[..., Any]
KEY = 17726000833912956920
ORDERS: dict[str, NumberedKey] = {
    "a pass": NumberedKey(KEY, (), (2**30 - 1,)),
    "a run": NumberedKey(KEY, ((9, 12),)),
    "a run of large numbers": NumberedKey(KEY, ((2**55, 12),)),
    "a run of a pass": NumberedKey(KEY, ((9, 12),), (4,)),
    "runs": NumberedKey(KEY, ((9, 5), (2, 1), (70, 6)), (4,)),
    "passes": NumberedKey(KEY, ((3, 4),), (4, 1, 2**30 - 1)),
    "runs of passes": NumberedKey(KEY, ((3, 1), (0, 3)), (4, 1, 2)),
    "one for all": NumberedKey(KEY, ((3, 1),) * 12),
    "one for all of a pass": NumberedKey(KEY, ((3, 1),) * 4, (4, 1, 2)),
    "examples twice": NumberedKey(KEY, ((3, 2),) * 2, (4, 1, 2)),
}


def sharing(*axes: int) -> Call:
    return lambda x, p, **how: F.dropout(x, p, broadcast_dims=axes, **how)


def moved(call: Call) -> Call:
    return lambda x, p, **how: call(x, p, mean=1.0, variance=2.0, **how)


CASES: dict[str, tuple[Call, tuple[int, ...]]] = {
    "dropout": (F.dropout, (12, 7, 70)),
    "dropout of rows": (F.dropout, (12, 130)),
    "dropout of numbers": (F.dropout, (12,)),
    "one axis": (sharing(1), (12, 7, 9)),
    "the last": (sharing(-1), (12, 7, 9)),
    "sequences": (F.locked_dropout, (12, 3, 70)),
    "channels": (F.dropout2d, (12, 70, 3, 5)),
    "paths": (F.drop_path, (12, 3, 4)),
    "paths of numbers": (F.drop_path, (12,)),
    "alpha": (moved(F.alpha_dropout), (12, 70)),
    "alpha of numbers": (moved(F.alpha_dropout), (12,)),
    "alpha of channels": (moved(F.feature_alpha_dropout), (12, 70, 5)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, order: str, dtype: torch.dtype) -> None:
    (call, shape), key = CASES[name], ORDERS[order]
    if order == "a run of large numbers" and len(shape) == 1:  # whose examples are columns, of which there are fewer
        with pytest.raises(ArgumentError, match="`ids` must be below"):
            call(torch.ones(shape), 0.3, key=key)
        return
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in "xg")
    for p in (0.3, 1.0):
        found = []
        for how in ({}, {"return_mask": True}):
            trained = x.clone().requires_grad_()
            output = call(trained, p, key=key, **how)
            output = output[0] if how else output
            output.backward(grad)
            found.append((output.detach(), trained.grad))
        (short, short_grad), (long, long_grad) = found
        assert torch.equal(short, long)
        assert torch.equal(short_grad, long_grad)
        assert torch.equal(call(x, p, key=key), short)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["dropout", "channels", "alpha", "alpha of channels"])
def test_gradients_that_are_no_plain_tensors(name: str, order: str) -> None:
    (call, shape), key = CASES[name], ORDERS[order]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    several = torch.randn(3, *shape, dtype=torch.float64)
    output, (wanted, mask) = call(x, 0.3, key=key), call(x, 0.3, key=key, return_mask=True)
    together = torch.autograd.grad(output, x, several, is_grads_batched=True, retain_graph=True)[0]
    for one, alone in zip(together, several, strict=True):
        torch.testing.assert_close(one, torch.autograd.grad(wanted, x, alone, retain_graph=True)[0])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, several[0])
        tangent = torch.autograd.forward_ad.unpack_dual(call(dual, 0.3, key=key)).tangent
    torch.testing.assert_close(tangent, together[0])
    found = torch.autograd.grad(output.square().sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(found.sum(), x)[0]
    torch.testing.assert_close(second, 2 * together.new_tensor(float(scale(call, mask, key))) ** 2 * mask.expand(shape))


def scale(call: Call, mask: Tensor, key: Any) -> Tensor:
    """What survivors are multiplied by."""
    x = torch.zeros(mask.shape, dtype=torch.float64)
    difference = call(x + 1, 0.3, mask=mask) - call(x, 0.3, mask=mask)
    return difference.max()


@pytest.mark.parametrize("order", ORDERS)
def test_memory_formats_and_transforms_take_the_long_way(order: str) -> None:
    key, x = ORDERS[order], torch.randn(12, 6, 5)
    wanted = F.dropout(x, 0.3, key=key)
    assert torch.equal(F.dropout(x.transpose(1, 2).contiguous().transpose(1, 2), 0.3, key=key), wanted)
    assert torch.equal(torch.func.vmap(lambda each: F.dropout(each, 0.3, key=key))(torch.stack([x, x]))[1], wanted)
    pushed = torch.func.jvp(lambda each: F.dropout(each, 0.3, key=key), (x,), (torch.ones_like(x),))[1]
    assert torch.equal(pushed != 0, wanted != 0)


@pytest.mark.parametrize("name", CASES)
def test_plain_calls_go_the_short_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the long way")

    call, shape = CASES[name]
    for module in ("dropout", "alpha"):
        monkeypatch.setattr(sys.modules[f"dropkit.functional.{module}"], "check_source", refuse)
    for order, key in ORDERS.items():
        if order not in ("examples twice", "a run of large numbers"):
            call(torch.ones(shape), 0.5, key=key)
    call(torch.ones(shape), 0.5, key=KEY, stream=3)


def test_what_is_left_to_the_long_way() -> None:
    x, key = torch.ones(130, 4), NumberedKey(KEY, tuple((i, 1) for i in reversed(range(130))))
    assert drop("dropout", x, 0.5, key, ()) is None  # too many parts
    assert torch.equal(F.dropout(x, 0.5, key=key), F.dropout(x, 0.5, key=KEY).flip(0))
    one = ORDERS["a run"]
    assert drop("dropout", x[:12], 0.5, one, (1,)) is not None
    assert drop("dropout", x[:12], 0.5, one, (True,)) is None
    assert numbered(x, 0.5, True, None, one, 0) is one
    for wrong in (
        (x, 0.5, True, None, KEY, 0), (x, 0.5, True, None, one, 2), (x, 1, True, None, one, 0),
        (x, 0.0, True, None, one, 0), (x, 0.5, False, None, one, 0), (x, 0.5, True, torch.default_generator, one, 0),
        (x.t(), 0.5, True, None, one, 0), (x[:0], 0.5, True, None, one, 0), (x[0, 0], 0.5, True, None, one, 0),
        (x, 0.5, True, None, KEY, 2**30), (x, 0.5, True, None, -1, 2), (x.to(torch.complex64), 0.5, True, None, one, 0),
    ):  # fmt: skip
        assert numbered(*wrong) is None
