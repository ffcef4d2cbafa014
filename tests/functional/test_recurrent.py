"""The fast ways through LSTM and GRU against the plain operations: values, gradients, and when each is taken."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from dropkit.functional import recurrent
from tests.helpers.recurrent import BATCH, BOTH, FORMS, HIDDEN, KEY, LENGTHS, RATES_OF, flat, inputs, network, noisy

Count = Callable[[], int]
# PyTorch's own forward mode scripts its formulas on first use.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Count:
    """Count how often the plain operations run a layer."""
    calls: list[Any] = []
    run_cell = recurrent.run_cell

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return run_cell(*arguments)

    monkeypatch.setattr(recurrent, "run_cell", counted)
    return lambda: len(calls)


def both(monkeypatch: pytest.MonkeyPatch, plain: Count, call: Callable[[], list[Tensor]]) -> Iterator[list[Tensor]]:
    before = plain()
    yield call()
    assert plain() == before
    with monkeypatch.context() as patched:
        patched.setattr(recurrent, "fits", lambda *_: False)
        yield call()
    assert plain() > before


def with_gradients(layer: Any, x: Any, states: tuple[Tensor, ...], **options: Any) -> list[Tensor]:
    given = tuple(state.requires_grad_() for state in states)
    values = x.requires_grad_() if isinstance(x, Tensor) else x.data.requires_grad_()
    found = flat(layer(x, given if layer.mode == "LSTM" else given[0], **options))
    loss = sum((tensor.sin() * (i + 1)).sum() for i, tensor in enumerate(found))
    return found + list(torch.autograd.grad(loss, [values, *given, *layer.parameters()]))


def states_of(layer: Any) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    lead = layer.num_layers * (2 if layer.bidirectional else 1)
    count = 2 if layer.mode == "LSTM" else 1
    return tuple(torch.randn(lead, BATCH, HIDDEN, dtype=torch.float64, generator=generator) for _ in range(count))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", BOTH)
def test_both_ways_agree(kind: str, form: str, packed: bool, plain: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = noisy(kind, form), inputs(FORMS[form].get("batch_first", False))
    x = pack_padded_sequence(x, LENGTHS, layer.batch_first, enforce_sorted=False) if packed else x
    fast, slow = both(monkeypatch, plain, lambda: with_gradients(layer, x, states_of(layer), key=KEY))
    for found, want in zip(fast, slow, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("alone", [None, "input_p", "recurrent_p", "update_p", "output_p", "zoneout"])
@pytest.mark.parametrize("p", [0.4, 1.0])
@pytest.mark.parametrize("kind", BOTH)
def test_both_ways_agree_with_each_noise_alone_and_at_one(
    kind: str, alone: str | None, p: float, tied: bool, plain: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for name in RATES_OF[kind] if alone is None or name.startswith(alone)]
    layer = network(kind, 3, HIDDEN, tied=tied, **dict.fromkeys(names, p))
    fast, slow = both(monkeypatch, plain, lambda: with_gradients(layer, inputs(), states_of(layer), key=KEY))
    for found, want in zip(fast, slow, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", BOTH)
def test_a_batch_of_gradients_is_each_of_them(kind: str, form: str) -> None:
    layer, x = noisy(kind, form), inputs(FORMS[form].get("batch_first", False)).requires_grad_()
    output, _ = layer(x, key=KEY)
    wanted, several = [x, *layer.parameters()], torch.randn(3, *output.shape, dtype=torch.float64)
    found = torch.autograd.grad(output, wanted, several, retain_graph=True, is_grads_batched=True)
    for i, one in enumerate(several):
        for batched, want in zip(found, torch.autograd.grad(output, wanted, one, retain_graph=True), strict=True):
            torch.testing.assert_close(batched[i], want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", BOTH)
def test_an_empty_batch(kind: str, form: str) -> None:
    layer = noisy(kind, form)
    x = inputs(layer.batch_first).narrow(0 if layer.batch_first else 1, 0, 0).requires_grad_()
    found = flat(layer(x))
    theirs = flat(getattr(torch.nn, kind).forward(copy.deepcopy(layer).eval(), x))
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in theirs]
    gradients = torch.autograd.grad(found[0].sum(), [x, *layer.parameters()])
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("wanted", ["input", "states", "weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("kind", BOTH)
def test_a_gradient_wanted_alone(kind: str, wanted: str, plain: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, states = noisy(kind).requires_grad_(False), inputs(), states_of(noisy(kind))
    target = {"input": x, "states": states[-1]}.get(wanted)
    target = getattr(layer, f"{wanted}_l0") if target is None else target
    target.requires_grad_()

    def call() -> list[Tensor]:
        output, _ = layer(x, states if kind == "LSTM" else states[0], key=KEY)
        return list(torch.autograd.grad(output.sin().sum(), target))

    (fast,), (slow,) = both(monkeypatch, plain, call)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", BOTH)
def test_second_derivatives_take_the_plain_way_and_do_not_count_a_path_twice(
    kind: str, plain: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = noisy(kind), inputs().requires_grad_()

    def call() -> list[Tensor]:
        h = torch.nn.functional.pad(x[:1], (0, HIDDEN - x.shape[2]))  # which depends on the input
        output, _ = layer(x, (h, h.cos()) if kind == "LSTM" else h, key=KEY)
        first = torch.autograd.grad(output.sin().sum(), [x, *layer.parameters()], create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), [x, *layer.parameters()])]

    fast, slow = both(monkeypatch, plain, call)
    for found, want in zip(fast, slow, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", BOTH)
def test_who_takes_the_plain_way(kind: str, plain: Count) -> None:
    layer, x = noisy(kind), inputs()
    layer(x, key=KEY)
    assert plain() == 0
    noisy(kind, dtype=torch.bfloat16)(x.bfloat16(), key=KEY)
    assert plain() == 1
    torch.func.vmap(lambda v: layer(v, key=KEY)[0])(x.unsqueeze(0))
    assert plain() == 2
    layer.eval()(x)
    assert plain() == 3
    with torch.autograd.forward_ad.dual_level():
        layer.train()(torch.autograd.forward_ad.make_dual(x, x), key=KEY)
    assert plain() == 4
    if kind == "LSTM":
        noisy(kind, proj_size=2)(x, key=KEY)
        assert plain() == 5


@pytest.mark.parametrize("kind", BOTH)
def test_the_output_may_be_changed_in_place(kind: str) -> None:
    layer = network(kind, 3, HIDDEN, recurrent_p=0.5)
    output, _ = layer(inputs(), key=KEY)
    want = torch.autograd.grad((2 * output).square().sum(), [*layer.parameters()])
    output, _ = layer(inputs(), key=KEY)
    found = torch.autograd.grad(output.mul_(2).square().sum(), [*layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("kind", BOTH)
def test_weights_changed_before_the_backward_pass_are_noticed(kind: str) -> None:
    layer = noisy(kind)
    output, _ = layer(inputs(), key=KEY)
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
