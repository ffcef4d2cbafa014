"""What a worker has: the masks of its part of every kind of call, from two real processes, and wrong declarations."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.utils.checkpoint import checkpoint

import dropkit
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.random import call_key, keep_mask
from dropkit.sites import Workers, address, record, samples
from dropkit.sites.samples import Numbers, set_current
from tests.helpers.processes import together

SEED = 5
WHOLE = torch.arange(1.0, 4 * 5 * 6 * 8 + 1, dtype=torch.float64).reshape(4, 5, 6, 8)


class Calling(nn.Module):
    """A network that does one thing."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: Any) -> Any:
        return self.call(*inputs)


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """A mesh of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "tensor"))
    dist.destroy_process_group()


WRONG: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "no mesh": (ArgumentTypeError, r"`mesh` must be .*DeviceMesh", {"mesh": 2}),
    "no name of the mesh": (ArgumentError, r"among the mesh's names data, tensor, got 'batch'", {"examples": "batch"}),
    "no names": (ArgumentTypeError, r"`examples` must be a name", {"examples": 3}),
    "a name twice": (ArgumentError, r"each is there once", {"examples": ("data", "data")}),
    "no text": (ArgumentTypeError, r"`examples` must be a name", {"examples": ("data", 3)}),
    "no axis": (ArgumentError, r"`dim` must be", {"dim": 64}),
    "a float": (ArgumentTypeError, r"`dim` must be", {"dim": 1.0}),
    "a list": (ArgumentTypeError, r"`shards` must be a mapping", {"shards": ["a"]}),
    "no mapping of axes": (ArgumentTypeError, r"`shards` must be a mapping", {"shards": {"a": 1}}),
    "a pattern that is no text": (ArgumentTypeError, r"`shards` must be a mapping", {"shards": {1: {"tensor": 1}}}),
    "a call that is no number": (ArgumentTypeError, r"`shards` must be a mapping", {"shards": {("a", "b"): {}}}),
    "a call before the first": (ArgumentTypeError, r"`shards` must be a mapping", {"shards": {("a", -1): {}}}),
    "another name": (ArgumentError, r"among the mesh's names", {"shards": {"a": {"model": 1}}}),
    "no axis of a shard": (ArgumentTypeError, r"shards\['a'\]\['tensor'\]", {"shards": {"a": {"tensor": None}}}),
    "a name that is a number": (ArgumentError, r"among the mesh's names", {"shards": {"a": {0: 1}}}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(mesh: DeviceMesh, wrong: str) -> None:
    error, message, changed = WRONG[wrong]
    with pytest.raises(error, match=message):
        Workers(**{"mesh": mesh, "examples": "data", **changed})


def test_meshes_without_names(mesh: DeviceMesh) -> None:
    with pytest.raises(ArgumentError, match=r"whose dimensions have names"):
        Workers(init_device_mesh("cpu", (1,)))


def test_what_address_refuses(mesh: DeviceMesh) -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    with pytest.raises(ArgumentTypeError, match=r"`workers` must be dropkit.sites.Workers"):
        address(model, SEED, mesh)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ArgumentTypeError, match=r"`seed` must be an integer; workers go by their name"):
        address(model, Workers(mesh))  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ArgumentError, match=r"each of its patterns matches"):
        address(model, SEED, Workers(mesh, "data", shards={"drop": {"tensor": 1}}))
    with pytest.raises(ArgumentError, match=r"each of its patterns matches"):
        address(model, SEED, Workers(mesh, "data", shards={("drop", 1): {"tensor": 1}}))
    handle = address(model, SEED, Workers(mesh, "data", shards={"0": {"tensor": 7}}))
    with pytest.raises(ArgumentError, match=r"axis 7 of a tensor of shape \(2, 3\)"):
        model(torch.ones(2, 3))
    handle.close()


@pytest.mark.parametrize("dim", [0, 1])
def test_one_worker_draws_as_one_process(mesh: DeviceMesh, dim: int) -> None:
    model, x = nn.Sequential(nn.Dropout(0.5)), torch.ones(4, 5, 3)
    handle = address(model, SEED)
    wanted = model(x)
    handle.close()
    handle = address(model, SEED, Workers(mesh, "data", dim))
    assert torch.equal(model(x), wanted)
    handle.close()


def test_workers_have_no_parts_of_passes(mesh: DeviceMesh) -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    handle = address(model, SEED, Workers(mesh, "data"))
    numbers = Numbers(((0, 4),), 0, streams=(1,))
    with set_current(numbers), pytest.raises(UnsupportedError, match="no parts of Monte Carlo passes"):
        model(torch.ones(4, 3))
    handle.close()


def test_forwards_whose_examples_cannot_be_told(mesh: DeviceMesh) -> None:
    model = Calling(lambda *_: F.dropout(torch.ones(2, 3), 0.5))
    address(model, SEED, Workers(mesh, "data"))
    with pytest.raises(ArgumentError, match=r"given no tensor with an axis 0 of examples.*samples"):
        model(None)
    rule = r"^address: .* length 2, and axis 0 of the first input, of shape \(4,\), has 4.*shards=\{'#0': \{dim"
    with pytest.raises(ArgumentError, match=rule):
        model(torch.ones(4))
    with samples([7, 3]):
        assert model(None).shape == (2, 3)


# What two processes do, which have the parts of a tensor along an axis. Each returns what it got, and what it ought to.


def mask_of(name: str, p: float, shape: tuple[int, ...], shared: tuple[int, ...] = (), run: int = 0) -> Tensor:
    return torch.from_numpy(np.asarray(keep_mask(call_key(SEED, name, 0, run), shape, p, broadcast_dims=shared)))


def half(tensor: Tensor, axis: int) -> Tensor:
    return tensor.tensor_split(2, axis)[dist.get_rank()]


def addressed(call: Callable[..., Any], examples: str = "", dim: int = 0, **shards: Any) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("all",))
    model = Calling(call)
    address(model, SEED, Workers(mesh, examples or (), dim, {"#0": shards} if shards else {}))
    return model


def distributed(whole: Tensor, placement: Any) -> DTensor:
    return distribute_tensor(whole, init_device_mesh("cpu", (2,), mesh_dim_names=("all",)), [placement])


def plain_shard(axis: int) -> tuple[Tensor, Tensor]:
    found = addressed(lambda x: F.dropout(x, 0.5), all=axis)(half(WHOLE, axis))
    return found != 0, half(mask_of("#0", 0.5, WHOLE.shape), axis)


def tensor_shard(axis: int) -> tuple[Tensor, Tensor]:
    """Also of axes that are not as long in both."""
    found = addressed(lambda x: F.dropout(x, 0.5))(distributed(WHOLE, Shard(axis)))
    assert found.placements == (Shard(axis),)
    return found.full_tensor() != 0, mask_of("#0", 0.5, WHOLE.shape)


def tensor_partial() -> tuple[Tensor, Tensor]:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("all",))
    x = DTensor.from_local(WHOLE * (dist.get_rank() + 1), mesh, [Partial()])
    found = addressed(lambda x: F.dropout(x, 0.5))(x).full_tensor()
    return found, 2 * 3 * WHOLE * mask_of("#0", 0.5, WHOLE.shape)


def tensor_in_place() -> tuple[Tensor, Tensor]:
    x = distributed(WHOLE, Shard(2))
    found = addressed(lambda x: F.dropout(x, 0.5, inplace=True))(x)
    assert found is x
    return x.full_tensor() != 0, mask_of("#0", 0.5, WHOLE.shape)


def tensor_maps(axis: int) -> tuple[Tensor, Tensor]:
    """Also where the axis that is shared out shares its draws."""
    found = addressed(lambda x: F.dropout2d(x, 0.5))(distributed(WHOLE, Shard(axis))).full_tensor()
    return found != 0, mask_of("#0", 0.5, WHOLE.shape, (2, 3)).expand(WHOLE.shape)


def tensor_native() -> tuple[Tensor, Tensor]:
    found, mask = addressed(lambda x: torch.native_dropout(x, 0.5, True))(distributed(WHOLE, Shard(3)))
    assert torch.equal(found.full_tensor() != 0, mask.full_tensor())
    return mask.full_tensor(), mask_of("#0", 0.5, WHOLE.shape)


def tensor_recorded() -> tuple[Tensor, Tensor]:
    model = addressed(lambda x: F.dropout(x, 0.5))
    with record(model) as masks:
        model(distributed(WHOLE, Shard(1)))
    return masks["#0", 0].full_tensor(), mask_of("#0", 0.5, WHOLE.shape)


def attention(placement: Any, form: str) -> tuple[Tensor, Tensor]:
    """Weights are those of the identity's rows, so that the output is the mask."""
    query, eye = torch.zeros(2, 4, 6, 3, dtype=torch.float64), torch.eye(6, dtype=torch.float64).expand(2, 4, 6, 6)
    bias = None if form == "" else torch.zeros((6, 6) if form == "small" else (2, 4, 6, 6), dtype=torch.float64)
    model = addressed(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=0.5))
    found = model(*(distributed(x.contiguous(), placement) for x in (query, query, eye))).full_tensor()
    return found != 0, mask_of("#0", 0.5, (2, 4, 6, 6))


