"""Finding sites in models of every make: TorchScript, exported, compiled, wrapped, addressed, switched."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.optim.swa_utils import AveragedModel

from dropkit.sites import Sites, accelerate, address, find, switch
from dropkit.uncertainty import mc
from tests.sites import networks
from tests.sites.zoo import MODELS, Expected, facts


def scripted_function(x: Tensor, training: bool) -> Tensor:
    return torch.dropout(x, 0.25, training)


class CallsScript(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.function = networks.scripted(scripted_function)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(F.dropout(x, 0.1, self.training), self.training)


@pytest.mark.parametrize("warm", [0, 1, 2])
def test_torchscript_is_found_whatever_program_it_has_compiled(warm: int) -> None:
    model = MODELS["scripted"].build()
    for _ in range(warm):
        model(*MODELS["scripted"].inputs())
    assert [facts(site) for site in find(model, *MODELS["scripted"].inputs())] == [
        facts(site) for site in MODELS["scripted"].sites
    ]
    assert [facts(site) for site in find(model.part, *MODELS["scripted"].inputs())] == [
        facts(Expected("~0", "dropout", 0.3, is_rewritable=False))
    ]


def test_functions_of_torchscript_are_found() -> None:
    assert [facts(site) for site in find(CallsScript(), torch.ones(5))] == [
        facts(Expected("#0", "dropout", 0.1)),
        facts(Expected("~0", "dropout", 0.25, is_rewritable=False)),
    ]


def test_exported_programs_are_found() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3))
    exported = torch.export.export(model, (torch.ones(2, 4),)).module()
    [site] = find(exported, torch.ones(2, 4))
    assert (site.kind, site.p, site.in_train, site.in_eval) == ("dropout", 0.3, True, True)


@pytest.mark.parametrize("compile_before", [True, False])
def test_compiled_models_are_seen_through(compile_before: bool) -> None:
    torch._dynamo.reset()
    model, x = nn.Sequential(networks.mlp(), networks.Ungated()), torch.randn(6, 8)
    model[1].layer = nn.Linear(3, 8)
    model[0].compile(backend="eager")
    compiled = torch.compile(model, backend="eager")
    if compile_before:
        compiled(x)
    assert [(site.name, site.in_eval) for site in find(compiled, x)] == [("0.3", False), ("1#0", True)]
    torch._dynamo.reset()


def test_wrappers_leave_no_trace_in_names() -> None:
    wrapped = nn.DataParallel(networks.mlp()) if not torch.cuda.is_available() else networks.mlp()
    assert [site.name for site in find(wrapped, torch.randn(6, 8))] == ["3"]


def test_an_average_of_weights_has_the_names_and_masks_of_its_model() -> None:
    """Which the wrapper of moving averages keeps as `module`."""
    model, x = networks.mlp(), torch.randn(6, 8)
    average = AveragedModel(model)
    assert [site.name for site in find(average, x)] == ["3"]
    address(model, seed=3)
    address(average, seed=3)
    assert torch.equal(average(x), model(x))
    average.update_parameters(model)
    with switch(average.eval(), "on"):
        assert not torch.equal(average(x), model.eval()(x))
    assert torch.equal(average(x), model(x))


class SummedAverage(AveragedModel):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sum(-1)


def test_an_average_with_a_forward_of_its_own_is_no_wrapper() -> None:
    average, x = SummedAverage(networks.mlp()), torch.randn(6, 8)
    assert [site.name for site in find(average, x)] == ["module.3"]
    assert mc(average, 2, seed=0)(x).mean.shape == (6,)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_models_of_many_workers_have_the_names_of_one() -> None:
    x = torch.randn(6, 8)
    assert [site.name for site in find(nn.parallel.DistributedDataParallel(networks.mlp()), x)] == ["3"]
    sharded, mesh = networks.mlp(), init_device_mesh("cpu", (1,))
    for part in (sharded[0], sharded):
        fully_shard(part, mesh=mesh)
    assert [site.name for site in find(sharded, x)] == ["3"]
    wrapped = nn.Sequential(checkpoint_wrapper(networks.Block()), networks.Block())
    assert [site.name for site in find(wrapped, x)] == ["0.drop", "1.drop"]


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
@pytest.mark.parametrize("use_orig_params", [True, False])
def test_models_in_older_wrappers_that_shard_go_on_training(use_orig_params: bool) -> None:
    options = {"use_orig_params": use_orig_params, "device_id": torch.device("cpu")}
    part = FullyShardedDataParallel(networks.mlp(), **options)
    model, x = FullyShardedDataParallel(nn.Sequential(nn.Linear(8, 8), part), **options), torch.randn(6, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        assert [site.name for site in find(model, x)] == ["1.3"]
        with switch(model, "off") as handle:
            handle.learn(x)
            assert torch.equal(model(x), model(x))
        model(x).sum().backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_have_shapes_with_ragged_axes(layout: torch.layout) -> None:
    x = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)], layout=layout)
    [site] = find(nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5)), x)
    assert site.shape == (2, -1, 4)
    assert "2x?x4" in str(Sites([site]))


def test_an_addressed_model_goes_on_as_if_it_had_not_been_searched() -> None:
    model, x = networks.mlp(), torch.randn(6, 8)
    handle = address(model, seed=3)
    model(x)
    before = handle.state_dict()
    assert [facts(site) for site in find(model, x)] == [facts(site) for site in MODELS["mlp"].sites]
    assert handle.state_dict() == before
    handle.close()


@pytest.mark.parametrize(("mode", "in_train", "in_eval"), [("on", True, True), ("auto", True, False)])
@pytest.mark.parametrize("name", ["mlp", "sdpa", "encoder"])
def test_a_switched_model_has_the_sites_that_the_switch_leaves(
    name: str, mode: str, in_train: bool, in_eval: bool
) -> None:
    model, inputs = MODELS[name].build(), MODELS[name].inputs()
    names = [site.name for site in find(model, *inputs)]
    with switch(model, mode):
        found = find(model, *inputs)
    assert [(site.name, site.in_train, site.in_eval) for site in found] == [(each, in_train, in_eval) for each in names]


@pytest.mark.parametrize("name", ["mlp", "sdpa", "encoder"])
def test_a_model_that_is_switched_off_has_no_sites(name: str) -> None:
    model, inputs = MODELS[name].build(), MODELS[name].inputs()
    with switch(model, "off"):
        assert find(model, *inputs) == []


def test_an_accelerated_model_has_the_same_sites() -> None:
    model, inputs = MODELS["encoder"].build(), MODELS["encoder"].inputs()
    plain = find(model, *inputs)
    with accelerate(model):
        assert find(model, *inputs) == plain
