"""Many workers of every model of the zoo: one of two processes, the other of which is not there."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from dropkit.errors import UnsupportedError
from dropkit.random import call_key, keep_mask
from dropkit.sites import Workers, address, record, samples
from tests.sites.test_samples import REFUSED, SEED, SKIPPED, chosen, eval_norms
from tests.sites.zoo import CASES, Model, tensors

pytestmark = pytest.mark.exhaustive  # those of them that are slow: each starts processes of its own

WRAPPED = {"ddp", "fsdp"}  # which have processes of their own


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """A mesh of two, of which this is the second."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield init_device_mesh("cpu", (2,), mesh_dim_names=("data",))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "model", [case for case in CASES if case.values[0].name not in SKIPPED | WRAPPED | set(REFUSED)]
)
def test_the_second_worker_of_all_models(mesh: DeviceMesh, model: Model) -> None:
    """It has the second example of the batch."""
    network, inputs = eval_norms(model.build()), model.inputs()
    batch = len(next(tensors(inputs)))
    handle = address(network, SEED)
    with samples(range(batch)):
        whole = next(tensors(network(*inputs)))
    handle.close()
    address(network, SEED, Workers(mesh, "data"))
    part = next(tensors(network(*chosen(inputs, [1], batch))))
    torch.testing.assert_close(part, whole[[1]], rtol=1e-4, atol=1e-5)


def test_what_is_not_declared_warns_once(mesh: DeviceMesh) -> None:
    model, x = nn.Sequential(nn.Dropout(0.5)), torch.ones(2, 3)
    address(model, SEED)
    with samples([0, 1]):
        model(x)
    with pytest.warns(UserWarning, match=r"one of 2 processes.*workers=.*samples"):
        model(x)
    model(x)
    address(other := nn.Sequential(nn.Dropout(0.5)).eval(), SEED)
    other(x)


def test_tensors_that_are_not_declared(mesh: DeviceMesh) -> None:
    """A DTensor has a mask of its own in a model alone whose workers are known."""
    model, x = nn.Sequential(nn.Dropout(0.5)), DTensor.from_local(torch.ones(2, 4), mesh, [Shard(1)])
    with pytest.raises(UnsupportedError, match=r"of a DTensor.*workers"), record(model):
        model(x)
    address(model, SEED)
    with pytest.warns(UserWarning, match=r"one of 2"), pytest.raises(UnsupportedError, match=r"of a DTensor.*workers"):
        model(x)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_run_as_they_were_written(mesh: DeviceMesh, backend: str) -> None:
    torch.compiler.reset()
    model, x = nn.Sequential(nn.Dropout(0.5)), torch.ones(2, 40)
    address(model, SEED, Workers(mesh, "data"))
    with pytest.warns(UserWarning, match=r"runs as it was written"):
        kept = torch.compile(model, backend=backend)(x) != 0
    assert (kept.numpy() == keep_mask(call_key(SEED, "0", 0), (4, 40), 0.5)[2:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["in place", "fullgraph", "wrapped"])
def test_compiled_parts_run_as_they_were_written(mesh: DeviceMesh, way: str) -> None:
    torch.compiler.reset()
    model, x = nn.Sequential(nn.Sequential(nn.Dropout(0.5))), torch.ones(2, 40)
    if way == "wrapped":
        model[0] = torch.compile(model[0], backend="eager")
    else:
        model[0].compile(backend="eager", fullgraph=way == "fullgraph")
    address(model, SEED, Workers(mesh, "data"))
    with pytest.warns(UserWarning, match=r"runs as it was written") as told:
        kept = model(x) != 0
    model(x)
    assert [each.filename for each in told] == [__file__]
    assert (kept.numpy() == keep_mask(call_key(SEED, "0.0", 0), (4, 40), 0.5)[2:]).all()
