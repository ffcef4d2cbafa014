"""What the layers cost on a CPU: against a multiplication of the same tensor, and against whoever else has them.

    python benchmarks/layers.py [--quick] [NAME ...]

Every row is measured in one process, its sides interleaved; the minimum of many repeats is taken. A bar stands beside
each ratio that has one. Names pick rows of the table at the end.
"""

import argparse
import math
from collections.abc import Callable

import torch
from peers import timm_drop
from timing import Ratio, minima, report, settle_allocator, with_backward
from torch import Tensor

import dropkit
from dropkit import kernels
from dropkit.nn import (
    AlphaDropout,
    DropBlock2d,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    DropPath,
    FeatureAlphaDropout,
    GaussianDropout,
    LockedDropout,
    TransformerEncoderLayer,
)

IMAGES, SEQUENCES, VOLUMES = (64, 128, 28, 28), (32, 512, 256), (16, 32, 16, 28, 28)


def shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def against_product(name: str, layer: Callable[[Tensor], Tensor], shape: tuple[int, ...], bar: float | None) -> None:
    """Compare forward, and forward and backward, with those of a multiplication."""
    x, grad = torch.randn(shape), torch.randn(shape)
    trained = x.clone().requires_grad_()
    report(Ratio(f"{name}, {shown(shape)}: multiplication", *minima(lambda: layer(x), lambda: x * 1.25), bar))
    both = minima(with_backward(layer, trained, grad), with_backward(lambda x: x * 1.25, trained, grad))
    report(Ratio(f"{name}, {shown(shape)}, forward + backward: multiplication", *both))


def channels() -> None:
    for p in (0.1, 0.5):
        against_product(f"Dropout1d p = {p}", Dropout1d(p), SEQUENCES, 1.5)
        against_product(f"Dropout2d p = {p}", Dropout2d(p), IMAGES, 1.5)
        against_product(f"Dropout3d p = {p}", Dropout3d(p), VOLUMES, 1.5)
    x = torch.randn(IMAGES).to(memory_format=torch.channels_last)
    layer = Dropout2d(0.5)
    name = f"Dropout2d p = 0.5, {shown(IMAGES)} channels-last: multiplication"
    report(Ratio(name, *minima(lambda: layer(x), lambda: x * 1.25)))


def shared_axes() -> None:
    for shape, axes in ((IMAGES, 1), (IMAGES, (2, 3)), (IMAGES, 0), (SEQUENCES, 0), (SEQUENCES, 1), (SEQUENCES, 2)):
        against_product(f"Dropout p = 0.5, broadcast_dims={axes}", Dropout(0.5, broadcast_dims=axes), shape, 1.5)


def locked() -> None:
    for p in (0.1, 0.5):
        against_product(f"LockedDropout p = {p}", LockedDropout(p), SEQUENCES, 1.5)
    against_product("LockedDropout p = 0.5, time first", LockedDropout(0.5, batch_first=False), SEQUENCES, 1.5)


def paths() -> None:
    for shape in (IMAGES, SEQUENCES):
        against_product("DropPath p = 0.1", DropPath(0.1), shape, 1.5)
        against_product("DropPath p = 0.5", DropPath(0.5), shape, 1.5)
        against_product("DropPath p = 0.5 of the batch", DropPath(0.5, "batch"), shape, 1.5)


