"""States of addressed models in distributed checkpoints, from two real processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from dropkit.sites import Addressing, Workers, address
from tests.helpers.processes import together

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what PyTorch's checkpoints warn of
X = torch.ones(2, 40)


def made() -> tuple[nn.Module, Addressing]:
    model = nn.Sequential(nn.Dropout(0.5))
    return model, address(model, 3, Workers(init_device_mesh("cpu", (2,), mesh_dim_names=("data",)), "data"))


def go_on(folder: str, before: int, after: int) -> tuple[Tensor, Tensor, Any]:
    """Save after some micro-batches of a step, and load into a model that has had others."""
    (model, handle), (again, loaded) = made(), made()
    for _ in range(before):
        model(X)
    for _ in range(after):
        again(X)
    dcp.save({"masks": handle}, checkpoint_id=folder)
    dcp.load({"masks": loaded}, checkpoint_id=folder)
    return model(X), again(X), loaded.state_dict()


def all_cases(folder: str) -> list[tuple[Tensor, Tensor, Any]]:
    return [go_on(f"{folder}/{before}{after}", before, after) for before, after in ((2, 0), (0, 2), (1, 3))]


def test_distributed_checkpoints_in_the_middle_of_a_step(tmp_path: Path) -> None:
    for found in together(all_cases, 2, tmp_path, str(tmp_path)):
        for own, other, state in found:
            assert torch.equal(own, other)
            assert len({count for _, count in state["runs"]}) == 1
        assert [dict(state["runs"])["0"] for *_, state in found] == [3, 1, 2]
