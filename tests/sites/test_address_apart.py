"""Addressed models, threads and tasks beside one another: none draws, counts or recomputes for another."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import dropkit
from dropkit.errors import UnsupportedError
from dropkit.sites import address, samples
from dropkit.sites.interception.checkpoints import uncompiled
from tests.sites.threads import Meeting, in_another_thread

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": F.dropout,
    "rand": lambda x: x * (torch.rand(x.shape) > 0.5),
    "rand_like": lambda x: x * (torch.rand_like(x) > 0.5),
    "bernoulli_": lambda x: x * torch.empty_like(x).bernoulli_(0.5),
    "randint": lambda x: x * (torch.randint(0, 4, x.shape) > 1),
}


class Drawing(nn.Module):
    """Draws in two ways, after whatever is to happen before that."""

    def __init__(self, draw: Callable[[Tensor], Tensor] = DRAWS["rand_like"]) -> None:
        super().__init__()
        self.linear, self.drop, self.draw = nn.Linear(6, 6).double(), nn.Dropout(0.5), draw
        self.first: Callable[[], None] = lambda: None

    def part(self, x: Tensor) -> Tensor:
        self.first()
        return self.draw(self.drop(self.linear(x)).tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


class Checkpointed(Drawing):
    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.part, x, use_reentrant=self.reentrant)


def leaf() -> Tensor:
    return torch.ones(4, 6, dtype=torch.float64, requires_grad=True)


def gradient(model: Callable[[Tensor], Tensor], backward: Callable[[Tensor], None] = Tensor.backward) -> Tensor:
    x = leaf()
    backward(model(x).square().sum())
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("is_inner_first", [True, False])
@pytest.mark.parametrize("draw", DRAWS)
def test_a_model_that_runs_inside_another_keeps_its_masks(draw: str, is_inner_first: bool) -> None:
    """As a teacher does that its student keeps in a list, which registers nothing."""

    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.draw = [inner], DRAWS[draw]

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner[0](x), self.draw(x)

    inner, x = Drawing(DRAWS[draw]), leaf()
    outer = Outer(inner)
    with address(inner, 1):
        wanted = inner(x)
    handles = [address(*each) for each in ([(inner, 1), (outer, 2)] if is_inner_first else [(outer, 2), (inner, 1)])]
    found, own = outer(x)
    assert torch.equal(found, wanted)
    for handle in handles:
        handle.close()
    assert not torch.equal(own != 0, found != 0)


@pytest.mark.parametrize("is_addressed", [True, False])
@pytest.mark.parametrize("draw", ["dropout", "rand_like"])
def test_numbered_examples_of_a_model_that_runs_inside_another(draw: str, is_addressed: bool) -> None:
    """Its masks are drawn in parts, which do not enter into the names of the other's sites."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = [Drawing(DRAWS[draw])]

        def forward(self, x: Tensor) -> Tensor:
            return self.inner[0](x) + DRAWS[draw](x)

    model, x = Outer(), torch.randn(4, 5, 6, dtype=torch.float64)
    address(model, 2)
    if is_addressed:
        address(model.inner[0], 1)
    for dim, take in ((0, lambda ids: x[ids]), (1, lambda ids: x.transpose(0, 1)[:, ids])):
        with samples(range(4), dim=dim):
            whole = model(take([0, 1, 2, 3]))
        for ids in ([0, 2], [3, 0, 2], [1]):
            with samples(ids, dim=dim):
                torch.testing.assert_close(model(take(ids)), whole[:, ids] if dim else whole[ids])


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputation_leaves_other_models_alone(reentrant: bool) -> None:
    """While one is recomputed, another runs and goes on to its next step, in another thread."""
    model, other, meeting = Checkpointed(), Drawing(), Meeting()
    model.reentrant = reentrant
    with address(model, 1):
        wanted = gradient(model)
    address(model, 1)
    handle = address(other, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.0)
    handle.follow(optimizer)
    x = leaf()
    loss = model(x).square().sum()
    model.first = meeting
    with in_another_thread(loss.backward) as raised:
        assert meeting.inside.wait(20)
        first = other(leaf())
        assert ("", 1) in handle.state_dict()["runs"]
        first.sum().backward()
        optimizer.step()
        assert handle.last_step == 1
        meeting.go_on.set()
    assert raised == [None]
    assert handle.state_dict() == {**handle.state_dict(), "last_step": 1, "runs": ()}
    torch.testing.assert_close(x.grad, wanted)
    handle.load_state_dict({**handle.state_dict(), "last_step": 0})
    assert torch.equal(other(leaf()), first)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_while_another_model_runs_in_another_thread(reentrant: bool) -> None:
    model, other, meeting = Checkpointed(), Drawing(), Meeting()
    model.reentrant, other.first = reentrant, meeting
    with address(model, 1):
        wanted = gradient(model)
    address(model, 1)
    handle = address(other, 2)
    with in_another_thread(lambda: other(leaf())) as found:
        assert meeting.inside.wait(20)
        x = leaf()
        loss = model(x).square().sum()
        meeting.go_on.set()
    loss.backward()
    torch.testing.assert_close(x.grad, wanted)
    handle.load_state_dict({**handle.state_dict(), "runs": ()})
    assert torch.equal(other(leaf()), found[0])