def convolutions(channels: int) -> torch.nn.Module:
    """Return the branch of a residual block."""
    first, second = (torch.nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
    return torch.nn.Sequential(first, torch.nn.ReLU(), second)


def skipping() -> None:
    for shape in ((64, 64, 28, 28), (32, 128, 14, 14)):
        skip_half(shape)


def skip_half(shape: tuple[int, ...]) -> None:
    """Compare a block that does not run what it drops: half of the rows, so that no draw is a lucky one."""
    x, grad, half = torch.randn(shape, requires_grad=True), torch.randn(shape), torch.arange(shape[0]) % 2 == 0
    branch, path, keep = convolutions(shape[1]), DropPath(0.5), half.view(-1, 1, 1, 1)

    def ours(x: Tensor) -> Tensor:
        return x + path.skip(branch, x, mask=keep)

    def other(x: Tensor) -> Tensor:
        return x + branch(x) * (keep.to(x.dtype) / 0.5)

    name = f"residual block {shown(shape)} p = 0.5 that skips: one that multiplies by 0"
    with torch.no_grad():
        report(Ratio(name, *minima(lambda: ours(x), lambda: other(x)), 1.5, True))
    both = minima(with_backward(ours, x, grad), with_backward(other, x, grad))
    report(Ratio(f"{name}, forward + backward", *both, 1.5, True))


def blocks() -> None:
    """Compare DropBlock with timm's, of channels that have blocks of their own and of channels that share them."""
    drop = timm_drop()
    if drop is None:
        print("timm is not installed: DropBlock is compared with nothing")
        return
    for shape in (IMAGES, (64, 256, 14, 14)):
        x = torch.randn(shape)
        for shares in (False, True):
            ours = DropBlock2d(0.1, 7, share_channels=shares)
            theirs = drop.DropBlock2d(0.1, 7, couple_channels=shares)
            name = f"DropBlock2d {shown(shape)}{', shared by channels' if shares else ''}: timm's"
            report(Ratio(name, *minima(lambda: ours(x), lambda: theirs(x)), 1.0, True))  # noqa: B023  # called here


def self_normalising() -> None:
    for p in (0.05, 0.5):
        for shape in (IMAGES, SEQUENCES):
            against_pytorch(f"AlphaDropout p = {p}", AlphaDropout(p), torch.nn.AlphaDropout(p), shape, 5.0)
            against_product(f"FeatureAlphaDropout p = {p}", FeatureAlphaDropout(p), shape, 1.5)
            theirs = torch.nn.FeatureAlphaDropout(p)
            against_pytorch(f"FeatureAlphaDropout p = {p}", FeatureAlphaDropout(p), theirs, shape)


def gaussian() -> None:
    for p in (0.2, 0.5):
        deviation = math.sqrt(p / (1 - p))
        for shape in (IMAGES, SEQUENCES):
            against_pytorch(
                f"GaussianDropout p = {p}",
                GaussianDropout(p),
                lambda x: x * (1 + deviation * torch.randn_like(x)),  # noqa: B023  # called here
                shape,
                3.0,
            )


def against_pytorch(
    name: str,
    ours: Callable[[Tensor], Tensor],
    theirs: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    bar: float | None = None,
) -> None:
    """Compare forward, and forward and backward, with those of PyTorch's operations for the same."""
    x, grad = torch.randn(shape), torch.randn(shape)
    trained = x.clone().requires_grad_()
    name = f"{name}, {shown(shape)}: PyTorch's operations"
    report(Ratio(name, *minima(lambda: ours(x), lambda: theirs(x)), bar, True))
    both = minima(with_backward(ours, trained, grad), with_backward(theirs, trained, grad))
    report(Ratio(f"{name}, forward + backward", *both, None, True))


def transformer() -> None:
    """Compare training steps of an encoder's layer with PyTorch's, with dropout and without, eager and compiled."""
    shape = (8, 256, 256)
    x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
    sizes = {"d_model": 256, "nhead": 4, "dim_feedforward": 1024, "batch_first": True}
    ours = TransformerEncoderLayer(dropout=0.1, **sizes)
    theirs, without = (torch.nn.TransformerEncoderLayer(dropout=p, **sizes) for p in (0.1, 0.0))
    layers = (ours, theirs, without)
    compiled = [torch.compile(layer, isolate_recompiles=True) for layer in layers]
    times = minima(*(with_backward(layer, x, grad) for layer in (*layers, *compiled)))
    for way, (own, other, none) in (("", times[:3]), (" compiled", times[3:])):
        name = f"TransformerEncoderLayer p = 0.1, {shown(shape)}, forward + backward{way}"
        report(
            Ratio(f"{name}: PyTorch's", own, other, None, True), Ratio(f"{name}: PyTorch's without dropout", own, none)
        )


TABLE: tuple[Callable[[], None], ...] = (
    channels, shared_axes, locked, paths, skipping, blocks, self_normalising, gaussian, transformer,
)  # fmt: skip


def main() -> None:
    """Print the table, for one thread and for two."""
    settle_allocator()
    print(f"dropkit {dropkit.__version__}, torch {torch.__version__}\n{kernels.info()}")
    names = [rows.__name__ for rows in TABLE]
    parser = argparse.ArgumentParser(description="Time the layers of dropkit on a CPU, beside their peers.")
    parser.add_argument(
        "rows", nargs="*", metavar="NAME", help=f"rows of the table, of {', '.join(names)}; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="a sixth of the repeats")
    wanted = parser.parse_args().rows
    if unknown := set(wanted) - set(names):
        parser.error(f"there is no row {', '.join(sorted(unknown))}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(f"\n{threads} thread{'s' * (threads > 1)}: microseconds of ours, of the other, and their ratio")
        for rows in TABLE:
            if not wanted or rows.__name__ in wanted:
                rows()


if __name__ == "__main__":
    main()
