"""What workers are compared by, from real processes: each call of a site, its state, and values that tell little."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.checkpoint import checkpoint

from dropkit.errors import UnsupportedError
from dropkit.random import call_key, keep_mask
from dropkit.sites import Addressing, Workers, address, samples
from dropkit.sites.addressing.comparison import _is_same
from tests.helpers.processes import together
from tests.sites.test_workers import SEED, Calling, addressed, half, mask_of

pytestmark = pytest.mark.exhaustive  # those of them that are slow: each starts processes of its own

X = torch.arange(1.0, 33, dtype=torch.float64).reshape(4, 8)
Pair = tuple[Tensor, Tensor]


class Shared(nn.Module):
    """One layer of dropout, of some tensors in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [self.drop(x) for x in inputs]


def shared(shards: dict[Any, Any] | None = None) -> Shared:
    model = Shared()
    address(model, SEED, Workers(init_device_mesh("cpu", (2,), mesh_dim_names=("all",)), shards=shards or {}))
    return model


def named_call(call: int) -> Pair:
    """A layer of dropout of a part and of what is the same, in either order."""
    model, inputs = shared({("drop", call): {"all": 1}}), [X, X]
    inputs[call] = half(X, 1)
    found = model(*inputs)
    wanted = [mask_of("drop", 0.5, (4, 8), run=run) for run in range(2)]
    wanted[call] = half(wanted[call], 1)
    return torch.cat(found, 1) != 0, torch.cat(wanted, 1)


def dead_units() -> Pair:
    """In the first batch one worker's part is zero and the other's is not; both go on alike."""
    model = addressed(lambda x: F.dropout(x, 0.5), all=1)
    model(half(X, 1) * dist.get_rank())
    found = [model(half(x, 1)) for x in (X, X + 1)]
    return torch.cat(found) != 0, torch.cat([half(mask_of("#0", 0.5, (4, 8), run=run), 1) for run in (1, 2)])


def dead_at_first(x: Tensor) -> Pair:
    """A tensor of one value, and then one that tells, recomputed in the backward pass both times."""
    model = addressed(lambda x: checkpoint(lambda y: F.dropout(y, 0.5), x, use_reentrant=True), all=1)
    found = []
    for whole in (x, X):
        part = half(whole, 1).clone().requires_grad_()
        model(part).sum().backward()
        found.append(part.grad)
    return torch.cat(found) != 0, torch.cat([half(mask_of("#0", 0.5, (4, 8), run=run), 1) for run in range(2)])


def looked_at_alone() -> Pair:
    """What one worker draws alone counts apart inside of `samples`, and is over after a step of all."""
    model = nn.Sequential(nn.Dropout(0.5))
    handle = address(model, SEED, Workers(init_device_mesh("cpu", (2,), mesh_dim_names=("all",))))
    found = [model(X)]
    if not dist.get_rank():
        with samples(range(4)):
            model(X)
    found.append(model(X))
    if not dist.get_rank():
        model(X)
    handle.step()
    found.append(model(X))
    wanted = [mask_of("0", 0.5, (4, 8), run=run) for run in range(2)]
    return torch.cat(found) != 0, torch.cat([*wanted, torch.from_numpy(keep_mask(call_key(SEED, "0", 1), (4, 8), 0.5))])


def parts_of_a_call(part: Tensor) -> None:
    shared({"drop": {"all": 1}})(part, X)


def after(change: Callable[[Addressing], Any], seed: int = SEED) -> None:
    """Draw after a change on the second worker alone."""
    model = nn.Sequential(nn.Dropout(0.5))
    handle = address(model, seed, Workers(init_device_mesh("cpu", (2,), mesh_dim_names=("all",))))
    if dist.get_rank():
        change(handle)
    model(X)


def _drawn_alone(handle: Addressing) -> None:
    """As if there had been forwards that drew."""
    handle.load_state_dict({**handle.state_dict(), "runs": {"": 3, "0": 3}})


def scores(x: Tensor) -> None:
    """Scores of heads, half of them masked."""
    masked = torch.ones(6, 6, dtype=torch.bool).triu(1)
    addressed(lambda x: F.dropout((x @ x.transpose(-1, -2)).masked_fill(masked, -1e9), 0.5))(x)


