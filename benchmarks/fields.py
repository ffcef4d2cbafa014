"""What random numbers cost on one thread of a CPU, against PyTorch's, NumPy's and JAX's generators.

    python benchmarks/fields.py [--quick]

Nanoseconds a number, for a million numbers: every row is measured in one process, its sides interleaved, and the
minimum of many repeats is taken. All allocate their output. JAX takes part where it is installed, with functions that
it compiled before, and is told to use one thread.
"""

import importlib.util
import os
from collections.abc import Callable

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import numpy as np
import torch
from timing import minima

from dropkit import kernels, random
from dropkit.kernels import fields, portable
from dropkit.kernels.native import arrays
from dropkit.random.layout import layout

SHAPE = (1024, 1024)
KEY, P = 7, 0.1
CPU = torch.device("cpu")
ADDRESS = (torch.tensor(KEY), torch.tensor(0), layout("benchmark", SHAPE), CPU)
TYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
NUMPY_TYPES = ("float32", "float64")  # those that NumPy's generators draw
GENERATORS = {name: np.random.Generator(getattr(np.random, name)(0)) for name in ("Philox", "PCG64", "SFC64")}

Call = Callable[[], object]


def jax_calls(p: float) -> dict[str, dict[str, Call]]:
    """Return what JAX offers for each row of the table; nothing where it is not installed."""
    if importlib.util.find_spec("jax") is None:
        print("JAX is not installed, so it takes no part")
        return {}
    import jax

    jax.config.update("jax_enable_x64", True)
    key = jax.random.key(0)
    bernoulli = jax.jit(lambda key: jax.random.bernoulli(key, 1 - p, SHAPE))
    calls: dict[str, dict[str, Call]] = {"keep-mask": {"JAX": lambda: bernoulli(key).block_until_ready()}}
    for name in TYPES:
        uniform = jax.jit(lambda key, name=name: jax.random.uniform(key, SHAPE, name))
        normal = jax.jit(lambda key, name=name: jax.random.normal(key, SHAPE, name))
        calls[f"uniform, {name}"] = {"JAX": lambda uniform=uniform: uniform(key).block_until_ready()}
        calls[f"normal, {name}"] = {"JAX": lambda normal=normal: normal(key).block_until_ready()}
    return calls


def rows(p: float) -> dict[str, dict[str, Call]]:
    """Return the sides of every row of the table."""
    t = random.threshold(p)
    table: dict[str, dict[str, Call]] = {
        "keep-mask": {
            "dropkit": lambda: arrays.keep_mask(KEY, SHAPE, t),
            "portable": lambda: portable.keep_mask(*ADDRESS[:2], torch.tensor(t), *ADDRESS[2:]),
            "reference": lambda: random.keep_mask(KEY, SHAPE, p),
            "PyTorch": lambda: torch.empty(SHAPE, dtype=torch.bool).bernoulli_(1 - p),
            **{name: lambda g=g: g.random(SHAPE, np.float32) >= p for name, g in GENERATORS.items()},
        },
        "integers of 32 bits": {
            "dropkit": lambda: fields.integers(*ADDRESS),
            "portable": lambda: portable.integers(*ADDRESS),
            "reference": lambda: random.uniform32(KEY, SHAPE),
            "PyTorch": lambda: torch.randint(2**32, SHAPE),
            **{name: lambda g=g: g.integers(2**32, size=SHAPE) for name, g in GENERATORS.items()},
        },
    }
    for name, dtype in TYPES.items():
        for kind, ours, reference, theirs in (
            ("uniform", (fields.uniform, portable.uniform), random.uniform, torch.rand),
            ("normal", (fields.normal, portable.normal), random.normal, torch.randn),
        ):
            row = table[f"{kind}, {name}"] = {
                "dropkit": lambda draw=ours[0], dtype=dtype: draw(*ADDRESS, dtype),
                "portable": lambda draw=ours[1], dtype=dtype: draw(*ADDRESS, dtype),
                "PyTorch": lambda draw=theirs, dtype=dtype: draw(SHAPE, dtype=dtype),
            }
            if name in NUMPY_TYPES:
                row["reference"] = lambda draw=reference, name=name: draw(KEY, SHAPE, dtype=name)
                for generator, g in GENERATORS.items():
                    draw = g.random if kind == "uniform" else g.standard_normal
                    row[generator] = lambda draw=draw, name=name: draw(SHAPE, name)
    for name, calls in jax_calls(p).items():
        table[name] |= calls
    return table


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, NumPy {np.__version__}\n{kernels.info()}\n")
    table = rows(P)
    sides = ("dropkit", "portable", "reference", "PyTorch", *GENERATORS, "JAX")
    print(f"{'nanoseconds a number':22}" + "".join(f"{side:>11}" for side in sides))
    for name, calls in table.items():
        found = dict(zip(calls, minima(*calls.values()), strict=True))
        cells = (f"{1e9 * found[side] / 2**20:11.2f}" if side in found else f"{'-':>11}" for side in sides)
        print(f"{name:22}" + "".join(cells), flush=True)
    print(
        "\nportable: plain PyTorch operations; reference: dropkit.random in NumPy; behind PyTorch: NumPy's generators"
    )


if __name__ == "__main__":
    main()
