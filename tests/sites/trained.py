"""Networks that one process trains, or many, in every way that PyTorch shares the work."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from dropkit import sites
from dropkit.sites.addressing.mesh import others, position

SEED, BATCH, CLASSES, STEPS = 2**63 + 9, 8, 5, 50


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second, self.last = (
            nn.Linear(12, 16), nn.Dropout(0.5), nn.Linear(16, 12), nn.Linear(12, CLASSES)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(F.relu(self.first(x)))
        return self.last(F.dropout(F.relu(self.second(hidden)), 0.3, self.training))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Dropout2d(0.25),
            nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Dropout(0.4),
        )  # fmt: skip
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.layers(x).mean((2, 3))
        return self.head(pooled * (torch.rand_like(pooled) >= 0.2) / 0.8)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts = (each(x).unflatten(-1, (-1, 4)).transpose(1, 2) for each in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(*parts, dropout_p=0.2 if self.training else 0.0, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.attention, self.after = nn.LayerNorm(16), Attention(), nn.Dropout(0.1)
        self.norm, self.wide, self.hidden, self.narrow, self.drop = (
            nn.LayerNorm(16), nn.Linear(16, 32), nn.Dropout(0.3), nn.Linear(32, 16), nn.Dropout(0.1)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.after(self.attention(self.before(x)))
        return x + self.drop(self.narrow(self.hidden(F.gelu(self.wide(self.norm(x))))))


class Transformer(nn.Module):
    is_checkpointed = False

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(20, 16), nn.Dropout(0.1)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        x = self.drop(self.embed(words))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.is_checkpointed else block(x)
        return self.head(self.norm(x)).mean(1)


NETWORKS: Mapping[str, type[nn.Module]] = {"mlp": Perceptron, "cnn": Convolutional, "transformer": Transformer}
DROPPED = {"mlp": 2, "cnn": 3, "transformer": 9}  # how many sites each has


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[kind]().double()


def batches(kind: str, way: str, step: int) -> list[tuple[Tensor, Tensor]]:
    """Return the whole batch of a step, in two where gradients are accumulated."""
    source = torch.Generator().manual_seed(step)
    labels = torch.randint(CLASSES, (BATCH,), generator=source)
    if kind == "transformer":
        x = torch.randint(20, (BATCH, 6), generator=source)
    else:
        shape = (BATCH, 12) if kind == "mlp" else (BATCH, 3, 6, 6)
        x = torch.randn(shape, generator=source, dtype=torch.float64)
    count = 2 if way == "accumulated" else 1
    return list(zip(x.chunk(count), labels.chunk(count), strict=True))


def plan(kind: str, way: str) -> dict[str, ParallelStyle]:
    """Return how tensor-parallel workers share a network's layers."""
    if kind == "mlp":
        return {"first": ColwiseParallel(use_local_output=way == "tensor"), "second": RowwiseParallel()}
    is_local, is_split = way == "tensor", way == "sequence"
    inner = {f"attention.{name}": ColwiseParallel(use_local_output=is_local) for name in ("query", "key", "value")}
    inner["wide"] = ColwiseParallel(use_local_output=is_local)
    if not is_split:
        inner |= {"attention.out": RowwiseParallel(), "narrow": RowwiseParallel()}
        return {f"blocks.{i}.{name}": style for i in range(2) for name, style in inner.items()}
    whole = {"input_layouts": Shard(1), "desired_input_layouts": Replicate()}
    inner |= {
        **dict.fromkeys(("before", "after", "norm", "drop"), SequenceParallel()),
        "attention": PrepareModuleInput(**whole),
        "wide": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
        **dict.fromkeys(("attention.out", "narrow"), RowwiseParallel(output_layouts=Shard(1), use_local_output=False)),
    }
    return {f"blocks.{i}.{name}": style for i in range(2) for name, style in inner.items()} | {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=False),
        "drop": SequenceParallel(),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }


SHARDS: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "mlp": {"drop": {"tensor": -1}},
    "transformer": {"blocks.*.attention": {"tensor": 1}, "blocks.*.hidden": {"tensor": -1}},
}


@dataclass
class Run:
    """What a worker has of a training run."""

    losses: list[float]
    masks: dict[Any, Tensor]
    place: tuple[int, int]


