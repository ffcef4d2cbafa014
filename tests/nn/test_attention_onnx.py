"""Layers that attend, exported to ONNX in evaluation and run by its runtime."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from dropkit.nn import MultiheadAttention, TransformerEncoderLayer

BATCH, LENGTH, WIDTH = 3, 5, 8
PADDING = torch.arange(LENGTH) >= torch.tensor([5, 3, 1])[:, None]
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"),  # PyTorch's
]


def data(seed: int) -> Tensor:
    return torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))


def run(module: torch.nn.Module, tensors: tuple[Tensor, ...], **options: Any) -> list[Tensor]:
    """Export a module, and return what the runtime computes."""
    from onnxruntime import InferenceSession

    buffer = io.BytesIO()
    torch.onnx.export(module, tensors, kwargs=options, dynamo=True, verbose=False).save(buffer)
    session = InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    given = [*tensors, *(value for value in options.values() if isinstance(value, Tensor))]
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, dict(zip(names, (each.numpy() for each in given), strict=True)))
    return [torch.from_numpy(each) for each in found]


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_attention(need_weights: bool, masked: bool) -> None:
    torch.manual_seed(0)
    layer = MultiheadAttention(WIDTH, 2, 0.4, batch_first=True).eval()
    tensors = (data(1), data(2), data(3))
    options: dict[str, Any] = {"key_padding_mask": PADDING, "attn_mask": CAUSAL} if masked else {}
    found = run(layer, tensors, **options, need_weights=need_weights)
    want = [each.detach() for each in layer(*tensors, **options, need_weights=need_weights) if each is not None]
    assert len(found) == len(want) == 1 + need_weights
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_an_encoder_of_two_layers(norm_first: bool, masked: bool) -> None:
    torch.manual_seed(0)
    layer = TransformerEncoderLayer(WIDTH, 2, 16, 0.4, "gelu", batch_first=True, norm_first=norm_first)
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    options: dict[str, Any] = {"mask": CAUSAL, "src_key_padding_mask": PADDING} if masked else {}
    options["is_causal"] = masked  # left out, PyTorch's encoder reads the mask to find out, which is not exported
    (found,) = run(encoder, (data(1),), **options)
    torch.testing.assert_close(found, encoder(data(1), **options).detach())
