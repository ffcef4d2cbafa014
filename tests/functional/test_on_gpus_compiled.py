"""Every public function and layer, compiled for a GPU of shapes alone: one graph, all of which is on it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.functional.test_on_gpus import CALLS
from tests.helpers.gpus import compiled_on_gpu, moved

pytestmark = pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN:UserWarning")

# The compiler takes PyTorch's recurrent layers, and so those made of them, where it is told to.
RECURRENT = {name for name in CALLS if "LSTM" in name or "GRU" in name}
FEW = "nn.TransformerEncoderLayer", "layer_norm, with", "nn.DropBlock2d", "gaussian_dropout", "attention, causal"


def marks(name: str) -> list[Any]:
    is_of_few = any(part in name for part in FEW)
    return [pytest.mark.slow] if is_of_few else [pytest.mark.slow, pytest.mark.exhaustive]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in CALLS])
def test_all_of_the_graph_is_on_the_gpu(name: str) -> None:
    torch._dynamo.reset()
    call, given = copy.deepcopy(CALLS[name])
    with compiled_on_gpu() as compiled, torch._dynamo.config.patch(allow_rnn=name in RECURRENT):
        call, given = moved((call, given))
        given = pytree.tree_map(lambda each: each.detach() if isinstance(each, Tensor) else each, given)
        found = compiled(lambda: call(**given))()
    assert all(each.is_cuda for each in pytree.tree_leaves(found) if isinstance(each, Tensor))


def test_what_is_on_the_cpu_is_found() -> None:
    torch._dynamo.reset()
    with compiled_on_gpu() as compiled:
        x = torch.ones(3, device="cuda")
        with pytest.raises(Exception, match="arange"):
            compiled(lambda: x + torch.arange(3.0).to("cuda"))()
