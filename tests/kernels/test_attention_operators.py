"""The operators of attention by tiles are what PyTorch expects, and their portable form has the gradients it should."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dropkit import random
from dropkit.functional import scaled_dot_product_attention
from dropkit.kernels import attention as operators
from dropkit.kernels.attention import Mask, Weights

KEY = 0x720F_0000_1234_5678
RATE = torch.tensor(random.threshold(0.3))
WHOLE = Weights(True, 5, 34)
PACKED = Weights(False, 5, 34, *(torch.tensor(ends, dtype=torch.int32) for ends in ((0, 5, 9), (0, 34, 40))))
NUMBERED = Mask(torch.tensor(KEY), torch.tensor([1, 2]), RATE, torch.tensor([70, 10]))
CASES = {
    "plain": (Mask(torch.tensor(KEY), torch.tensor(0), RATE), WHOLE),
    "several keys": (Mask(torch.tensor([KEY, 3]), torch.tensor([0]), RATE), WHOLE),
    "numbered": (NUMBERED, WHOLE),
    "packed": (Mask(torch.tensor(KEY), torch.tensor(0), RATE), PACKED),
}


def inputs(weights: Weights) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, queries, keys = (2, 5, 34) if weights.query_ends is None else (1, 9, 40)
    return [
        torch.randn(first, heads, rows, 8, generator=generator) for heads, rows in ((4, queries), (2, keys), (2, keys))
    ]


@pytest.mark.parametrize("name", CASES)
def test_operators_keep_what_pytorch_expects(name: str) -> None:
    mask, weights = CASES[name]
    query, key, value = inputs(weights)
    rest = (query, key, value, None, None, *mask, *weights, 0.5)
    output, logs = operators.attention(*rest)
    for operator, arguments in (
        (operators.attention, rest),
        (operators.attention_backward, (torch.ones_like(output), output, logs, *rest)),
        (operators.attention_bits, (query, *mask, *weights)),
    ):
        outcomes = torch.library.opcheck(operator, arguments)
        assert set(outcomes.values()) == {"SUCCESS"}


def test_portable_operations_have_the_output_and_the_gradients_of_all_weights() -> None:
    mask, weights = CASES["plain"]
    given = [tensor.requires_grad_() for tensor in inputs(weights)]
    options: dict[str, Any] = {"dropout_p": 0.3, "is_causal": True, "enable_gqa": True, "scale": 0.5}
    want = scaled_dot_product_attention(*given, dropout_key=KEY, **options)
    rest = (*(tensor.detach() for tensor in given), None, None, *mask, *weights, 0.5)
    output, logs = operators.attention(*rest)
    torch.testing.assert_close(output, want)
    gradients = operators.attention_backward(torch.ones_like(output), output, logs, *rest)
    for one, other in zip(gradients, torch.autograd.grad(want.sum(), given), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", CASES)
def test_bits_are_the_mask(name: str) -> None:
    mask, weights = CASES[name]
    query, *_ = inputs(weights)
    bits = operators.attention_bits(query, *mask, *weights._replace(is_causal=False))
    kept = (bits[0, :, :, :5].mT[..., None] >> torch.arange(32) & 1).flatten(2)[..., :34].bool()
    stream, step = (1 if name == "numbered" else 0), 2**32 if name == "packed" else 5
    for head in range(4):
        row = head * step + (70 if name == "numbered" else 0)
        want = random.keep_mask(KEY, (5, 34), 0.3, stream=stream, offset=(row, 0), full_shape=(2**40, 34))
        assert torch.equal(kept[head], torch.from_numpy(want))
