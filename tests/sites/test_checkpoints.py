"""Whatever is attached to a model acts on a recomputed forward as on the first: gradients are those without it."""

import contextlib
import copy
import importlib
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributed._composable import checkpoint as composable
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.nn import functional as F
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, create_selective_checkpoint_contexts

import dropkit
from dropkit.errors import UnsupportedError
from dropkit.random import call_key
from dropkit.sites.calls.functions import Call
from dropkit.sites.interception.attachment import attached
from dropkit.sites.interception.counts import Counts
from dropkit.sites.interception.interceptor import Handler
from dropkit.sites.interception.places import Place


class Keyed(Handler):
    """Gives every call of dropout the key of its place, and notes the keys."""

    def __init__(self) -> None:
        self.step = 0
        self.keys: list[tuple[str, int]] = []

    def dropout(self, place: Place, call: Call) -> Tensor:
        self.keys.append((place.name, place.run))
        key = call_key(0, place.name, self.step, place.run)
        return dropkit.functional.dropout(call.input, call.p, call.training, key=key)

    def other(self, function, args, kwargs):
        return function(*args, **kwargs)

    def snapshot(self) -> int:
        return self.step

    @contextlib.contextmanager
    def resumed(self, state: int):
        before, self.step = self.step, state
        yield
        self.step = before