HEADS = torch.randn(2, 4, 6, 3, generator=torch.Generator().manual_seed(0))
PROVED: dict[str, tuple[Callable[..., Pair], tuple[Any, ...]]] = {
    "the first call of a layer": (named_call, (0,)),
    "the second call of a layer": (named_call, (1,)),
    "forwards of one worker alone": (looked_at_alone, ()),
    "dead units": (dead_units, ()),
    "ones at first": (dead_at_first, (torch.ones_like(X),)),
}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "the first call": (lambda: shared()(half(X, 1), X), r"different plain tensors at drop, .*\{'drop': \{'all': axis"),
    "the second call": (
        lambda: shared()(X, half(X, 1)),
        r"at call 1 of drop, .*\{\('drop', 1\): \{'all': axis",
    ),
    "all calls": (lambda: parts_of_a_call(half(X, 1)), r"at call 1 of drop, .*\('drop', number of the call\)"),
    "no first call": (lambda: parts_of_a_call(X), r"of a tensor at drop, .* all have the same"),
    "seeds": (lambda: after(lambda _: None, SEED + dist.get_rank()), r"the seed differs: 5, 6\. Give all"),
    "large seeds": (lambda: after(lambda _: None, 2**64 - 1 - dist.get_rank()), rf"seed differs: {2**64 - 1}, "),
    "steps": (lambda: after(lambda handle: handle.step()), r"the step differs: 0, 1\."),
    "counts": (lambda: after(_drawn_alone), r"the number of the call in the step differs: 0, 3\..*sites\.samples"),
    "masked scores": (lambda: scores(half(HEADS, 1)), r"have different plain tensors at #0"),
}


def told(form: str) -> str:
    """Return what a process is told."""
    with pytest.raises(UnsupportedError) as caught:
        REFUSED[form][0]()
    return str(caught.value)


def prove_all() -> dict[str, Any]:
    found = {name: work(*arguments) for name, (work, arguments) in PROVED.items()}
    return found | {form: told(form) for form in REFUSED}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(prove_all, 2, Path(tmp_path_factory.mktemp("pair")))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROVED)
def test_masks_of_calls(pair: list[dict[str, Any]], name: str) -> None:
    for own in pair:
        found, wanted = own[name]
        assert torch.equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("form", REFUSED)
def test_what_both_are_told(pair: list[dict[str, Any]], form: str) -> None:
    for own in pair:
        assert re.search(REFUSED[form][1], own[form])


def columns() -> list[Pair]:
    """Parts along two axes, of which one column of workers has nothing but zeros at first."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
    model = Calling(lambda x: F.dropout(x, 0.5))
    address(model, SEED, Workers(mesh, shards={"#0": {"rows": 0, "columns": 1}}))
    row, column = (mesh.get_local_rank(name) for name in ("rows", "columns"))
    found = []
    for run, whole in enumerate((X * torch.tensor([1.0, 0.0]).repeat_interleave(4), X, X)):
        mask = mask_of("#0", 0.5, (4, 8), run=run)
        part, wanted = (each.chunk(2)[row].chunk(2, 1)[column] for each in (whole, mask))
        found.append(((model(part) != 0) | (part == 0), wanted | (part == 0)))
    return found


def told_in_a_column() -> str:
    """What is wrong in one column alone, all four are told."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
    model = Calling(lambda x: F.dropout(x, 0.5))
    address(model, SEED, Workers(mesh, shards={"#0": {"columns": 1}}))
    part = X.chunk(2, 1)[mesh.get_local_rank("columns")]
    with pytest.raises(UnsupportedError) as caught:
        model(part + (dist.get_rank() == 3))
    return str(caught.value)


def four() -> tuple[list[Pair], str]:
    return columns(), told_in_a_column()


@pytest.mark.slow
def test_all_workers_decide_alike(tmp_path: Path) -> None:
    for found, message in together(four, 4, tmp_path):
        assert all(torch.equal(*each) for each in found)
        assert re.search(r"along 'rows' have different plain tensors at #0", message)


def wide(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


NOISE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float64: 1e-14}


@pytest.mark.parametrize("dtype", NOISE)
def test_rounding_is_no_difference(dtype: torch.dtype) -> None:
    x, noise = wide(64), wide(3, 64) * NOISE[dtype]
    assert _is_same((x * (1 + noise)).double(), dtype)
    assert not _is_same((x + wide(3, 64) * x.std()).double(), dtype)


@pytest.mark.parametrize("outlier", [-1e9, 1e30, float("inf"), float("-inf"), float("nan"), 0.0])
def test_values_that_are_equal_say_nothing(outlier: float) -> None:
    """However large they are, and however many."""
    parts = wide(2, 64)
    parts[:, :60] = outlier
    assert not _is_same(parts, torch.float32)
    assert _is_same(parts[:1].repeat(2, 1), torch.float32)


def test_groups_are_told_apart() -> None:
    x = wide(64).expand(2, 2, 64).clone()
    x[1, 1] += 1
    assert _is_same(x, torch.float32).tolist() == [True, False]
