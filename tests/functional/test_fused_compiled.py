"""Compiled dropout with what stands around it: whole graphs, the numbers of eager code, nothing compiled twice."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch.func import grad, jvp, vmap

from dropkit.functional import activation_dropout, dropout, dropout_add

pytestmark = [
    # Of PyTorch's own making, while it traces and scripts.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"),
]

INDUCTOR = pytest.param("inductor", marks=pytest.mark.slow)
BACKENDS = pytest.mark.parametrize("backend", ["eager", "aot_eager", INDUCTOR])
X, RESIDUAL, BIAS = torch.randn(6, 40), torch.randn(6, 40), torch.randn(40)
CALLS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "relu": lambda x, _, bias, key: activation_dropout(x, "relu", 0.3, bias=bias, key=key),
    "gelu": lambda x, _, bias, key: activation_dropout(x, "gelu", 0.3, bias=bias, key=key),
    "silu": lambda x, _, __, key: activation_dropout(x, "silu", 0.3, key=key),
    "add": lambda x, residual, _, key: dropout_add(x, residual, 0.3, key=key),
    "half": lambda x, _, bias, key: activation_dropout(x.half(), "relu", 0.3, bias=bias.half(), key=key),
    "slices": lambda x, residual, _, key: dropout_add(x, residual, 0.3, key=key + torch.arange(6)),
    "twice": lambda x, _, __, key: dropout_add(x, x, 0.3, key=key),
    "transposed": lambda x, residual, _, key: dropout_add(x.T, residual.T, 0.3, key=key),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def outcome(call: Callable[..., Tensor]) -> tuple[Tensor | None, ...]:
    """Return a result and its gradients."""
    inputs = [tensor.clone().requires_grad_() for tensor in (X, RESIDUAL, BIAS)]
    found = call(*inputs, torch.tensor(-7))
    found.float().square().sum().backward()
    return found.detach(), *(tensor.grad for tensor in inputs)


@BACKENDS
@pytest.mark.parametrize("name", CALLS)
def test_compiled_equals_eager(name: str, backend: str) -> None:
    wanted = outcome(CALLS[name])
    found = outcome(torch.compile(CALLS[name], backend=backend, fullgraph=True))
    assert torch.equal(found[0], wanted[0])
    assert found[0].stride() == wanted[0].stride()
    tolerance = 1e-3 if name == "half" else 1e-5  # inductor rounds less often than eager code
    for one, other in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


class Recorder:
    """A back end that runs graphs eagerly after PyTorch's default partition, and keeps them."""

    def __init__(self) -> None:
        self.forward: list[torch.fx.GraphModule] = []
        self.backward: list[torch.fx.GraphModule] = []

    def backend(self) -> Any:
        def keep(graphs: list[torch.fx.GraphModule]) -> Callable[..., Any]:
            return lambda graph, _: graphs.append(graph) or make_boxed_func(graph.forward)

        return aot_autograd(
            fw_compiler=keep(self.forward), bw_compiler=keep(self.backward), decompositions=select_decomp_table(),
            partition_fn=min_cut_rematerialization_partition,
        )  # fmt: skip


def operators(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if "dropkit" in str(node.target)]


def kept(graph: torch.fx.GraphModule) -> list[torch.dtype]:
    """Return the types of the tensors with axes that a forward graph hands to its backward graph."""
    output = next(node for node in graph.graph.nodes if node.op == "output")
    made = [node.meta["val"] for node in output.args[0] if node is not None and node.op != "placeholder"]
    return [value.dtype for value in made[1:] if value.dim()]


def test_graphs_have_one_operator_a_pass_and_keep_no_mask() -> None:
    recorder = Recorder()
    call = torch.compile(activation_dropout, backend=recorder.backend(), fullgraph=True)
    x = X.clone().requires_grad_()
    call(x, "relu", 0.5).sum().backward()
    assert operators(recorder.forward[0]) == ["dropkit.activation_dropout.default"]
    assert operators(recorder.backward[0]) == []  # the compiler's own, to be fused with what comes before and after
    assert kept(recorder.forward[0]) == [torch.float32]  # the result
    call(x, "gelu", 0.5).sum().backward()
    assert operators(recorder.forward[1]) == ["dropkit.activation_dropout.default"]
    assert operators(recorder.backward[1]) == ["dropkit.activation_dropout_backward.default"]
    assert kept(recorder.forward[1]) == []  # the input, which is there
    torch.compile(dropout_add, backend=recorder.backend(), fullgraph=True)(x, RESIDUAL, 0.5).sum().backward()
    assert operators(recorder.forward[2]) == ["dropkit.dropout_add.default"]
    assert operators(recorder.backward[2]) == ["dropkit.dropout.default"]
    assert kept(recorder.forward[2]) == []


def test_drawn_keys_and_tensors_and_sizes_compile_once() -> None:
    recorder = Recorder()
    drawn = torch.compile(lambda x: activation_dropout(x, "relu", 0.5), backend=recorder.backend(), fullgraph=True)
    x = torch.ones(500, requires_grad=True)
    outs = [drawn(x) for _ in range(3)]
    assert len(recorder.forward) == 1
    assert not torch.equal(outs[0], outs[1])
    outs[2].sum().backward()
    assert torch.equal(x.grad, outs[2].detach())
    given = torch.compile(
        lambda x, residual, p, key, stream: dropout_add(x, residual, p, key=key, stream=stream),
        backend=recorder.backend(), fullgraph=True, dynamic=True,
    )  # fmt: skip
    for step, shape in enumerate(((2, 3), (4, 9), (7, 16), (5, 5))):
        x, residual = torch.randn(shape), torch.randn(shape)
        address = torch.tensor(step / 4, dtype=torch.float64), torch.tensor(step - 2), torch.tensor(step)
        want = residual + dropout(x, address[0], key=address[1], stream=address[2])
        assert torch.equal(given(x, residual, *address), want)
    assert len(recorder.forward) == 2


TRANSFORMED: dict[str, Callable[[Tensor], Any]] = {
    "vmap": lambda x: vmap(lambda row, key: activation_dropout(row, "relu", 0.4, key=key))(x, torch.arange(6)),
    "grad of grad": grad(lambda x: grad(lambda v: activation_dropout(v, "silu", 0.4, key=3).sum())(x).square().sum()),
    "jvp": lambda x: jvp(lambda v: dropout_add(v, v * v, 0.4, key=3), (x,), (x + 1,)),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_compiled_transforms_equal_eager_ones(name: str) -> None:
    found = torch.compile(TRANSFORMED[name], backend="eager", fullgraph=True)(X)
    torch.testing.assert_close(found, TRANSFORMED[name](X))


def test_infinite_gradients_stop_where_relu_does() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0, torch.nan]).repeat(20)
    call = torch.compile(activation_dropout, backend="eager", fullgraph=True)
    gradients = []
    for function in (activation_dropout, call):
        leaf = x.clone().requires_grad_()
        function(leaf, "relu", 0.5, key=torch.tensor(3)).backward(torch.full_like(x, torch.inf))
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
