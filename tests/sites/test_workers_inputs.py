"""Inputs of many workers, from real processes: nested tensors."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from dropkit.errors import UnsupportedError
from dropkit.random import call_key, keep_mask
from dropkit.sites import Workers, address, samples
from tests.helpers.processes import together

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


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "different nested tensors": (
        lambda: model_of(2)(nested(torch.jagged, [[0, 1], [3, 1]][dist.get_rank()])),
        r"have different plain tensors at the model, where this one has shape \(2, 40\)",
    ),
    "parts of nested tensors": (
        lambda: model_of(2, shards={"": {"data": 1}})(nested(torch.jagged, [[0, 1], [3, 1]][dist.get_rank()])),
        r"the model drops from a nested tensor: workers have no parts of it but of examples",
    ),
}
PROVED: dict[str, tuple[Callable[..., Pair], tuple[Any, ...]]] = {
    f"nested {layout} of {form} examples": (nested_examples, (layout, form))
    for layout in (torch.jagged, torch.strided)
    for form in ("same", "own", "numbered")
}


def told(form: str) -> str:
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
def test_masks(pair: list[dict[str, Any]], name: str) -> None:
    for own in pair:
        found, wanted = own[name]
        assert torch.equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("form", REFUSED)
def test_what_both_are_told(pair: list[dict[str, Any]], form: str) -> None:
    for own in pair:
        assert re.search(REFUSED[form][1], own[form])