def shared(kind: str, way: str) -> tuple[nn.Module, sites.Workers]:
    """Return a network that workers share in some way, and what each of them has."""
    network, mesh = build(kind), mesh_of(way, dist.get_world_size())
    names: tuple[str, ...] = mesh.mesh_dim_names or ()
    examples = tuple(name for name in names if name != "tensor")
    if isinstance(network, Transformer):
        network.is_checkpointed = way == "checkpointed"
    shards: Mapping[str, Any] = {}
    if "tensor" in names:
        parallelize_module(network, mesh["tensor"], plan(kind, way))
        shards = SHARDS[kind] if way == "tensor" else {}
    if way in ("ddp", "checkpointed", "accumulated"):
        network = DistributedDataParallel(network)
    elif examples:
        for module in network.modules():
            if isinstance(module, Block | nn.Sequential):
                fully_shard(module, mesh=mesh[examples])
        fully_shard(network, mesh=mesh[examples])
    return network, sites.Workers(mesh, examples, shards=shards)


def mesh_of(way: str, count: int) -> DeviceMesh:
    if way == "hybrid":
        return init_device_mesh("cpu", (count // 2, 2), mesh_dim_names=("replicate", "shard"))
    if way in ("tensor", "dtensor", "sequence"):
        shape, names = ((2, 2), ("data", "tensor")) if count == 4 else ((count,), ("tensor",))
        return init_device_mesh("cpu", shape, mesh_dim_names=names)
    return init_device_mesh("cpu", (count,), mesh_dim_names=("data",))


def train(kind: str, way: str, steps: range = range(STEPS), saved: str = "", to_save: str = "") -> Run:
    """Train as one of the processes that share the work; or alone, where there are no others."""
    network, workers = shared(kind, way) if dist.is_initialized() else (build(kind), None)
    handle = sites.address(network, SEED, workers)
    (worker, count), tensor = (0, 1), 0
    if workers is not None:
        (worker, count), (tensor, _) = position(workers, workers.examples), position(workers, others(workers))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    handle.follow(optimizer)
    if saved:
        state = torch.load(saved)
        getattr(network, "module", network).load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        handle.load_state_dict(state["handle"])
    run = Run([], {}, (worker, tensor))
    for step in steps:
        is_recorded = step in (steps[0], steps[-1])
        with sites.record(network) if is_recorded else nullcontext({}) as masks:
            own = [(x.chunk(count)[worker], y.chunk(count)[worker]) for x, y in batches(kind, way, step)]
            run.losses.append(update(network, optimizer, own))
        run.masks |= {
            (step, *name): _local(mask) for name, mask in masks.items() if mask.dtype == torch.bool or "~" in name[0]
        }
    if to_save and (workers is None or dist.get_rank() == 0):
        inner = getattr(network, "module", network)
        state = {"network": inner.state_dict(), "optimizer": optimizer.state_dict(), "handle": handle.state_dict()}
        torch.save(state, to_save)
    handle.close()
    return run


def update(network: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Update the weights by the gradients of some batches, and return the mean of all workers' losses."""
    optimizer.zero_grad()
    total: Any = 0
    for x, labels in batches:
        is_last = x is batches[-1][0]
        with nullcontext() if is_last or not isinstance(network, DistributedDataParallel) else network.no_sync():
            loss = F.cross_entropy(network(x), labels) / len(batches)
            loss.backward()
        total = total + (loss.full_tensor() if isinstance(loss, DTensor) else loss).detach()
    optimizer.step()
    if not dist.is_initialized():
        return float(total)
    dist.all_reduce(total)  # some of them may have the same examples
    return float(total) / dist.get_world_size()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def train_all(jobs: list[tuple[str, str]]) -> dict[tuple[str, str], Run]:
    """Train every network in every way that is asked for, one after another."""
    return {job: train(*job) for job in jobs}


def parts(run: Run, whole: Mapping[Any, Tensor]) -> Iterator[tuple[Any, Tensor, Tensor, bool]]:
    """Yield each mask of a worker, the part of a single process's which it should be, and whether it is a shard."""
    for name, mask in run.masks.items():
        part, is_shard = whole[name], False
        for axis in range(part.dim()):
            length = mask.shape[axis]
            if length != part.shape[axis]:
                part = part.narrow(axis, run.place[axis > 0] * length, length)
                is_shard = is_shard or axis > 0
        yield name, mask, part, is_shard
