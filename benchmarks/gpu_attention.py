"""Attention with dropout on a GPU against PyTorch's flash backend with dropout: rows of benchmarks/gpu.py.

Both forms are timed: the mask drawn where it is needed, and read from bits that a kernel has drawn beside, whose time
counts.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gpu_timing import P, milliseconds, verdict
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dropkit import random
from dropkit.functional import attention_tiles, scaled_dot_product_attention

__all__ = ["attention"]

BAR = 0.8
TOKENS = {4096: 4, 16384: 1}  # and sequences of so many
HEADS = 16
WIDTHS = (64, 128)
FORMS = {"regenerating": 0, "bits": 2**62}  # up to how many weights of a call bits are drawn


def check() -> None:
    """Compare masks with that of the definition, in both forms; a wrong one ends the process."""
    shape = (2, 3, 1000, 128)
    query, key = torch.zeros(2, 3, 1000, 64, device="cuda"), torch.zeros(2, 3, 128, 64, device="cuda")
    value = torch.eye(128, device="cuda").expand(2, 3, 128, 128)
    want = torch.from_numpy(random.keep_mask(77, shape, P))
    for name in FORMS:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            given = (tensor.to(dtype) for tensor in (query, key, value))
            found = of_form(name, lambda *a: scaled_dot_product_attention(*a, dropout_p=P, dropout_key=77))(*given)
            if not torch.equal((found > 0).cpu(), want):
                sys.exit(f"an attention mask on the GPU is not that of the definition: {name}, {dtype}")
    print("\nattention masks\n  GPU = NumPy, bit for bit, in both forms", flush=True)


def of_form(name: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a call in one of the forms."""

    def in_form(*arguments: Any) -> Tensor:
        attention_tiles._MOST_BITS = FORMS[name]
        return run(*arguments)

    return in_form


def attention(rounds: int) -> None:
    """Print all rows."""
    check()
    for width in WIDTHS:
        for is_causal in (False, True):
            for tokens, sequences in TOKENS.items():
                shape = (sequences, HEADS, tokens, width)
                given = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
                grad = torch.randn_like(given[0])
                sides = _sides(given, grad, is_causal)
                causal = ", causal" if is_causal else ""
                print(f"\nattention, bf16, {sequences} x {tokens} tokens, {HEADS} heads {width} wide, p = {P}{causal}")
                found = milliseconds(sides, rounds)
                # Two products of matrices forward and five backward, of 2 operations each.
                weights = 2.0 * sequences * HEADS * tokens**2 * width / (2 if is_causal else 1)
                for name, time in found.items():
                    work = weights * (2 if name.endswith("forward") else 7)
                    print(f"  {name:58} {time:8.3f} ms   {work / time / 1e9:8.0f} TFLOP/s", flush=True)
                for name in FORMS:
                    for what in ("forward", "both"):
                        ratio = found[f"flash, {what}"] / found[f"{name}, {what}"]
                        verdict(f"{name}: x the speed of PyTorch's flash, {what}", ratio, ">=", BAR)
                del given, grad, sides
                torch.cuda.empty_cache()


def _sides(given: list[Tensor], grad: Tensor, is_causal: bool) -> dict[str, Callable[[], Any]]:
    def flash(*inputs: Tensor, p: float = P) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(*inputs, dropout_p=p, is_causal=is_causal)

    def ours(*inputs: Tensor) -> Tensor:
        return scaled_dot_product_attention(*inputs, dropout_p=P, is_causal=is_causal)

    runs = {name: of_form(name, ours) for name in FORMS}
    runs |= {"flash": flash, "flash without dropout": lambda *inputs: flash(*inputs, p=0.0)}
    plain = [tensor.detach() for tensor in given]
    sides: dict[str, Callable[[], Any]] = {}
    for name, run in runs.items():
        sides[f"{name}, forward"] = lambda run=run: run(*plain)
        sides[f"{name}, both"] = lambda run=run: torch.autograd.grad(run(*given), given, grad)
    return sides
