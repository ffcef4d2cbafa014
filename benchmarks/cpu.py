"""What dropout costs on a CPU, against PyTorch's and against a multiplication.

    python benchmarks/cpu.py [--quick]

Every row is measured in one process, its sides interleaved; the minimum of many repeats is taken. Both sides allocate
their output, unless "into" says that memory is there already. A bar stands beside each ratio that has one.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timing import Call, Ratio, minima, report, settle_allocator, with_backward
from torch import Tensor

from dropkit import kernels
from dropkit.functional import activation_dropout, dropout, dropout_add, scaled_dot_product_attention
from dropkit.kernels.native.operations import TYPES, library
from dropkit.random import threshold

TYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def forward_and_backward(shape: tuple[int, ...], dtype: torch.dtype, p: float) -> None:
    """Compare dropout with a multiplication and with PyTorch's dropout."""
    x = torch.randn(shape).to(dtype)
    trained, grad, out = x.clone().requires_grad_(), torch.randn(shape).to(dtype), torch.empty_like(x)
    name = f"{'x'.join(map(str, shape))} {TYPE_NAMES[dtype]} p = {p:.3g}"
    huge, small = x.numel() >= 2**24, shape in ((512, 1024), (128, 1024))
    native = library()
    address = (TYPES[dtype], x.data_ptr(), out.data_ptr(), None, x.numel(), shape[-1], 7)
    torches = minima(lambda: dropout(x, p, key=7), lambda: x * 1.25, lambda: F.dropout(x, p))
    report(
        Ratio(
            f"forward {name}: multiplication", *torches[:2], (1.15 if dtype == torch.float32 else 1.2) if huge else None
        ),
        Ratio(f"forward {name}: F.dropout", torches[0], torches[2], {0.1: 15, 0.5: 30}.get(p) if small else None, True),
    )
    if native is not None:
        into = minima(lambda: native.dropout_plain(*address, threshold(p)), lambda: torch.mul(x, 1.25, out=out))
        bar = ((1.25 if dtype == torch.float32 else 2.2) if huge else 2.4) if huge or small else None
        report(Ratio(f"forward {name}, into: multiplication", *into, bar))
    both = minima(
        with_backward(lambda x: dropout(x, p, key=7), trained, grad),
        with_backward(lambda x: x * 1.25, trained, grad),
        with_backward(lambda x: F.dropout(x, p), trained, grad),
    )
    report(
        Ratio(f"forward + backward {name}: multiplication", *both[:2], 1.2 if huge else None),
        Ratio(
            f"forward + backward {name}: F.dropout", both[0], both[2], {0.1: 7, 0.5: 12}.get(p) if small else None, True
        ),
    )


def kept(call: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Return how many bytes an operation keeps for the backward pass."""
    found: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        found[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        output = call(x)
    del output
    return sum(found.values())


def memory() -> None:
    """Print what is kept for the backward pass, in bytes an element."""
    x = torch.randn(4096, 4096, requires_grad=True)
    for name, call in (("dropkit", lambda x: dropout(x, 0.5)), ("PyTorch", lambda x: F.dropout(x, 0.5))):
        print(f"kept for the backward pass of 4096x4096, {name}: {kept(call, x) / x.numel():.6g} bytes an element")


def tiny_layer(p: float) -> None:
    """Compare a layer that is all overhead."""
    x, grad = torch.randn(32, 128, requires_grad=True), torch.randn(32, 128)
    given, drawn, torches = minima(
        with_backward(lambda x: dropout(x, p, key=7), x, grad),
        with_backward(lambda x: dropout(x, p), x, grad),
        with_backward(lambda x: F.dropout(x, p), x, grad),
    )
    report(
        Ratio(
            f"forward + backward 32x128 p = {p}, key given: F.dropout", given, torches, {0.1: 1.5, 0.5: 2.2}[p], True
        ),
        Ratio(
            f"forward + backward 32x128 p = {p}, key drawn: F.dropout", drawn, torches, {0.1: 1.2, 0.5: 1.8}[p], True
        ),
    )


def narrow(shape: tuple[int, ...]) -> None:
    """Compare rows that are shorter than a vector."""
    x = torch.randn(shape)
    ours, torches = minima(lambda: dropout(x, 0.5, key=7), lambda: F.dropout(x, 0.5))
    report(Ratio(f"forward {'x'.join(map(str, shape))} p = 0.5: F.dropout", ours, torches, 10, True))


def channels_last() -> None:
    """Compare images whose channels lie side by side."""
    x = torch.randn(32, 64, 56, 56).to(memory_format=torch.channels_last)
    ours, torches, product = minima(lambda: dropout(x, 0.5, key=7), lambda: F.dropout(x, 0.5), lambda: x * 1.25)
    report(
        Ratio("forward 32x64x56x56 channels-last p = 0.5: F.dropout", ours, torches, None, True),
        Ratio("forward 32x64x56x56 channels-last p = 0.5: multiplication", ours, product),
    )


def fused(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Compare one pass with several."""
    x, residual, bias = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)
    bar, name = 1.6 if shape[0] >= 4096 else 1.2, f"{shape[0]}x{shape[1]} {TYPE_NAMES[dtype]} p = 0.1"
    add = minima(lambda: dropout_add(x, residual, 0.1, key=7), lambda: residual + dropout(x, 0.1, key=7))
    gelu = minima(
        lambda: activation_dropout(x, "gelu", 0.1, bias=bias, key=7), lambda: dropout(F.gelu(x + bias), 0.1, key=7)
    )
    report(
        Ratio(f"dropout + residual {name}: unfused", *add, bar, True),
        Ratio(f"bias + GELU + dropout {name}: unfused", *gelu, bar, True),
    )


