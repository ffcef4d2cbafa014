"""Declarations of many workers that cannot be meant: one of two processes, the other of which is not there."""

import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from dropkit.sites import Workers, address, samples, switch

SEED = 5


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """A mesh of two, of which this is the second."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
    dist.destroy_process_group()


class ByHand(nn.Module):
    """A mask by hand, of a part of a hidden layer, and a layer of dropout that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        y: Tensor = self.drop(self.drop(x * (torch.rand_like(x) > 0.5)))
        return y


@pytest.mark.parametrize("pattern", ["~7", "#0", "drop#1", ("drop", 2), ("~0", 1)])
def test_patterns_that_no_call_matches(mesh: DeviceMesh, pattern: str | tuple[str, int]) -> None:
    """They could be of this model, and are told once it is known what draws."""
    model, x = ByHand().eval(), torch.ones(2, 8)
    address(model, SEED, Workers(mesh["data"], "data", shards={pattern: {"data": 0}}))
    model(x)
    model(x)
    model.train()(x)
    with pytest.warns(UserWarning, match=r"first forward\. It drew at '~0', 'drop'; `dropkit.sites.find`") as told:
        model(x)
    model(x)
    assert repr(pattern) in str(told[0].message)
    assert told[0].filename == __file__


@pytest.mark.parametrize("pattern", ["~0", "*", "dr?p", ("drop", 1), ("*", 0)])
def test_patterns_that_a_call_matches(mesh: DeviceMesh, pattern: str | tuple[str, int]) -> None:
    model, x = ByHand(), torch.ones(2, 8)
    address(model, SEED, Workers(mesh["data"], "data", shards={pattern: {"data": 0}}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            model(x)


@pytest.mark.parametrize("is_spread", [False, True])
@pytest.mark.parametrize("is_whole", [False, True])
def test_meshes_that_leave_workers_out(mesh: DeviceMesh, is_spread: bool, is_whole: bool) -> None:
    """Workers along "tensor" have parts of parameters, so they may have parts of activations."""
    model = nn.Sequential(nn.Linear(8, 8))
    weight = distribute_tensor(model[0].weight.data, mesh["tensor"], [Shard(0) if is_spread else Replicate()])
    model[0].weight = nn.Parameter(weight)
    bias = distribute_tensor(torch.zeros(8), mesh["tensor"], [Replicate()])
    model[0].bias = nn.Parameter(bias)
    address(model, SEED, Workers(mesh if is_whole else mesh["data"], "data"))
    x = distribute_tensor(torch.ones(2, 8), mesh["tensor"], [Replicate()])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model(x)
        model(x)
    found = [each for each in told if "mesh of `workers` leaves out" in str(each.message)]
    assert len(found) == (is_spread and not is_whole)
    assert all(each.filename == __file__ for each in found)


def test_draws_in_evaluation_warn_once(mesh: DeviceMesh) -> None:
    """For another worker may not make them; inside of `samples` they do not count."""
    model, x = nn.Sequential(nn.Dropout(0.5)), torch.ones(2, 8)
    address(model, SEED, Workers(mesh["tensor"], "tensor"))
    model(x)
    model.eval()(x)
    with switch(model, "on"):
        with samples([0, 1]):
            model(x)
        with pytest.warns(UserWarning, match=r"evaluation mode draws.*until the next step.*sites\.samples") as told:
            model(x)
        model(x)
    assert told[0].filename == __file__


def test_draws_in_evaluation_of_one_worker(mesh: DeviceMesh) -> None:
    model = nn.Sequential(nn.Dropout(0.5)).eval()
    address(model, SEED, Workers(mesh["data"], "data"))
    with switch(model, "on"):
        model(torch.ones(2, 8))