def plain_heads() -> tuple[Tensor, Tensor]:
    query, eye = torch.zeros(2, 2, 6, 3, dtype=torch.float64), torch.eye(6, dtype=torch.float64).expand(2, 2, 6, 6)
    query = query + 0 * dist.get_rank()
    model = addressed(lambda q, v: F.scaled_dot_product_attention(q, q, v, dropout_p=0.5), all=1)
    return model(query, eye) != 0, half(mask_of("#0", 0.5, (2, 4, 6, 6)), 1)


def replicated() -> tuple[Tensor, Tensor]:
    """The same on both; zeros, which tell nothing, before."""
    model = addressed(lambda x: F.dropout(x, 0.5))
    model(torch.zeros(4, 5))
    return model(WHOLE) != 0, mask_of("#0", 0.5, WHOLE.shape, run=1)


def examples(dim: int) -> tuple[Tensor, Tensor]:
    """Along another axis too, such as where time is first; by the mask of one process that was told nothing."""
    x = WHOLE.transpose(0, dim)
    return addressed(lambda x: F.dropout(x, 0.5), "all", dim)(half(x, dim)) != 0, half(mask_of("#0", 0.5, x.shape), dim)


def joined_examples() -> tuple[Tensor, Tensor]:
    """A tensor that joins examples and another axis, which has to be declared."""
    found = addressed(lambda x: F.dropout(x.flatten(0, 1), 0.5), "all", all=0)(half(WHOLE, 0))
    return found != 0, half(mask_of("#0", 0.5, (20, 6, 8)), 0)


