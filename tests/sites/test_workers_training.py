"""Networks that 1, 2 and 4 real processes train: the losses and the masks of one process."""

from pathlib import Path

import pytest
import torch

from tests.helpers.processes import together
from tests.sites.trained import DROPPED, STEPS, Run, parts, train, train_all

DATA = [(kind, way) for way in ("ddp", "fsdp") for kind in ("mlp", "cnn", "transformer")]
TENSOR = [(kind, way) for way in ("tensor", "dtensor") for kind in ("mlp", "transformer")] + [
    ("transformer", "sequence")
]
JOBS = {
    1: [("transformer", "ddp"), ("cnn", "fsdp")],
    2: [*DATA, ("transformer", "checkpointed"), ("mlp", "accumulated"), *TENSOR],
    4: [
        ("mlp", "hybrid"),
        ("cnn", "accumulated"),
        ("transformer", "checkpointed"),
        ("transformer", "tensor"),
        TENSOR[-1],
    ],
}
pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]  # each starts processes of its own


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, bool], Run]:
    """The runs of one process, by the network and whether gradients are accumulated."""
    wanted = {(kind, way == "accumulated") for jobs in JOBS.values() for kind, way in jobs}
    return {(kind, flag): train(kind, "accumulated" if flag else "") for kind, flag in wanted}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[tuple[str, str], Run]]]:
    return {count: together(train_all, count, tmp_path_factory.mktemp("workers"), jobs) for count, jobs in JOBS.items()}


@pytest.mark.parametrize(("count", "kind", "way"), [(count, *job) for count, jobs in JOBS.items() for job in jobs])
def test_losses_and_masks(
    count: int,
    kind: str,
    way: str,
    alone: dict[tuple[str, bool], Run],
    shared: dict[int, list[dict[tuple[str, str], Run]]],
) -> None:
    """In float64: losses over 50 steps but for the order of sums, masks of the first and the last step bit for bit."""
    runs, single = [each[kind, way] for each in shared[count]], alone[kind, way == "accumulated"]
    assert len(single.losses) == STEPS
    assert len(single.masks) == 2 * DROPPED[kind] * (1 + (way == "accumulated"))
    shards = 0
    for run in runs:
        torch.testing.assert_close(run.losses, single.losses, rtol=1e-12, atol=1e-14)
        assert run.masks.keys() == single.masks.keys()
        for name, mask, part, is_shard in parts(run, single.masks):
            assert torch.equal(mask, part), name
            shards += is_shard
    assert bool(shards) == (count > 1 and (kind, way) in TENSOR)


def test_going_on_with_another_number_of_workers(alone: dict[tuple[str, bool], Run], tmp_path: Path) -> None:
    """One process, then two, then four; each goes on from what the last one saved."""
    whole, saved = alone["transformer", False], ""
    for count, steps in ((1, range(10)), (2, range(10, 30)), (4, range(30, STEPS))):
        arguments = ("transformer", "ddp", steps, saved, to_save := str(tmp_path / f"{count}.saved"))
        folder = tmp_path / str(count)
        folder.mkdir()
        runs = [train(*arguments)] if count == 1 else together(train, count, folder, *arguments)
        for run in runs:
            torch.testing.assert_close(run.losses, whole.losses[steps.start : steps.stop], rtol=1e-12, atol=1e-14)
        saved = to_save
    for run in runs:
        run.masks = {name: mask for name, mask in run.masks.items() if name[0] == STEPS - 1}
        assert len(run.masks) == DROPPED["transformer"]
        assert all(torch.equal(mask, part) for _, mask, part, _ in parts(run, whole.masks))
