"""Attention with dropout on a GPU against PyTorch's flash backend with dropout: a row of benchmarks/gpu.py.

Both forms are measured: the mask drawn where it is needed, and read from bits that a kernel has drawn beside, whose
time counts, and which are kept for the backward pass, an eighth of a byte a weight.
"""

import itertools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gpu_timing import HERE, P, milliseconds, title, verdict
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from dropkit import random
from dropkit.functional import attention_tiles, scaled_dot_product_attention

__all__ = ["attention"]

BAR = 0.8
OF_ROW = 4.02  # bytes kept a row of weights: a number of float32, and keys, a few blocks of 512 bytes in all
FORMS = {"regenerating": 0, "bits": 2**62}  # up to how many weights of a call bits are drawn
KEY = 77


def attention(rounds: int) -> None:
    """Print all tables; the longest sequences first."""
    sizes = HERE.sizes
    check()
    for (sequences, tokens), is_causal, width in itertools.product(sizes.tokens, (False, True), sizes.widths):
        measure((sequences, sizes.heads, tokens, width), is_causal, rounds)


def check() -> None:
    """Compare masks with that of the definition, in both forms; a wrong one ends the process."""
    queries, keys = HERE.sizes.checked
    options: dict[str, Any] = {"device": HERE.device, "dtype": HERE.matrix_type}
    query, key = torch.zeros(2, 3, queries, keys, **options), torch.zeros(2, 3, keys, keys, **options)
    value = torch.eye(keys, **options).expand(2, 3, keys, keys)
    want = torch.from_numpy(random.keep_mask(KEY, (2, 3, queries, keys), P))
    for name in FORMS:
        found = in_form(name, scaled_dot_product_attention)(query, key, value, dropout_p=P, dropout_key=KEY)
        if not torch.equal((found > 0).cpu(), want):
            sys.exit(f"an attention mask on the GPU is not that of the definition: {name}")
    title("attention masks\n  GPU = NumPy, bit for bit, in both forms")


def in_form(name: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a call in one of the forms."""

    def call(*arguments: Any, **options: Any) -> Tensor:
        attention_tiles._MOST_BITS = FORMS[name]
        return run(*arguments, **options)

    return call


def measure(shape: tuple[int, int, int, int], is_causal: bool, rounds: int) -> None:
    """Print forward, and forward with backward, for one size."""
    sequences, heads, tokens, width = shape
    given = [torch.randn(shape, device=HERE.device, dtype=HERE.matrix_type, requires_grad=True) for _ in range(3)]
    grad = torch.randn_like(given[0])

    def ours(*inputs: Tensor) -> Tensor:
        return scaled_dot_product_attention(*inputs, dropout_p=P, is_causal=is_causal)

    def theirs(*inputs: Tensor) -> Tensor:
        with sdpa_kernel(HERE.backend):
            return F.scaled_dot_product_attention(*inputs, dropout_p=P, is_causal=is_causal)

    runs = {HERE.flash: theirs, **{name: in_form(name, ours) for name in FORMS}}
    sides: dict[str, Callable[[], Any]] = {}
    for name, run in runs.items():
        sides[f"{name}, forward"] = lambda run=run: run(*[tensor.detach() for tensor in given])
        sides[f"{name}, both"] = lambda run=run: torch.autograd.grad(run(*given), given, grad)
    causal = ", causal" if is_causal else ""
    title(f"attention, {given[0].dtype}, {sequences} x {tokens:,} tokens, {heads} heads {width} wide, p = {P}{causal}")
    found = milliseconds(sides, rounds)
    # Two products of matrices forward and five backward, of 2 operations each.
    product = 2.0 * sequences * heads * tokens**2 * width / (2 if is_causal else 1)
    for name, time in found.items():
        work = product * (2 if name.endswith("forward") else 7)
        print(f"  {name:58} {time:8.3f} ms   {work / time / 1e9:8.0f} TFLOP/s")
    for name, what in itertools.product(FORMS, ("forward", "both")):
        ratio = found[f"{HERE.flash}, {what}"] / found[f"{name}, {what}"]
        verdict(f"{name}: x the speed of {HERE.flash}, {what}", ratio, ">=", BAR)
    for name, of_mask in {"regenerating": 0, "bits": tokens // 8}.items():
        kept = HERE.kept(lambda run=runs[name]: run(*given)) / (sequences * heads * tokens)
        verdict(f"{name}: bytes a row of {tokens:,} weights kept", kept, "<=", of_mask + OF_ROW)
    HERE.free()
