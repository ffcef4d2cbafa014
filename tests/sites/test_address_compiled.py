"""Addressed models that are compiled: the masks and gradients of plain ones, in one graph over all steps."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import dropkit
from dropkit.errors import UnsupportedError
from dropkit.random import call_key, keep_mask
from dropkit.sites import address, samples

SEED = 2**63 + 5
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(  # PyTorch's own, while it compiles
        "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning",
        "ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning",
        "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    ),
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.drop(self.linear(x)).sin(), 0.2)


class Drawing(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.drop, self.own, self.block = nn.Linear(6, 6), nn.Dropout(0.5), forward, Block()
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.3, batch_first=True)
        self.network = nn.LSTM(6, 6, 2, dropout=0.5, batch_first=True)
        self.layer = dropkit.nn.TransformerEncoderLayer(6, 2, 8, 0.5, batch_first=True)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


class Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mask = F.dropout(torch.ones_like(x))
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


def hand_written(x: Tensor) -> Tensor:
    x = x + 0 * torch.randn_like(x)  # which is left to PyTorch, and counted
    masks = torch.rand_like(x) > 0.5, torch.empty_like(x).bernoulli_(0.9), torch.randint(0, 2, x.shape)
    return x * masks[0] * masks[1] * masks[2] + x * (torch.rand(9, 6, dtype=torch.float64) > 0.5)


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


def calling(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function of which the call of a model is a part."""

    def call(x: Tensor) -> Tensor:
        return model(x)

    return call


FORMS: dict[str, Callable[..., tuple[nn.Module, Callable[[Tensor], Tensor]]]] = {
    "wrapper": lambda model, **options: (wrapper := torch.compile(model, **options), wrapper),
    "method": lambda model, **options: (model, model.compile(**options) or model),
    "function": lambda model, **options: (model, torch.compile(calling(model), **options)),
}


def trained(model: nn.Module, call: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], list[Any]]:
    """Return outputs and gradients of accumulated batches, steps and another seed, and the states in between."""
    handle, found, states = address(model, SEED), [], []

    def accumulate() -> None:
        inputs = [torch.linspace(-1, 1, 54, dtype=torch.float64).view(9, 6).requires_grad_() for _ in range(2)]
        outputs = [call(x) for x in inputs]
        states.append(handle.state_dict())
        handle.step()  # before the backward passes, which have the masks of their forwards
        for x, output in zip(inputs, outputs, strict=True):
            output.square().sum().backward()
            found.extend([output.detach(), x.grad])

    accumulate()
    accumulate()
    handle.load_state_dict({**states[0], "seed": 3})
    accumulate()
    found.extend(each.grad for each in model.parameters() if each.grad is not None)
    handle.close()
    return found, states


def assert_as_plain(draws: Callable[[Any, Tensor], Tensor], form: str, **options: Any) -> None:
    model = Drawing(draws)
    wanted, states = trained(model, model)
    model.zero_grad()
    found, own_states = trained(*FORMS[form](model, **options))
    assert own_states == states
    for own, plain in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-12, atol=1e-12)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(found[:12:2], 2))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("draws", ONE_GRAPH)