def test_many_threads_with_a_model_each() -> None:
    def train(model: nn.Module) -> list[Tensor]:
        handle, found = address(model, 3), []
        for _ in range(10):
            with samples([3, 0, 2, 1]):
                found += [gradient(model), gradient(model)]
            handle.step()
        handle.close()
        return found

    torch.manual_seed(0)
    plain = Drawing()
    wanted, all_found = train(plain), []
    for model in (Checkpointed(), Checkpointed(), Drawing()):
        model.load_state_dict(plain.state_dict())
        all_found.append(in_another_thread(lambda model=model: train(model)))
    with all_found[0] as first, all_found[1] as second, all_found[2] as third:
        pass
    for [found] in (first, second, third):
        assert not isinstance(found, Exception), found
        for own, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(own, other)


@pytest.mark.parametrize("reentrant", [True, False])
def test_whole_forwards_inside_a_checkpoint(reentrant: bool) -> None:
    """Of two models, one of them twice, with numbered examples inside and outside; steps go on before the backward."""

    def train(run: Callable[..., Tensor]) -> tuple[Tensor, list[Any]]:
        torch.manual_seed(0)
        models = [Drawing(), Drawing()]
        handles = [address(model, seed) for seed, model in enumerate(models)]

        def forward(x: Tensor) -> Tensor:
            x = models[0](x)
            with samples([4, 1, 3, 0]):
                x = models[1](x) + models[0](x)
            return models[0](x) * models[1](x)

        x = leaf()
        with samples([7, 8, 9, 2]):
            loss = run(forward, models[1](x)).square().sum() + models[0](x).sum()
        loss = loss + run(forward, models[1](x)).square().sum()
        for handle in handles:
            handle.step()
        models[1](x)
        loss.backward()
        states = [handle.state_dict() for handle in handles]
        for handle in handles:
            handle.close()
        return x.grad, states

    wanted, states = train(lambda function, x: function(x))
    found, own = train(lambda function, x: checkpoint(function, x, use_reentrant=reentrant))
    torch.testing.assert_close(found, wanted)
    assert own == states


