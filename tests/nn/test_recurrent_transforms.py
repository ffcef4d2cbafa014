"""LSTM and GRU under the compiler, export, `torch.func` and autograd of every order."""

import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from dropkit.errors import ArgumentTypeError
from tests.helpers.recurrent import (
    BATCH,
    BOTH,
    FORMS,
    HIDDEN,
    KEY,
    LENGTHS,
    RATES_OF,
    assert_close,
    flat,
    inputs,
    network,
    noisy,
    same,
)

# PyTorch's own forward mode scripts its formulas on first use.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def small(kind: str, **options: Any) -> tuple[Any, tuple[Tensor, ...]]:
    layer = network(kind, 2, 3, **RATES_OF[kind], **options)
    return layer, tuple(torch.randn(n, 2, m).double().requires_grad_() for n, m in ((3, 2), (1, 3), (1, 3)))


def called(layer: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
    x, h, c, *weights = tensors
    state = (h, c) if layer.mode == "LSTM" else h
    names = [name for name, _ in layer.named_parameters()]
    parameters = dict(zip(names, weights, strict=True))
    return tuple(flat(torch.func.functional_call(layer, parameters, (x, state), {"key": KEY})))


@pytest.mark.parametrize("options", [{}, {"tied": False}, {"bias": False}, {"update_mask": "sequence"}], ids=str)
@pytest.mark.parametrize("kind", BOTH)
def test_derivatives_of_first_and_second_order(kind: str, options: dict[str, Any]) -> None:
    layer, states = small(kind, **options)
    for training in (True, False):
        layer.train(training)
        given = (*states, *layer.parameters())
        assert torch.autograd.gradcheck(lambda *v: called(layer, *v), given, fast_mode=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(lambda *v: called(layer, *v), given, fast_mode=True)


@pytest.mark.parametrize("kind", BOTH)
def test_every_derivative_one_by_one(kind: str) -> None:
    layer, states = small(kind)
    assert torch.autograd.gradcheck(lambda *v: called(layer, *v), (*states, *layer.parameters()))


@pytest.mark.parametrize("kind", BOTH)
def test_transforms_agree_with_autograd(kind: str) -> None:
    layer, x = noisy(kind), inputs()
    parameters = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,), {"key": KEY})[0].square().sum()

    found = torch.func.grad(loss)(parameters, x)
    want = torch.autograd.grad(layer(x, key=KEY)[0].square().sum(), [*layer.parameters()])
    for name, gradient in zip(parameters, want, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-13)
    several = torch.stack([x, 2 * x, -x])
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, several)
    for i in range(3):
        one = torch.func.grad(loss)(parameters, several[i])
        for name in parameters:
            torch.testing.assert_close(each[name][i], one[name], rtol=1e-10, atol=1e-13)
    _, tangent = torch.func.jvp(lambda x: loss(parameters, x), (x,), (x.sin(),))
    slope = torch.func.grad(lambda x: loss(parameters, x))(x)
    torch.testing.assert_close(tangent, (slope * x.sin()).sum(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", BOTH)
def test_vmap_with_a_key_has_one_mask_for_all(kind: str) -> None:
    layer, x = noisy(kind, "both ways"), inputs()
    several = torch.stack([x, 2 * x, -x])
    found = torch.func.vmap(lambda v: layer(v, key=KEY)[0])(several)
    for i in range(3):
        torch.testing.assert_close(found[i], layer(several[i], key=KEY)[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", BOTH)
def test_rates_that_move_change_no_state_and_compile_once(kind: str) -> None:
    layer, x = noisy(kind), inputs()[:2]
    before = list(layer.state_dict())
    layer.follow()
    graphs = CompileCounter()
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(layer, backend=graphs, fullgraph=True)
        for step, p in enumerate((0.1, 0.5, 0.25)):
            layer.recurrent_p = layer.update_p = p
            key = torch.tensor(KEY + step)
            want = noisy(kind, recurrent_p=p, update_p=p)
            assert_close(compiled(x, key=key), want(x, key=KEY + step))
    assert graphs.frame_count == 1
    assert list(layer.state_dict()) == before
    layer.unfollow()
    assert layer.recurrent_p == 0.25
    assert not [*layer.buffers()]
    assert_close(layer(x, key=KEY), noisy(kind, recurrent_p=0.25, update_p=0.25)(x, key=KEY))


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOTH)
def test_compiled_gradients(kind: str) -> None:
    layer, x = noisy(kind), inputs()[:3].requires_grad_()
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        found = compiled(x, key=torch.tensor(KEY))
        gradients = torch.autograd.grad(found[0].square().sum(), [x, *layer.parameters()])
    want = layer(x, key=KEY)
    assert_close(found, want)
    for a, b in zip(gradients, torch.autograd.grad(want[0].square().sum(), [x, *layer.parameters()]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("zoneouts", [True, False])
@pytest.mark.parametrize("kind", BOTH)
def test_it_is_exported(kind: str, zoneouts: bool) -> None:
    layer, x = noisy(kind, "plain" if zoneouts else "both ways").eval(), inputs()[:2]
    if not zoneouts:
        for name in layer.RATES:
            setattr(layer, name, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(layer, (x,)).module()
    assert_close(exported(x), layer(x))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", BOTH)
def test_checkpoints_draw_the_same_masks_again(kind: str, reentrant: bool) -> None:
    layer, x = noisy(kind, "both ways"), inputs().requires_grad_()
    gradients = []
    for call in (lambda x: layer(x)[0], lambda x: checkpoint(lambda v: layer(v)[0], x, use_reentrant=reentrant)):
        torch.manual_seed(0)
        x.grad = None
        call(x).square().sum().backward()
        gradients.append(x.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", BOTH)
def test_the_graph_may_be_walked_twice(kind: str) -> None:
    layer, x = noisy(kind, "both ways"), inputs().requires_grad_()
    loss = layer(x, key=KEY)[0].square().sum()
    first = torch.autograd.grad(loss, [x, *layer.parameters()], retain_graph=True)
    second = torch.autograd.grad(loss, [x, *layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", BOTH)
def test_nothing_is_kept_for_a_gradient_that_nobody_wants(kind: str) -> None:
    layer, x = noisy(kind, "layers"), inputs()
    with torch.no_grad():
        found = layer(x, key=KEY)
    assert not any(tensor.requires_grad for tensor in flat(found))
    assert_close(found, layer(x, key=KEY))
    layer.requires_grad_(False)
    assert not any(tensor.requires_grad for tensor in flat(layer(x, key=KEY)))
    only = x.clone().requires_grad_()
    layer(only, key=KEY)[0].sum().backward()
    assert (only.grad != 0).any()
    assert all(parameter.grad is None for parameter in layer.parameters())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", BOTH)
def test_narrow_types(kind: str, form: str) -> None:
    layer, x = noisy(kind, form), inputs(FORMS[form].get("batch_first", False))
    wide = layer(x, key=KEY)
    for dtype, rtol in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        narrow = noisy(kind, form, dtype=dtype)(x.to(dtype), key=KEY)
        assert all(tensor.dtype == dtype for tensor in flat(narrow))
        for a, b in zip(flat(narrow), flat(wide), strict=True):
            torch.testing.assert_close(a.double(), b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("kind", BOTH)
def test_autocast(kind: str) -> None:
    layer, x = noisy(kind, dtype=torch.float32), inputs().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x, key=KEY)
        packed, _ = layer(pack_padded_sequence(x, LENGTHS, enforce_sorted=False), key=KEY)
    assert all(tensor.dtype == torch.bfloat16 for tensor in (*flat(found), packed.data))
    want = noisy(kind, dtype=torch.bfloat16)(x.bfloat16(), key=KEY)
    assert same(found, want)
    found[0].float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in layer.parameters())


@pytest.mark.parametrize("kind", BOTH)
def test_autocast_leaves_float64_alone_and_takes_no_integers(kind: str) -> None:
    layer, x = noisy(kind), inputs()
    want = layer(x, key=KEY)
    h = torch.ones(1, BATCH, HIDDEN, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(layer(x, key=KEY), want)
        for dtype in (torch.float64, torch.float32):
            with pytest.raises(ArgumentTypeError, match=r"`input` must be of the weights' type"):
                layer.to(dtype)(x.long(), key=KEY)
            with pytest.raises(ArgumentTypeError, match=r"must be of the input's type"):
                layer(x.to(dtype), (h, h) if kind == "LSTM" else h, key=KEY)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning")  # PyTorch's own
@pytest.mark.parametrize("zoneouts", [True, False])
@pytest.mark.parametrize("kind", BOTH)
def test_it_is_exported_to_onnx(kind: str, zoneouts: bool) -> None:
    from onnxruntime import InferenceSession

    rates = {name: p for name, p in RATES_OF[kind].items() if zoneouts or "zoneout" not in name}
    layer, x = network(kind, 3, 4, dtype=torch.float32, **rates).eval(), inputs().float()
    buffer = io.BytesIO()
    torch.onnx.export(layer, (x,), dynamo=True, verbose=False).save(buffer)
    session = InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for a, b in zip(found, flat(layer(x)), strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b.detach())