def test_one_graph_draws_the_masks_of_a_plain_model(draws: str, form: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    with torch._dynamo.config.patch(allow_rnn=True):
        assert_as_plain(ONE_GRAPH[draws], form, backend=counter, fullgraph=True)
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
            output = call(x).clone()
            call(x).square().sum().backward()
            found.append(output)
            handle.step()
    assert all(torch.equal(*pair) for pair in zip(found[:8], found[8:], strict=True))
    assert not any(torch.equal(*pair) for pair in itertools.combinations(found[:8], 2))


def test_the_key_is_that_of_the_definition() -> None:
    model = torch.compile(nn.Sequential(nn.Dropout(0.5)), backend="aot_eager", fullgraph=True)
    handle = address(model, SEED)
    for step, call in itertools.product(range(2), range(2)):
        assert ((model(torch.ones(50)) != 0).numpy() == keep_mask(call_key(SEED, "0", step, call), (50,), 0.5)).all()
        if call:
            handle.step()


def hidden(x: Tensor) -> Tensor:
    return torch.compile(hand_written, backend="aot_eager", fullgraph=True)(x)


def broken(model: Any, x: Tensor) -> Tensor:
    y = model.drop(x)
    torch._dynamo.graph_break()
    return model.drop(y) + model.block(y)


BROKEN = {
    "checkpointed function": lambda model, x: model.drop(
        checkpoint(lambda y: F.dropout(model.linear(y), 0.5).sin(), model.drop(x), use_reentrant=False)
    ),
    "checkpointed module": lambda model, x: model.drop(checkpoint(model.block, model.drop(x), use_reentrant=False)),
    "reentrant checkpoint": lambda model, x: model.drop(checkpoint(model.block, model.drop(x), use_reentrant=True)),
    "network": lambda model, x: model.drop(model.network(model.drop(x)[None])[0][0]),
    "graph break": broken,
}


@pytest.mark.parametrize("form", ["wrapper", "function"])
@pytest.mark.parametrize("draws", BROKEN)
def test_graphs_that_break(draws: str, form: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    assert_as_plain(BROKEN[draws], form, backend=counter)
    assert counter.frame_count >= 2


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


@pytest.mark.parametrize("draws", ["checkpointed function", "checkpointed module"])
def test_one_graph_has_no_checkpoints(draws: str) -> None:
    model = Drawing(BROKEN[draws])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    handle, x = address(model), torch.ones(9, 6, dtype=torch.float64)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"checkpointing of an addressed model.*without fullgraph"):
        compiled(x)
    handle.close()
    assert compiled(x).shape == (9, 6)


@torch.compiler.nested_compile_region
def region(x: Tensor) -> Tensor:
    return F.dropout(x, 0.5).sin()


def test_what_no_mode_sees_runs_as_it_was_written_or_raises() -> None:
    draws = lambda model, x: region(model.linear(model.drop(x)))  # noqa: E731
    with pytest.warns(UserWarning, match=r"dropout draws random numbers where nothing.*runs as it was written"):
        assert_as_plain(draws, "wrapper", backend="aot_eager")
    model = Drawing(draws)
    address(model)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"dropout draws random numbers.*without fullgraph=True"):
        torch.compile(model, backend="aot_eager", fullgraph=True)(torch.ones(9, 6, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:.*runs as it was written")
def test_branches_that_draw_raise() -> None:
    """PyTorch compiles them in eager code too, and nothing in them is seen."""
    branch = lambda model, x: torch.cond(x.sum() > 0, F.dropout, torch.clone, (model.linear(x),))  # noqa: E731
    model, x = Drawing(branch), torch.ones(9, 6, dtype=torch.float64)
    address(model)
    for call in (model, torch.compile(model, backend="aot_eager")):
        with pytest.raises(torch._dynamo.exc.Unsupported, match=r"draw the mask before it"):
            call(x)


def test_transforms_that_ask_for_masks_of_examples() -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    address(model, SEED)
    transformed = torch.vmap(model, randomness="different")
    compiled = torch.compile(transformed, backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"one key is for all examples"):
        compiled(torch.ones(3, 4))


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


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.drop = nn.ModuleList(Block() for _ in range(3)), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(self.drop(x))
        return F.dropout(x, 0.1)


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


def test_tables_grow() -> None:
    class Often(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.01)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(150):
                x = self.drop(x)
            return x

    plain, model = Often(), Often()
    function = torch.compile(calling(model), backend="aot_eager", fullgraph=True)
    assert_alike({"": plain, "e": plain}, {"": model, "e": function}, "eese")


@pytest.mark.filterwarnings("ignore:.*runs as it was written")
@pytest.mark.parametrize("form", ["wrapper", "function"])
def test_numbered_examples_run_as_they_were_written(form: str) -> None:
    plain, x = Stack(), torch.ones(9, 6)
    model, call = FORMS[form](Stack(), backend="aot_eager")
    handles = address(plain, SEED), address(model, SEED)
    for _ in range(2):
        with samples(range(9)):
            torch.testing.assert_close(call(x), plain(x))
        torch.testing.assert_close(call(x), plain(x))
        assert handles[0].state_dict() == handles[1].state_dict()


def test_one_graph_has_no_numbered_examples() -> None:
    model, x = nn.Sequential(nn.Dropout(0.5)), torch.ones(50)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    address(model, SEED)
    with (
        samples(range(50)),
        pytest.raises(torch._dynamo.exc.Unsupported, match=r"masks are those of numbered examples"),
    ):
        compiled(x)
    assert ((compiled(x) != 0).numpy() == keep_mask(call_key(SEED, "0", 0), (50,), 0.5)).all()


@pytest.mark.parametrize("strict", [True, False])
def test_exported_programs(strict: bool) -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    address(model)
    with pytest.raises((UnsupportedError, torch._dynamo.exc.Unsupported), match=r"one mask for ever"):
        torch.export.export(model, (torch.ones(4),), strict=strict)