def positions() -> tuple[Tensor, Tensor]:
    """A parameter, as long as there are examples: it has none."""
    positions = nn.Parameter(torch.ones(3, 2, 6))
    return addressed(lambda x: F.dropout(positions[1:], 0.5), "all")(half(WHOLE, 0)) != 0, mask_of("#0", 0.5, (2, 2, 6))


def repeated_positions() -> tuple[Tensor, Tensor]:
    """The same for each example, which drops from it for itself."""
    positions = nn.Parameter(torch.ones(1, 6))
    found = addressed(lambda x: F.dropout(positions.expand(2, 6), 0.5), "all")(half(WHOLE, 0))
    return found != 0, half(mask_of("#0", 0.5, (4, 6)), 0)


def missing_values() -> tuple[Tensor, Tensor]:
    x = WHOLE.clone()
    x[0, 0] = float("nan")
    x[1, 0] = float("inf")
    found = addressed(lambda x: F.dropout(x, 0.5))(x)
    return found != 0, mask_of("#0", 0.5, WHOLE.shape)


def layers(make: Callable[[], nn.Module]) -> tuple[Tensor, Tensor]:
    """Layers whose noise is no mask of their input, by what one process computes."""
    x, found = WHOLE[:, :, 0], []
    for workers in (None, Workers(init_device_mesh("cpu", (2,), mesh_dim_names=("all",)), "all")):
        torch.manual_seed(0)
        model = make().double()
        address(model, SEED, workers)
        output = model(x if workers is None else half(x, 0))
        found.append(output[0] if isinstance(output, tuple) else output)
    return found[1], half(found[0], 0)


