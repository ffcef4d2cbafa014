"""Attention by tiles is one operator to the compiler, with the mask of eager code; portable operations serve here."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dropkit.functional import attention_tiles, scaled_dot_product_attention
from dropkit.functional.attention_tiles import _has_kernels
from dropkit.kernels.gpu_attention import attention_form

KEY = 0x720F_0000_1234_5678


def as_on_a_gpu(query: Tensor, *rest: Any) -> bool:
    return _has_kernels(query.device, query.dtype, attention_form(query, *rest))


@pytest.mark.parametrize("has_bits", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_compiled_code_has_no_break_and_the_gradients_of_eager_code(
    monkeypatch: pytest.MonkeyPatch, has_bits: bool, is_causal: bool
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(attention_tiles.gpu, "why_portable", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(attention_tiles, "is_served", as_on_a_gpu)
    monkeypatch.setattr(attention_tiles, "_MOST_BITS", 2**40 if has_bits else 0)
    given = [torch.randn(2, heads, 9, 8, requires_grad=True) for heads in (4, 2, 2)]
    options: dict[str, Any] = {"dropout_p": 0.3, "dropout_key": KEY, "is_causal": is_causal, "enable_gqa": True}

    def attend(*inputs: Tensor) -> Tensor:
        return scaled_dot_product_attention(*inputs, **options).sin()

    found = torch.compile(attend, backend="aot_eager", fullgraph=True)(*given)
    with monkeypatch.context() as context:
        context.setattr(attention_tiles, "is_served", lambda *_: False)
        wanted = attend(*given)
    torch.testing.assert_close(found, wanted)
    pairs = zip(torch.autograd.grad(found.sum(), given), torch.autograd.grad(wanted.sum(), given), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other)
