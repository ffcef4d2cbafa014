"""Addressed models that are compiled: the masks and gradients of plain ones, in one graph over all steps."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

import dropkit
from dropkit.random import call_key, keep_mask
from dropkit.sites import address
from dropkit.sites.addressing import table
from tests.sites.compiled import ANY_FORM, FORMS, MARKS, SEED, Drawing, Stack, assert_as_plain, calling, hand_written

pytestmark = MARKS


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mask = F.dropout(torch.ones_like(x))
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


def attend(model: Any, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x[None], model.linear(x)[None], x[None], dropout_p=0.5)[0]


def ours(model: Any, x: Tensor) -> Tensor:
    return model.layer(dropkit.functional.drop_path(dropkit.functional.dropout(model.drop(x)), 0.2)[None])[0]


ONE_GRAPH = {
    "functions": lambda model, x: F.dropout(model.drop(model.linear(x)), 0.3),
    "a shared layer": lambda model, x: model.drop(model.drop(model.block(x)) + model.block(model.drop(x))),
    "attention": attend,
    "heads": lambda model, x: model.attention(x[None], x[None], x[None])[0][0],
    "masks by hand": lambda model, x: hand_written(model.linear(x)),
    "functions and layers of dropkit's": ours,
    "a function with a derivative": lambda model, x: Masked.apply(model.linear(model.drop(x))),
    "a network": lambda model, x: model.network(model.drop(x)[None])[0][0],
}


@pytest.mark.parametrize("form", ANY_FORM)
@pytest.mark.parametrize("draws", [draws for draws in ONE_GRAPH if draws != "a shared layer"])
def test_one_graph_draws_the_masks_of_a_plain_model(draws: str, form: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    with torch._dynamo.config.patch(allow_rnn=True):
        assert_as_plain(ONE_GRAPH[draws], form, backend=counter, fullgraph=True)
    assert counter.frame_count == 1


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_one_graph(form: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    assert_as_plain(ONE_GRAPH["a shared layer"], form, backend=counter, fullgraph=True)
    assert counter.frame_count == 1


@pytest.mark.parametrize("draws", ["a shared layer", "masks by hand"])
def test_inductor(draws: str) -> None:
    assert_as_plain(ONE_GRAPH[draws], "wrapper", backend="inductor", fullgraph=True)


def test_keys_are_not_computed_again_in_the_backward_pass() -> None:
    """Where a compiler is told to compute all again that it can; the counts have gone on by then."""
    with torch._functorch.config.patch(aggressive_recomputation=True):
        assert_as_plain(ONE_GRAPH["a shared layer"], "wrapper", backend="aot_eager", fullgraph=True)


@pytest.mark.gpu
def test_cuda_graphs() -> None:
    model = Drawing(ONE_GRAPH["a shared layer"]).cuda()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    handle, x, found = address(model, SEED), torch.ones(9, 6, dtype=torch.float64, device="cuda"), []
    for call in (model, compiled):
        handle.load_state_dict({**handle.state_dict(), "last_step": 0, "runs": {}})
        for _ in range(8):
            output = call(x).detach().clone()
            call(x).square().sum().backward()
            found.append(output)
            handle.step()
    for one, other in zip(found[:8], found[8:], strict=True):
        torch.testing.assert_close(one, other)
    assert not any(torch.equal(*pair) for pair in itertools.combinations(found[:8], 2))


def test_the_key_is_that_of_the_definition() -> None:
    model = torch.compile(nn.Sequential(nn.Dropout(0.5)), backend="aot_eager", fullgraph=True)
    handle = address(model, SEED)
    for step, call in itertools.product(range(2), range(2)):
        assert ((model(torch.ones(50)) != 0).numpy() == keep_mask(call_key(SEED, "0", step, call), (50,), 0.5)).all()
        if call:
            handle.step()


@pytest.mark.parametrize("is_first", [True, False])
def test_models_that_ran_before_they_were_addressed(is_first: bool) -> None:
    model, x = nn.Sequential(nn.Dropout(0.5)), torch.ones(50)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    if is_first:
        compiled(x)
    handle = address(model, SEED)
    mask = keep_mask(call_key(SEED, "0", 0), (50,), 0.5)
    assert ((compiled(x) != 0).numpy() == mask).all()
    handle.close()
    assert not torch.equal(compiled(x), compiled(x))


def test_transforms_that_ask_for_masks_of_examples() -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    address(model, SEED)
    for randomness in ("different", "error"):
        transformed = torch.vmap(model, randomness=randomness)
        compiled = torch.compile(transformed, backend="aot_eager", fullgraph=True)
        with pytest.raises(torch._dynamo.exc.Unsupported, match=r"one key is for all examples"):
            compiled(torch.ones(3, 4))


def test_a_forward_that_takes_a_derivative() -> None:
    class Derivative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.func.grad(lambda x: self.drop(self.linear(self.drop(x))).square().sum())(x)
            return self.drop(x)

    model, x = Derivative(), torch.ones(9, 6)
    compiled = torch.compile(model, backend="aot_eager")
    handle = address(model, SEED)
    for _ in range(2):
        wanted = [model(x), model(x)]
        handle.load_state_dict({**handle.state_dict(), "runs": ()})
        for each in wanted:
            torch.testing.assert_close(compiled(x), each)
        handle.step()


def test_draws_outside_of_the_model_are_left_to_pytorch() -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    address(model, SEED)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.rand_like(x)
        return noise, model(x) + F.dropout(x, 1.0)

    found = [step(torch.ones(50)) for _ in range(2)]
    assert not torch.equal(found[0][0], found[1][0])
    assert ((found[1][1] != 0).numpy() == keep_mask(call_key(SEED, "0", 0, 1), (50,), 0.5)).all()


def test_steps_of_training_that_are_compiled_whole() -> None:
    """With the optimizer's step in it, after which the handle goes on, outside of the graph."""
    counter, losses = CompileCounterWithBackend("aot_eager"), []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        optimizer, handle = torch.optim.SGD(model.parameters(), lr=0.01), address(model, SEED)
        handle.follow(optimizer)

        def step(model: nn.Module = model, optimizer: Any = optimizer) -> Tensor:
            loss = model(torch.ones(3, 4)).square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        call = torch.compile(step, backend=counter) if is_compiled else step
        losses.append([call() for _ in range(2)])
        compilations = counter.frame_count
        losses[-1] += [call() for _ in range(3)]
        assert handle.last_step == 5
    assert counter.frame_count == compilations > 0
    torch.testing.assert_close(losses[1], losses[0])


