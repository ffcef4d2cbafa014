"""Addressed models whose compiled graphs break: the masks and gradients of plain ones, or an error with one graph."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dropkit.errors import UnsupportedError
from dropkit.random import call_key, keep_mask
from dropkit.sites import address, samples
from tests.sites.compiled import FORMS, MARKS, SEED, Drawing, Stack, assert_as_plain, hand_written

pytestmark = MARKS
START = {"mask_version": 1, "seed": SEED, "last_step": 0, "runs": {}}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


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


@pytest.mark.parametrize("form", ["wrapper", pytest.param("function", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("draws", BROKEN)
def test_graphs_that_break(draws: str, form: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    assert_as_plain(BROKEN[draws], form, backend=counter)
    assert counter.frame_count >= 2


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


def test_what_no_mode_sees_is_found_beside_another_model() -> None:
    model, other = Drawing(lambda model, x: region(model.other[0](x))), nn.Sequential(nn.Dropout(0.5))
    model.other = [other]  # no part of it
    address(model)
    address(other)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"dropout draws random numbers"):
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


@pytest.mark.filterwarnings("ignore:.*runs as it was written")
@pytest.mark.parametrize("form", ["wrapper", "function"])
def test_numbered_examples_run_as_they_were_written(form: str) -> None:
    """By numbers that are not those of a batch that has none, before a plain forward and after it."""
    plain, x = Stack(), torch.ones(3, 6)
    model, call = FORMS[form](Stack(), backend="aot_eager")
    handles = address(plain, SEED), address(model, SEED)
    for ids in ([7, 3, 4], [3, 7, 0], [1, 1, 8]):
        with samples(ids):
            torch.testing.assert_close(call(x), plain(x))
        torch.testing.assert_close(call(x), plain(x))
        assert handles[0].state_dict() == handles[1].state_dict()


def test_numbered_examples_in_compiled_code_warn() -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    address(model, SEED)
    with samples([7, 3]), pytest.warns(UserWarning, match=r"runs as it was written"):
        kept = torch.compile(model, backend="eager")(torch.ones(2, 40)) != 0
    assert (kept.numpy() == keep_mask(call_key(SEED, "0", 0), (8, 40), 0.5)[[7, 3]]).all()


class FunctionFirst(nn.Module):
    """Its forward draws before any part of it has run."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.2) + 2 * self.drop(x)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_functions_before_any_part(fullgraph: bool) -> None:
    model, x = FunctionFirst(), torch.ones(9, 6)
    handle = address(model, SEED)
    found = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)(x)
    handle.load_state_dict(START)
    assert torch.equal(model(x), found)


@pytest.mark.exhaustive
def test_rates_that_come_and_go() -> None:
    model, x = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.3)), torch.ones(9, 6)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    handle = address(model, SEED)
    for p in (0.5, 0.0, 0.1, 0.2, 0.0, 1.0):
        model[0].p = p
        found = compiled(x)
        handle.load_state_dict(START)
        assert torch.equal(model(x), found)
        handle.load_state_dict(START)


def test_a_block_that_was_open_when_the_model_was_addressed() -> None:
    model, x = nn.Sequential(nn.Identity(), nn.Dropout(0.5)), torch.ones(3, 40)
    compiled = torch.compile(model, backend="aot_eager")
    wanted = keep_mask(call_key(SEED, "1", 0), (3, 40), 0.5)
    with samples([2, 1, 0]):
        address(model, SEED)
        with pytest.warns(UserWarning, match=r"runs as it was written"):
            found = compiled(x)
    assert ((found != 0).numpy() == wanted[::-1]).all()
    assert ((compiled(x) != 0).numpy() == wanted).all()


def test_one_graph_has_no_checkpoint_of_a_model() -> None:
    model, x = nn.Sequential(nn.Dropout(0.5)), torch.ones(50)
    compiled = torch.compile(lambda x: checkpoint(model, x, use_reentrant=False), backend="aot_eager", fullgraph=True)
    address(model, SEED)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"checkpointing of an addressed model.*without fullgraph"):
        compiled(x)


def test_branches_that_call_parts_raise() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, self.drop, torch.clone, (x,))

    model = Branching()
    address(model, SEED)
    for call in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        with pytest.raises(
            torch._dynamo.exc.TorchDynamoException, match=r"torch.cond calls a part of an addressed model"
        ):
            call(torch.ones(3))


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
