"""A network that 1, 2 and 4 processes train: with PyTorch's masks, and with masks that have addresses.

    python examples/many_workers.py

The processes run on this machine and talk over gloo. Each row trains the same network on the same batches, in float64,
so that but for dropout all would end with the same loss. Along "data" each process has a part of every batch, along
"tensor" a part of the hidden units.
"""

import tempfile

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, multiprocessing, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from dropkit import sites

ROWS = [(1, "data"), (2, "data"), (4, "data"), (2, "tensor")]
MASKS = ["PyTorch, one seed", "PyTorch, a seed each", "addressed"]
STEPS, BATCH = 30, 32


class Network(nn.Module):
    """Two layers; dropout on the hidden units, and on what comes out of them."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.drop, self.narrow, self.last = (
            nn.Linear(8, 32), nn.Dropout(0.5), nn.Linear(32, 16), nn.Linear(16, 1)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Predict."""
        hidden = self.narrow(self.drop(torch.relu(self.wide(x))))
        return self.last(F.dropout(torch.relu(hidden), 0.2, self.training))


def train(mesh: DeviceMesh, masks: str) -> float:
    """Train as one of the processes, and return the mean loss of the last ten steps."""
    torch.manual_seed(0)  # the weights are the same everywhere
    network: nn.Module = Network().double()
    is_data = mesh.mesh_dim_names == ("data",)
    if is_data:
        network = DistributedDataParallel(network)
        workers = sites.Workers(mesh, examples="data")
    else:
        parallelize_module(network, mesh, {"wide": ColwiseParallel(), "narrow": RowwiseParallel()})
        workers = sites.Workers(mesh, shards={"drop": {"tensor": -1}})
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    if masks == "addressed":
        sites.address(network, seed=7, workers=workers).follow(optimizer)
    torch.manual_seed(mesh.get_rank() if masks == "PyTorch, a seed each" else 0)

    losses = torch.zeros(STEPS, dtype=torch.float64)
    for step in range(STEPS):
        x = torch.randn(BATCH, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        if is_data:
            x = x.chunk(mesh.size())[mesh.get_rank()]
        loss = F.mse_loss(network(x), x[:, :1] * x[:, 1:2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
    dist.all_reduce(losses)
    return losses[-10:].mean().item() / mesh.size()


def work(rank: int, count: int, name: str, folder: str) -> None:
    """Do what one of the processes of a row does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    mesh = init_device_mesh("cpu", (count,), mesh_dim_names=(name,))
    losses = [train(mesh, masks) for masks in MASKS]
    if rank == 0:
        print(f"{count} x {name:6}" + "".join(f"{loss:22.6f}" for loss in losses), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Print a row for each way to share the work."""
    print(f"{'processes':10}" + "".join(f"{masks:>22}" for masks in MASKS), flush=True)
    for count, name in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            multiprocessing.spawn(work, (count, name, folder), nprocs=count)


if __name__ == "__main__":
    main()
