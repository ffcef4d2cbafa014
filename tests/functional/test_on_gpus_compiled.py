"""Every public function and layer, compiled for a GPU of shapes alone: one graph, all of which is on it.

What is on the CPU waits for a copy, the compiler leaves it out of CUDA graphs, and an operator that is in one would
read it once and for all.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dropkit import functional, nn
from dropkit.schedules import Linear, RateScheduler
from tests.functional.test_on_gpus import CALLS
from tests.helpers.gpus import compiled_on_gpu, is_on_cpu, moved

pytestmark = pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN:UserWarning")

# The compiler takes PyTorch's recurrent layers, and so those made of them, where it is told to.
RECURRENT = {name for name in CALLS if "LSTM" in name or "GRU" in name}
FEW = "nn.TransformerEncoderLayer", "layer_norm, with", "nn.DropBlock2d", "gaussian_dropout", "attention, causal"


def marks(name: str) -> list[Any]:
    is_of_few = any(part in name for part in FEW)
    return [pytest.mark.slow] if is_of_few else [pytest.mark.slow, pytest.mark.exhaustive]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in CALLS])
def test_all_of_the_graph_is_on_the_gpu(name: str) -> None:
    call, given = copy.deepcopy(CALLS[name])
    with compiled_on_gpu() as compiled, torch._dynamo.config.patch(allow_rnn=name in RECURRENT):
        call, given = moved((call, given))
        given = pytree.tree_map(lambda each: each.detach() if isinstance(each, Tensor) else each, given)
        found, nodes = compiled(lambda: call(**given))
    assert nodes
    assert [(node.format_node(), node.stack_trace) for node in nodes if is_on_cpu(node)] == []
    assert all(each.is_cuda for each in pytree.tree_leaves(found) if isinstance(each, Tensor))


def scheduled(layer: nn.Dropout) -> Callable[[Tensor], Any]:
    RateScheduler(layer, Linear(0.1, 0.5, 10))  # which leaves the rate on the CPU, where the layer's is
    return layer


KEY, STREAM, RATE = torch.tensor(5), torch.tensor(3), torch.tensor(0.3, dtype=torch.float64)
ON_CPU: dict[str, Callable[[], Callable[[Tensor], Any]]] = {
    "rate of a schedule": lambda: scheduled(nn.Dropout(0.1)),
    "rate of a schedule, channels": lambda: scheduled(nn.Dropout2d(0.1)),
    "rate": lambda: lambda x: functional.dropout(x, RATE),
    "key": lambda: lambda x: functional.dropout(x, 0.3, key=KEY),
    "key of narrow rows": lambda: lambda x: functional.dropout(x[..., :3], 0.3, key=KEY),
    "stream": lambda: lambda x: functional.dropout(x, 0.3, key=1, stream=STREAM),
    "all, added": lambda: lambda x: functional.dropout_add(x, x.sin(), RATE, key=KEY, stream=STREAM),
    "all, zoneout": lambda: lambda x: functional.zoneout(x, x.sin(), RATE, key=KEY, stream=STREAM),
    "all, Gaussian": lambda: lambda x: functional.gaussian_dropout(x, RATE, key=KEY, stream=STREAM),
    "all, attention": lambda: (
        lambda x: functional.scaled_dot_product_attention(
            x, x.sin(), x.cos(), dropout_p=RATE, dropout_key=KEY, stream=STREAM
        )
    ),
}


@pytest.mark.parametrize("name", ON_CPU)
def test_numbers_on_the_cpu_are_copied_before_an_operator_reads_them(name: str) -> None:
    call = ON_CPU[name]()
    with compiled_on_gpu() as compiled:
        x = torch.empty(2, 3, 8, 64, device="cuda")
        _, nodes = compiled(lambda: call(x))
    ours = [node for node in nodes if str(node.target).startswith("dropkit.")]
    assert ours
    assert not any(is_on_cpu(given) for node in ours for given in node.all_input_nodes)
    assert any(is_on_cpu(node) for node in nodes)
