"""Inputs of many workers, from real processes: nested tensors, DTensors, parts of a batch, and dataclasses."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.random import call_key, keep_mask
from dropkit.sites import Workers, address, samples
from tests.helpers.processes import together

pytestmark = pytest.mark.exhaustive  # those of them that are slow: each starts processes of its own

SEED = 5
LENGTHS = [2, 3, 1, 2]
Pair = tuple[Tensor, Tensor]


def model_of(*shape: int, names: tuple[str, ...] = ("data", "tensor"), **said: Any) -> nn.Module:
    """One layer of dropout of the workers of a mesh."""
    model = nn.Dropout(0.5)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names[: len(shape)])
    address(model, SEED, Workers(mesh, **said))
    return model


def mask_of(*shape: int) -> Tensor:
    return torch.from_numpy(keep_mask(call_key(SEED, "", 0), shape, 0.5))


def nested(layout: torch.layout, numbers: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(length, 8, generator=generator) + 1 for length in LENGTHS]
    return torch.nested.nested_tensor([parts[number] for number in numbers], layout=layout)


def nested_examples(layout: torch.layout, form: str) -> Pair:
    """Of the same examples, of a worker's own, and of numbered ones; by the masks of a plain process."""
    whole = nn.Dropout(0.5)
    address(whole, SEED)
    wanted = [each != 0 for each in whole(nested(layout, [0, 1, 2, 3])).unbind()]
    numbers = [0, 1, 2, 3] if form == "same" else [[0, 1], [2, 3]][dist.get_rank()]
    model = model_of(2, examples=() if form == "same" else "data")
    if form == "numbered":
        numbers = [numbers[1]]
        with samples(numbers):
            found = model(nested(layout, numbers))
    else:
        found = model(nested(layout, numbers))
    return torch.cat([each != 0 for each in found.unbind()]), torch.cat([wanted[number] for number in numbers])


@dataclass
class Batch:
    """Inputs that PyTorch knows no way into."""

    length: int
    x: Tensor


class Local(nn.Module):
    """Drops from what a worker has itself."""

    def __init__(self, call: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.drop, self.call = nn.Dropout(0.5), call

    def forward(self, x: Any) -> Tensor:
        return self.drop(self.call(x))


def local(call: Callable[[Any], Tensor], workers: Workers) -> Local:
    model = Local(call)
    address(model, SEED, workers)
    return model


def rows_of(first: int, length: int, rows: int) -> Tensor:
    return torch.from_numpy(keep_mask(call_key(SEED, "drop", 0), (rows, 8), 0.5))[first : first + length]


def uneven(rows: int, form: str) -> Pair:
    """The part of a DTensor, which may be nothing, whose mesh may have another name, or none, for its workers."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data",))
    other = {"": mesh, "unnamed": init_device_mesh("cpu", (2,)), "same": mesh}[form]
    whole = distribute_tensor(torch.ones(rows, 8), other, [Replicate() if form == "same" else Shard(0)])
    found = local(lambda x: x.to_local(), Workers(mesh, "data"))(whole) != 0
    first = 0 if form == "same" else min(rows, (rows + 1) // 2 * dist.get_rank())
    return found, rows_of(first, rows if form == "same" else len(whole.to_local()), rows)


def spread_over_others() -> Pair:
    """Examples that workers who have the same ones have parts of, as a DTensor."""
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
    whole = distribute_tensor(torch.ones(5, 8), mesh["tensor"], [Shard(0)])
    return local(lambda x: x, Workers(mesh, "data"))(whole).full_tensor() != 0, rows_of(0, 5, 5)


def numbered(ids: list[int]) -> Pair:
    """A DTensor is spread over workers: its numbers are those of all of it."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data",))
    model, x = local(lambda x: x, Workers(mesh, "data")), distribute_tensor(torch.ones(4, 8), mesh, [Shard(0)])
    with samples(ids):
        return model(x).full_tensor() != 0, rows_of(0, 10, 10)[ids]


def parts_of_examples(shape: int) -> Pair:
    """The same of plain tensors: the forward is given all of them."""
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
    workers, x = Workers(mesh, "data", shards={"drop": {"tensor": 0}}), torch.arange(1.0, 33).reshape(4, 8)
    model = local(lambda x: x[-2:] if dist.get_rank() and len(x) > 2 else x[:2], workers)
    return model(x[:shape] + dist.get_rank() * (shape == 2)) != 0, rows_of(2 * dist.get_rank(), 2, 4)


def in_a_dataclass() -> Pair:
    mesh, rank = init_device_mesh("cpu", (2,), mesh_dim_names=("data",)), dist.get_rank()
    return local(lambda x: x.x, Workers(mesh, "data"))(Batch(3, torch.ones(3, 8))) != 0, rows_of(3 * rank, 3, 6)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "different nested tensors": (
        lambda: model_of(2)(nested(torch.jagged, [[0, 1], [3, 1]][dist.get_rank()])),
        r"have different plain tensors at the model, where this one has shape \(2, 40\)",
    ),
    "parts of nested tensors": (
        lambda: model_of(2, shards={"": {"data": 1}})(nested(torch.jagged, [[0, 1], [3, 1]][dist.get_rank()])),
        r"the model drops from a nested tensor: workers have no parts of it but of examples",
    ),
    "numbers of a part of a DTensor": (
        lambda: numbered([dist.get_rank(), 5]),
        r"have parts of 4 in all at a site, and there are 2 numbers",
    ),
    "parts of examples as inputs": (
        lambda: parts_of_examples(2),
        r"have parts of 4 in all at a site, and axis 0 of the first input, of shape \(2, 8\), has 2\. .*examples=",
    ),
}
NESTED = [(layout, form) for layout in (torch.jagged, torch.strided) for form in ("same", "own", "numbered")]
PROVED: dict[str, tuple[Callable[..., Pair], tuple[Any, ...]]] = {
    **{f"nested {layout} of {form} examples": (nested_examples, (layout, form)) for layout, form in NESTED},
    **{f"{rows} rows of a DTensor {form}": (uneven, (rows, form)) for rows in (1, 4, 5) for form in ("", "same")},
    "a DTensor of a mesh without names": (uneven, (5, "unnamed")),
    "a DTensor of examples that others share": (spread_over_others, ()),
    "a numbered DTensor": (numbered, ([7, 2, 3, 9],)),
    "parts of examples": (parts_of_examples, (4,)),
    "a dataclass": (in_a_dataclass, ()),
}


def told(form: str) -> str:
    with pytest.raises((ArgumentError, UnsupportedError)) as caught:
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
def test_masks(pair: list[dict[str, Any]], name: str) -> None:
    for own in pair:
        found, wanted = own[name]
        assert torch.equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("form", REFUSED)
def test_what_both_are_told(pair: list[dict[str, Any]], form: str) -> None:
    for own in pair:
        assert re.search(REFUSED[form][1], own[form])