def numbered_examples() -> tuple[Tensor, Tensor]:
    """Parts that are not equal: by their numbers."""
    ids = [[3], [0, 2, 1]][dist.get_rank()]
    model = addressed(lambda x: F.dropout(x, 0.5), "all")
    with samples(ids):
        return model(WHOLE[ids]) != 0, mask_of("#0", 0.5, WHOLE.shape)[ids]


def no_examples() -> tuple[Tensor, Tensor]:
    """A tensor that has none, such as that of positions."""
    positions = torch.ones(5, 6)
    model = addressed(lambda x: F.dropout(positions, 0.5), "all", all=None)
    return model(half(WHOLE, 0)) != 0, mask_of("#0", 0.5, (5, 6))


def by_hand(form: str) -> tuple[Tensor, Tensor]:
    """Masks of random numbers, along the axis of examples or another."""
    axis = 0 if form == "examples" else 2
    model = Calling(lambda x: x * (torch.rand_like(x) >= 0.5))
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("all",))
    address(model, SEED, Workers(mesh, "all") if axis == 0 else Workers(mesh, shards={"~0": {"all": axis}}))
    return model(half(WHOLE, axis)) != 0, half(mask_of("~0", 0.5, WHOLE.shape), axis)


def recomputed() -> tuple[Tensor, Tensor]:
    """Gradients of a checkpointed part."""
    x = half(WHOLE, 0).clone().requires_grad_()
    model = addressed(lambda x: checkpoint(lambda y: F.dropout(y, 0.5).sin(), x, use_reentrant=False), "all")
    model(x).sum().backward()
    mask = half(mask_of("#0", 0.5, WHOLE.shape), 0)
    return x.grad, 2 * mask * (2 * half(WHOLE, 0)).cos()


def with_gradients() -> tuple[Tensor, Tensor]:
    x = distributed(WHOLE, Shard(2)).requires_grad_()
    addressed(lambda x: F.dropout(x, 0.5))(x).sum().backward()
    assert isinstance(x.grad, DTensor)
    return x.grad.full_tensor(), 2 * mask_of("#0", 0.5, WHOLE.shape).double()


def after_a_warm_up(x: Tensor) -> None:
    """Values that are all the same tell nothing."""
    model = addressed(lambda x: F.dropout(x, 0.5))
    model(torch.ones_like(x))
    model(x)


def one_alone() -> None:
    model = Calling(lambda x: F.dropout(F.dropout(x, 0.5 * dist.get_rank()), 0.5))
    address(model, SEED, Workers(init_device_mesh("cpu", (2,), mesh_dim_names=("all",))))
    model(WHOLE)