def attention(tokens: int, dtype: torch.dtype, p: float, threads: int) -> None:
    """Compare attention, forward and backward."""
    query, key, value = (torch.randn(1, 8, tokens, 64).to(dtype).requires_grad_() for _ in range(3))
    grad = torch.randn(1, 8, tokens, 64).to(dtype)
    ours, torches = minima(
        lambda: scaled_dot_product_attention(query, key, value, dropout_p=p, dropout_key=7).backward(grad),
        lambda: F.scaled_dot_product_attention(query, key, value, dropout_p=p).backward(grad),
    )
    bars = {(1, 0.1): 1.5, (1, 0.5): 1.9, (2, 0.1): 2.0, (2, 0.5): 2.8}
    bar = bars.get((threads, p)) if tokens == 512 else None
    name = f"attention 1x8x{tokens}x64 {TYPE_NAMES[dtype]} forward + backward p = {p}: PyTorch's"
    report(Ratio(name, ours, torches, bar, True))


def training_step() -> None:
    """Compare steps of training, eager and compiled, and what dropout adds to each."""
    import dropkit

    class Fused(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return activation_dropout(x, "relu", 0.5)

    x, target = torch.randn(128, 784), torch.randint(10, (128,))
    layers: dict[str, Callable[[], torch.nn.Module]] = {
        "ours": lambda: torch.nn.Sequential(torch.nn.ReLU(), dropkit.nn.Dropout(0.5)),
        "fused": Fused,
        "none": torch.nn.ReLU,
        "torch": lambda: torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Dropout(0.5)),
    }

    def step(layer: Callable[[], torch.nn.Module], compile: Callable[[torch.nn.Module], Any]) -> Call:
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(784, 1024), layer(), torch.nn.Linear(1024, 1024), layer(), torch.nn.Linear(1024, 10)
        )
        optimizer, called = torch.optim.Adam(model.parameters(), fused=True), compile(model)

        def run() -> None:
            optimizer.zero_grad()
            F.cross_entropy(called(x), target).backward()
            optimizer.step()

        return run

    def compiled(model: torch.nn.Module) -> Any:
        return torch.compile(model, isolate_recompiles=True)  # no model looks through what others compiled

    eager_steps = {name: step(layer, lambda model: model) for name, layer in layers.items()}
    eager = dict(zip(layers, minima(*eager_steps.values()), strict=True))
    name = "step of 784-1024-1024-10 p = 0.5"
    report(
        Ratio(f"{name}: without dropout", eager["ours"], eager["none"], 1.10),
        Ratio(f"{name}: torch.nn.Dropout", eager["ours"], eager["torch"], None, True),
        Ratio(f"{name}, fused: without dropout", eager["fused"], eager["none"], 1.10),
    )
    compiled_steps = [step(layer, compiled) for layer in layers.values()]
    ours, none, *others = minima(eager_steps["ours"], eager_steps["none"], *compiled_steps)
    found = dict(zip(layers, others, strict=True))
    report(
        Ratio("compiled step without dropout: eager step without dropout", found["none"], none),
        Ratio("compiled step p = 0.5: compiled torch.nn.Dropout", found["ours"], found["torch"], 1.0, True),
        Ratio("compiled step p = 0.5: our eager step", found["ours"], ours),
        Ratio("compiled step p = 0.5, fused: compiled without dropout", found["fused"], found["none"], 1.10),
        Ratio("compiled step p = 0.5, fused: our eager step", found["fused"], ours, 1.0),
        Ratio("what dropout adds: compiled and fused, against eager", found["fused"] - found["none"], ours - none),
    )


def main() -> None:
    """Print the table, for one thread and for two."""
    settle_allocator()
    print(f"torch {torch.__version__}\n{kernels.info()}")
    memory()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(f"\n{threads} thread{'s' * (threads > 1)}: microseconds of ours, of the other, and their ratio")
        for dtype in TYPE_NAMES:
            for shape in ((4096, 4096), (4097, 4095), (512, 1024), (128, 1024)):
                for p in (0.1, 0.5, 1 / 3) if shape == (4096, 4096) else (0.1, 0.5):
                    forward_and_backward(shape, dtype, p)
        for p in (0.1, 0.5):
            tiny_layer(p)
        narrow((64, 128, 7, 7))
        narrow((65536, 10))
        channels_last()
        for shape in ((128, 1024), (4096, 4096)):
            for dtype in TYPE_NAMES:
                fused(shape, dtype)
        for tokens, dtype, p in itertools.product((512, 2048), TYPE_NAMES, (0.1, 0.5)):
            attention(tokens, dtype, p, threads)
        training_step()


if __name__ == "__main__":
    main()