@pytest.mark.parametrize("reentrant", [True, False])
def test_only_what_took_part_has_to_stay_open(reentrant: bool) -> None:
    model, other, stranger = Drawing(), Drawing(), Drawing()
    handles = [address(each) for each in (other, stranger)]
    stranger(leaf())
    loss = checkpoint(lambda x: other(model(x)), leaf(), use_reentrant=reentrant).sum()
    stranger(leaf())
    handles[1].close()
    loss.backward(retain_graph=True)
    handles[0].close()
    with pytest.raises(UnsupportedError, match=r"Close it after the backward pass"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_an_accelerated_model_inside_a_checkpoint(reentrant: bool) -> None:
    """Its kernels draw again what they drew, from the state that the checkpoint has kept."""
    model = Drawing(DRAWS["dropout"])
    dropkit.sites.accelerate(model)
    found = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        torch.manual_seed(1)
        found.append(gradient(run))
    torch.testing.assert_close(*found)


class Backward(Drawing):
    """Its forward has a backward pass in it, if it is given a loss."""

    def forward(self, x: Tensor, loss: Tensor | None = None) -> Tensor:
        x = self.part(x)
        if loss is not None:
            loss.backward()
        return self.part(x)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("is_own", [True, False])
def test_a_backward_pass_inside_a_later_forward(is_own: bool, reentrant: bool) -> None:
    """It recomputes a whole forward of the model itself, or of another, and the later forward goes on as it was."""
    found = []
    for run in (lambda model, x: model(x), lambda model, x: checkpoint(model, x, use_reentrant=reentrant)):
        torch.manual_seed(0)
        model, other, x = Backward(), Drawing(), leaf()
        handles = address(model, 1), address(other, 2)
        output = model(leaf(), run(model if is_own else other, x).square().sum())
        found.append((x.grad, output, model(leaf()), [handle.state_dict() for handle in handles]))
    for own, plain in zip(found[1][:3], found[0][:3], strict=True):
        torch.testing.assert_close(own, plain)
    assert found[1][3] == found[0][3]
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_switched_forward_that_recomputes_a_part_of_itself() -> None:
    """Its modules see the wanted mode again when the backward pass inside of it has ended."""

    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[bool] = []

        def attend(self, x: Tensor) -> Tensor:
            self.seen.append(self.training)
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)

        def forward(self, x: Tensor) -> Tensor:
            loss = checkpoint(self.attend, x, use_reentrant=False).square().sum()
            return self.attend(x + torch.autograd.grad(loss, x)[0])

    model = Penalised().eval()
    with dropkit.sites.switch(model, "on") as switched:
        switched.learn(torch.ones(2, 4, 8, requires_grad=True))
        model.seen = []
        model(torch.ones(2, 4, 8, requires_grad=True))
    assert model.seen == [True, True, True]
    assert not model.training


NESTED = {"one in another": [True, True], "of both kinds": [True, False], "of the other kind": [False, True]}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's, of nested reentrant ones
@pytest.mark.parametrize("kinds", NESTED)
@pytest.mark.parametrize("how", ["switch", "record"])
def test_what_is_opened_around_the_backward_pass_takes_no_part(how: str, kinds: str) -> None:
    class Nested(Drawing):
        def forward(self, x: Tensor) -> Tensor:
            outer, inner = NESTED[kinds]
            return checkpoint(lambda x: checkpoint(self.part, x, use_reentrant=inner), x, use_reentrant=outer)

    torch.manual_seed(0)
    model, plain = Nested(), Drawing()
    plain.load_state_dict(model.state_dict())
    address(plain, 1)
    address(model, 1)

    def backward(loss: Tensor) -> None:
        with dropkit.sites.switch(model, "off") if how == "switch" else dropkit.sites.record(model):
            loss.backward()

    torch.testing.assert_close(gradient(model, backward), gradient(plain))


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_a_recomputed_function_attaches_itself_takes_part(reentrant: bool) -> None:
    model = Drawing()

    def part(x: Tensor) -> Tensor:
        with dropkit.sites.switch(model, "off", where=["drop"]):
            return model(x)

    with address(model, 1):
        wanted = gradient(part)
    with address(model, 1):
        found = gradient(lambda x: checkpoint(part, x, use_reentrant=reentrant))
    torch.testing.assert_close(found, wanted)
    with address(model, 1):
        assert not torch.allclose(gradient(model), wanted)


def test_threads_that_run_what_was_written_leave_the_compiler_as_it_was() -> None:
    """The first that begins ends before the second."""
    stance = lambda: torch._dynamo.eval_frame._stance.stance  # noqa: E731
    before, first, second = stance(), uncompiled(), uncompiled()
    first.__enter__()
    with in_another_thread(second.__enter__):
        pass
    assert stance() == "force_eager"
    first.__exit__(None, None, None)
    assert stance() == "force_eager"
    second.__exit__(None, None, None)
    assert stance() == before == "default"