def refused(form: str) -> str:
    """Return what both processes are told."""
    make = {
        "shard": lambda: addressed(lambda x: F.dropout(x, 0.5))(half(WHOLE, 0)),
        "a shard after a warm-up": lambda: after_a_warm_up(half(WHOLE, 0)),
        "lengths": lambda: addressed(lambda x: F.dropout(x, 0.5), all=1)(half(WHOLE, 1)),
        "shapes": lambda: addressed(lambda x: F.dropout(x, 0.5))(torch.ones(4, 5 + dist.get_rank())),
        "no shard": lambda: addressed(lambda x: F.dropout(x, 0.5), all=1)(WHOLE),
        "sites": one_alone,
        "kind": lambda: addressed(lambda x: dropkit.functional.gaussian_dropout(x, 0.5))(distributed(WHOLE, Shard(1))),
        "axis": lambda: addressed(lambda x: dropkit.functional.gaussian_dropout(x, 0.5), "all", 1)(half(WHOLE, 1)),
        "by hand": lambda: addressed(lambda x: x * (torch.rand_like(x) >= 0.5))(distributed(WHOLE, Replicate())),
    }
    with pytest.raises(UnsupportedError) as caught:
        make[form]()
    return str(caught.value)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: dropkit.nn.LSTM(8, 4, 2, batch_first=True, dropout=0.5, recurrent_p=0.3),
    "TransformerEncoderLayer": lambda: dropkit.nn.TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True),
    "GaussianDropout": lambda: dropkit.nn.GaussianDropout(0.3),
    "nn.LSTM": lambda: nn.LSTM(8, 4, 2, batch_first=True, dropout=0.5),
}
PROVED: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    **{f"a plain part along axis {axis}": (plain_shard, (axis,)) for axis in (0, 2, 3, -1)},
    **{f"a part of a DTensor along axis {axis}": (tensor_shard, (axis,)) for axis in (0, 1, 2, 3)},
    "sums that are not done": (tensor_partial, ()),
    "a DTensor in place": (tensor_in_place, ()),
    **{f"maps along axis {axis}": (tensor_maps, (axis,)) for axis in (0, 1, 2)},
    "a mask besides": (tensor_native, ()),
    "a recorded mask": (tensor_recorded, ()),
    "attention's examples": (attention, (Shard(0), "")),
    "attention's heads": (attention, (Shard(1), "")),
    "heads and a small mask": (attention, (Shard(1), "small")),
    "heads and a whole mask": (attention, (Shard(1), "whole")),
    "attention's queries": (attention, (Shard(2), "")),
    "attention that is the same": (attention, (Replicate(), "")),
    "plain heads": (plain_heads, ()),
    "the same": (replicated, ()),
    "examples": (examples, (0,)),
    "examples along axis 1": (examples, (1,)),
    **{f"examples of {name}": (layers, (make,)) for name, make in LAYERS.items()},
    "joined examples": (joined_examples, ()),
    "positions": (positions, ()),
    "repeated positions": (repeated_positions, ()),
    "missing values": (missing_values, ()),
    "numbered examples": (numbered_examples, ()),
    "no examples": (no_examples, ()),
    "examples of a mask by hand": (by_hand, ("examples",)),
    "parts of a mask by hand": (by_hand, ("parts",)),
    "a checkpoint": (recomputed, ()),
    "gradients": (with_gradients, ()),
}
REFUSED = {
    "shard": r"have different plain tensors at #0, .*shape \(2, 5, 6, 8\).*examples='all'.*\{'#0': \{'all': axis\}\}",
    "a shard after a warm-up": r"have different plain tensors at #0",
    "lengths": r"tensors of shapes \[\(4, 3, 6, 8\), \(4, 2, 6, 8\)\] at #0",
    "shapes": r"tensors of shapes \[\(4, 5\), \(4, 6\)\] at #0",
    "no shard": r"`shards` says.* and all have the same",
    "sites": r"do not run the same sites",
    "kind": r"calls gaussian_dropout on a DTensor",
    "axis": r"draws the noise of gaussian_dropout for examples along axis 1",
    "by hand": r"draws a mask for a DTensor by hand",
}


def prove_all() -> dict[str, Any]:
    found = {name: work(*arguments) for name, (work, arguments) in PROVED.items()}
    return found | {form: refused(form) for form in REFUSED}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(prove_all, 2, Path(tmp_path_factory.mktemp("pair")))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROVED)
def test_masks_of_parts(pair: list[dict[str, Any]], name: str) -> None:
    for own in pair:
        found, wanted = own[name]
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("form", REFUSED)
def test_what_both_are_told(pair: list[dict[str, Any]], form: str) -> None:
    for own in pair:
        assert re.search(REFUSED[form], own[form])