def assert_alike(first: dict[str, Any], second: dict[str, Any], plan: str) -> None:
    """Run two models side by side: a letter is a way to call them, or ``s``, a step of both."""
    x, handles = torch.ones(9, 6), [address(each[""], SEED) for each in (first, second)]
    for letter in plan:
        if letter == "s":
            for handle in handles:
                handle.step()
        else:
            torch.testing.assert_close(first[letter](x), second[letter](x))
        assert handles[0].state_dict() == handles[1].state_dict()
    for handle in handles:
        handle.close()


def test_eager_and_compiled_forwards_of_the_whole_and_of_parts_count_together() -> None:
    plain, model, counter = Stack(), Stack(), CompileCounterWithBackend("aot_eager")
    options: dict[str, Any] = {"backend": counter, "fullgraph": True}
    wrapper, function = torch.compile(model, **options), torch.compile(calling(model), **options)

    @torch.compile(**options)
    def part(x: Tensor) -> Tensor:
        return model.blocks[1](x)

    ways = {"": model, "e": model, "w": wrapper, "f": function, "p": part}
    assert_alike(dict.fromkeys(ways, plain) | {"p": plain.blocks[1]}, ways, "efwpefsepwsfewwpsfef")
    assert counter.frame_count == 3


def test_parts_that_are_compiled_alone() -> None:
    plain, model, counter = Stack(), Stack(), CompileCounterWithBackend("aot_eager")
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True)
    assert_alike({"": plain, "e": plain}, {"": model, "e": model}, "eeseesee")
    assert counter.frame_count == 3


def test_modes_of_gradients_and_evaluation() -> None:
    plain, model = Stack(), Stack()
    function = torch.compile(calling(model), backend="aot_eager", fullgraph=True)

    def inference(call: Any, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return call(x).clone()

    def evaluation(own: nn.Module, call: Any, x: Tensor) -> Tensor:
        own.blocks[0].drop.eval()
        found = call(x)
        own.train()
        return found

    def ways(own: nn.Module, call: Any) -> dict[str, Any]:
        return {"": own, "e": call, "i": lambda x: inference(call, x), "v": lambda x: evaluation(own, call, x)}

    assert_alike(ways(plain, plain), ways(model, function), "iesieves")


def test_tables_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_ROWS", 4)

    class Often(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.1)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(10):  # four rows, doubled twice
                x = self.drop(x)
            return x

    plain, model = Often(), Often()
    function = torch.compile(calling(model), backend="aot_eager", fullgraph=True)
    assert_alike({"": plain, "e": plain}, {"": model, "e": function}, "eese")


def test_evaluation_is_not_counted() -> None:
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), torch.ones(9, 6)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    handle = address(model, SEED)
    first = compiled(x)
    assert torch.equal(compiled.eval()(x), model(x))
    second = compiled.train()(x)
    assert dict(handle.state_dict()["runs"])["1"] == 2
    handle.load_state_dict({"mask_version": 1, "seed": SEED, "last_step": 0, "runs": {}})
    assert torch.equal(model(x), first)
    assert torch.equal(model(x), second)