def plain(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
    return function(*args)


def checkpointed(use_reentrant: bool, preserve_rng_state: bool) -> Callable[..., Tensor]:
    def run(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        return checkpoint(function, *args, use_reentrant=use_reentrant, preserve_rng_state=preserve_rng_state)

    return run


def selective(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
    kept = [torch.ops.aten.addmm.default]
    return checkpoint(
        function, *args, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(kept)
    )


KINDS = {
    **{
        f"{'reentrant' if reentrant else 'not reentrant'}, {'' if preserve else 'not '}preserving": checkpointed(
            reentrant, preserve
        )
        for reentrant in (True, False)
        for preserve in (True, False)
    },
    "selective": selective,
}


class Block(nn.Module):
    """A layer and two dropouts, one a module that runs twice and one a function."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(6, 6), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(self.dropout(self.linear(self.dropout(x))), 0.3, self.training)


class OfModules(nn.Module):
    """A shared module, checkpointed twice, with calls before, between and after."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.run, self.block = run, Block()

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.1, self.training)
        x = self.run(self.block, x)
        x = F.dropout(x, 0.1, self.training)
        return F.dropout(self.run(self.block, x), 0.1, self.training)


class OfFunctions(OfModules):
    """A method, a plain function and a module's forward, of which the first is not called as a module."""

    def part(self, x: Tensor) -> Tensor:
        return F.dropout(self.block(F.dropout(x, 0.2, self.training)), 0.2, self.training).tanh()

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(self.part, F.dropout(x, 0.3, self.training))
        x = self.run(lambda y: F.dropout(y, 0.2, self.training).sin(), x)
        return self.run(self.block.forward, x)


class Nested(OfModules):
    """Checkpoints inside a checkpoint."""

    def part(self, x: Tensor) -> Tensor:
        return self.run(self.block, F.dropout(self.run(self.block, x), 0.2, self.training))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.run(self.part, self.block(x)), 0.1, self.training)


def gradients(model: nn.Module, backward: Callable[[Tensor], None] = Tensor.backward) -> list[Tensor]:
    """Return the gradients of two forwards whose backward passes come after both, in another step."""
    model.double().train()
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    handler = Keyed()
    with attached(model, handler) as interceptor:
        interceptor.counts = Counts()
        loss = model(x).square().sum() + model(x).sum()
        handler.step = 1
        loss = loss + model(x).square().sum()
        drawn = list(handler.keys)
        backward(loss)
    assert set(handler.keys) == set(drawn), "a recomputation drew a mask that no forward had drawn"
    return [x.grad, *(parameter.grad for parameter in model.parameters())]


def assert_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert all(grad.abs().sum() > 0 for grad in wanted)
    for own, plain_one in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, plain_one, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's, of nested reentrant ones
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", [OfModules, OfFunctions, Nested])
def test_gradients_are_those_without_checkpoints(model: type[OfModules], kind: str) -> None:
    assert_close(gradients(model(KINDS[kind])), gradients(model(plain)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_left_alone_the_gradients_are_wrong(reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above are for: without snapshots the recomputation draws other masks, or fails."""
    monkeypatch.setattr("dropkit.sites.interception.attachment.checkpoints.watch", lambda _: None)
    try:
        found = gradients(OfModules(checkpointed(reentrant, True)))
    except (AssertionError, RuntimeError):
        return
    with pytest.raises(AssertionError):
        assert_close(found, gradients(OfModules(plain)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_sequential(reentrant: bool) -> None:
    class Model(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint_sequential(self, 2, x, use_reentrant=reentrant)

    def blocks() -> list[Block]:
        return [Block(), Block(), Block()]

    assert_close(gradients(Model(*blocks())), gradients(nn.Sequential(*blocks())))


@pytest.mark.parametrize("kind", [CheckpointImpl.REENTRANT, CheckpointImpl.NO_REENTRANT])
def test_wrapped(kind: CheckpointImpl) -> None:
    wrapped = nn.Sequential(Block(), checkpoint_wrapper(Block(), kind), nn.Dropout(0.2))
    assert_close(gradients(wrapped), gradients(nn.Sequential(Block(), Block(), nn.Dropout(0.2))))


def test_composable() -> None:
    model = nn.Sequential(Block(), Block(), nn.Dropout(0.2))
    composable(model[1])
    assert_close(gradients(model), gradients(nn.Sequential(Block(), Block(), nn.Dropout(0.2))))


def test_composable_after_attaching() -> None:
    x = torch.ones(4, 6, dtype=torch.float64, requires_grad=True)
    model = Block().double()
    with attached(model, Keyed()):
        [wanted] = torch.autograd.grad(model(x).square().sum(), x)
        composable(model)
        [found] = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reentrant", [True, False])
def test_whole_model(reentrant: bool) -> None:
    x = torch.ones(4, 6, dtype=torch.float64, requires_grad=True)
    model = Block().double()
    with attached(model, Keyed()):
        model(x).square().sum().backward()
        wanted, x.grad = x.grad, None
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close(x.grad, wanted, rtol=1e-12, atol=1e-12)


def test_twice_through_one_graph() -> None:
    def twice(loss: Tensor) -> None:
        loss.backward(retain_graph=True)
        loss.backward()

    assert_close(gradients(OfModules(KINDS["not reentrant, preserving"]), twice), gradients(OfModules(plain), twice))


@pytest.mark.parametrize("kind", KINDS)
def test_backward_in_another_thread(kind: str) -> None:
    def elsewhere(loss: Tensor) -> None:
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()

    assert_close(gradients(OfModules(KINDS[kind]), elsewhere), gradients(OfModules(plain)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_closed_before_the_backward_pass(reentrant: bool) -> None:
    inside, outside = OfModules(checkpointed(reentrant, True)), Block()
    for model, run in ((inside, plain), (outside, checkpointed(reentrant, True))):
        x = torch.ones(4, 6, requires_grad=True)
        with attached(model, Keyed()):
            loss = run(model, x).sum()
        with pytest.raises(UnsupportedError, match=r"Close it after the backward pass"):
            loss.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_attached_after_the_forward(reentrant: bool) -> None:
    """Another model's attachment alone, while the forward ran: the recomputation is as plain as the forward."""
    x = torch.ones(4, 6, dtype=torch.float64, requires_grad=True)
    model, other, keyed = Block().double(), Block(), Keyed()
    with attached(other, Keyed()):
        torch.manual_seed(0)
        model(x).square().sum().backward()
        wanted, x.grad = x.grad, None
        torch.manual_seed(0)
        loss = checkpoint(model, x, use_reentrant=reentrant).square().sum()
        with attached(model, keyed):
            loss.backward()
    assert not keyed.keys
    torch.testing.assert_close(x.grad, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_in_a_recomputation_leaves_no_trace(kind: str) -> None:
    calls: list[int] = []

    def failing(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("once")
        return x.tanh()

    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 6))
    model.forward = lambda x: KINDS[kind](lambda y: failing(model[1](model[0](y))), x)
    x = torch.ones(4, 6, requires_grad=True)
    with attached(model, Keyed()) as interceptor:
        loss = model(x).sum()
        with pytest.raises(KeyError):
            loss.backward()
        assert not interceptor.frames
        assert not interceptor.is_resumed
        assert not torch.overrides._get_current_function_mode_stack()
        model(x)


def test_pytorch_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.import_module("dropkit.sites.interception.checkpoints")
    monkeypatch.setattr(plain, "_watched", weakref.WeakSet())  # whatever other tests have left attached
    monkeypatch.setattr(checkpoints, "_CheckpointFrame", plain._PlainFrame)
    monkeypatch.setattr(checkpoints.CheckpointFunction, "forward", staticmethod(plain._plain_forward))
    before = checkpoints._CheckpointFrame, checkpoints.CheckpointFunction.forward
    assert {part.__module__ for part in before} == {"torch.utils.checkpoint"}
    with attached(Block(), Keyed()):
        assert checkpoints._CheckpointFrame is not before[0]
        with attached(Block(), Keyed()):
            pass
        assert checkpoints._CheckpointFrame is not before[0]
    assert (checkpoints._CheckpointFrame, checkpoints.CheckpointFunction.forward) == before


def test_two_threads() -> None:
    inside, done = threading.Event(), threading.Event()

    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inside.set()
            assert done.wait(10)
            return x

    model, x = nn.Sequential(nn.Dropout(0.5), Waiting(), nn.Dropout(0.5)), torch.ones(4, 6)
    handler = Keyed()
    with attached(model, handler):
        thread = threading.Thread(target=model, args=(x,))
        thread.start()
        assert inside.wait(10)
        with pytest.raises(UnsupportedError, match=r"two threads"):
            model(x)
        with pytest.raises(UnsupportedError, match=r"two threads"):
            model[0](x)
        done.set()
        thread.join()
        assert handler.keys == [("0", 0), ("2", 0)]
        inside.clear()
        model(x)


def test_a_copy_is_plain() -> None:
    model, handler = Block(), Keyed()
    with attached(model, handler):
        copied = copy.deepcopy(model)
        copied(torch.ones(4, 6))
        assert not handler.keys
        model(torch.ones(4, 6))
        assert len(handler.keys) == 3
