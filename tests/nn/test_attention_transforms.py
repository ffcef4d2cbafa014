"""Multi-head attention copied, compiled, exported, differentiated, recomputed and in half types."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from dropkit.errors import UnsupportedError
from dropkit.nn import MultiheadAttention
from dropkit.schedules import Linear, RateScheduler
from tests.helpers.attention import BATCH, KEY, KEYS, WIDTH, inputs, pair
from tests.helpers.copies import pickled, saved


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved])
def test_copies_are_equal_and_separate(duplicate: Any) -> None:
    layer, x = pair(0.4)[0], inputs()[0]
    other = duplicate(layer)
    assert repr(other) == repr(layer)
    assert torch.equal(other(x, x, x, dropout_key=KEY)[0], layer(x, x, x, dropout_key=KEY)[0])
    other.p = 0.9
    assert layer.p == 0.4


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_scheduled_rate_compiles_once(need_weights: bool) -> None:
    layer, x = pair(0.0, batch_first=True)[0], inputs()[0]
    before = list(layer.state_dict())
    scheduler = RateScheduler(layer, Linear(0.0, 0.5, steps=3))
    graphs = CompileCounter()
    compiled = torch.compile(layer, backend=graphs, fullgraph=True)
    for step in range(4):
        key = torch.tensor(KEY + step)
        found, _ = compiled(x, x, x, need_weights=need_weights, dropout_key=key)
        want, _ = pair(min(step / 4, 0.5), batch_first=True)[0](x, x, x, dropout_key=KEY + step)
        torch.testing.assert_close(found, want)
        scheduler.step()
    assert graphs.frame_count == 1
    assert list(layer.state_dict()) == before
    evaluated, _ = torch.compile(layer.eval(), backend=graphs, fullgraph=True)(x, x, x)
    torch.testing.assert_close(evaluated, layer(x, x, x)[0])


def test_it_is_exported_in_evaluation() -> None:
    layer, x = pair(0.4, batch_first=True)[0].eval(), inputs()[0]
    exported = torch.export.export(layer, (x, x, x)).module()
    for found, want in zip(exported(x, x, x), layer(x, x, x), strict=True):
        torch.testing.assert_close(found, want)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_torchscript_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"^MultiheadAttention: TorchScript cannot express addressed masks"):
        torch.jit.script(MultiheadAttention(8, 2))


@pytest.mark.parametrize("need_weights", [True, False])
def test_vmap_with_a_key_has_one_mask_for_all(need_weights: bool) -> None:
    layer, x = pair(0.4, batch_first=True, dtype=torch.float64)[0], inputs(torch.float64)[0]
    several = torch.stack([x, 2 * x, -x])

    def attend(x: Tensor) -> Tensor:
        return layer(x, x, x, need_weights=need_weights, dropout_key=KEY)[0]

    found = torch.func.vmap(attend)(several)
    for i in range(3):
        torch.testing.assert_close(found[i], attend(several[i]))
    torch.testing.assert_close(torch.func.vmap(layer.eval())(several, several, several)[0][1], attend(2 * x))


@pytest.mark.parametrize("need_weights", [True, False])
def test_derivatives_of_first_and_second_order(need_weights: bool) -> None:
    layer, _ = pair(0.4, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64, requires_grad=True)

    def attend(x: Tensor) -> Tensor:
        return layer(x, x, x, need_weights=need_weights, dropout_key=KEY)[0]

    assert torch.autograd.gradcheck(attend, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, x, fast_mode=True)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_draws_the_same_mask(reentrant: bool) -> None:
    layer, gradients = pair(0.4, batch_first=True)[0], []
    for checkpointed in (True, False):
        x = inputs()[0].requires_grad_()
        torch.manual_seed(5)
        out = checkpoint(layer, x, x, x, use_reentrant=reentrant)[0] if checkpointed else layer(x, x, x)[0]
        torch.rand(3)
        out.square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)  # a reentrant one does not know that its inputs are one


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_autocast(dtype: torch.dtype, need_weights: bool) -> None:
    layer, _ = pair(0.4, batch_first=True, add_bias_kv=True)
    tensors, padding = inputs(), torch.zeros(BATCH, KEYS).index_fill(1, torch.tensor([1]), -math.inf)
    options = {"need_weights": need_weights, "key_padding_mask": padding, "dropout_key": KEY}
    want, _ = layer(*tensors, **options)
    with torch.autocast("cpu", dtype=dtype):
        found, weights = layer(*tensors, **options)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), want, atol=0.05, rtol=0.05)
    narrow, weights = copy.deepcopy(layer).to(dtype)(*(x.to(dtype) for x in tensors), **options)
    assert narrow.dtype == dtype
    assert weights is None or weights.dtype == dtype
    torch.testing.assert_close(narrow.float(), want, atol=0.05, rtol=0.05)
