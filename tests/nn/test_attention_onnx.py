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


class WithAndWithoutWeights(torch.nn.Module):
    """Both in one graph, for making one takes most of the time here."""

    def __init__(self, layer: MultiheadAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *tensors: Tensor, **options: Tensor) -> tuple[Tensor, ...]:
        output, weights = self.layer(*tensors, **options, need_weights=True)
        alone, nothing = self.layer(*tensors, **options, need_weights=False)
        assert nothing is None
        return output, weights, alone


@pytest.mark.parametrize("masked", [True, False])
def test_attention(masked: bool) -> None:
    torch.manual_seed(0)
    both = WithAndWithoutWeights(MultiheadAttention(WIDTH, 2, 0.4, batch_first=True)).eval()
    tensors = (data(1), data(2), data(3))
    options: dict[str, Any] = {"key_padding_mask": PADDING, "attn_mask": CAUSAL} if masked else {}
    for one, other in zip(run(both, tensors, **options), both(*tensors, **options), strict=True):
        torch.testing.assert_close(one, other.detach())


class NormFirstAndLast(torch.nn.Module):
    """Two encoders of two layers in one graph, for the same reason."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            TransformerEncoderLayer(WIDTH, 2, 16, 0.4, "gelu", batch_first=True, norm_first=norm_first)
            for norm_first in (True, False)
        ]
        self.encoders = torch.nn.ModuleList(
            torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False) for layer in layers
        )

    def forward(self, x: Tensor, **options: Any) -> tuple[Tensor, ...]:
        return tuple(encoder(x, **options) for encoder in self.encoders)


@pytest.mark.parametrize("masked", [True, False])
def test_encoders_of_two_layers(masked: bool) -> None:
    torch.manual_seed(0)
    both = NormFirstAndLast().eval()
    options: dict[str, Any] = {"mask": CAUSAL, "src_key_padding_mask": PADDING} if masked else {}
    options["is_causal"] = masked  # left out, PyTorch's encoder reads the mask to find out, which is not exported
    for one, other in zip(run(both, (data(1),), **options), both(data(1), **options), strict=True):
        torch.testing.assert_close(one, other.detach())
