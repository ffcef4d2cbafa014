"""Switching compiled models."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from dropkit.sites import switch
from tests.sites.networks import Block
from tests.sites.switched import Gate, X


class Attentive(nn.Module):
    """Attention that gates its rate, in operations that are compiled as one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.norm = nn.Linear(8, 24), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inputs(self.norm(x)).view(3, 5, 3, 8).unbind(2)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5 if self.training else 0.0)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.attention = Block(0.5), Attentive()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.attention(self.block(x)), 0.5, self.training)


@pytest.fixture
def fresh_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("form", ["wrapper", "inner", "function"])
def test_compiled_models_are_one_graph_and_not_compiled_again_from_call_to_call(form: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    torch.manual_seed(1)
    model, x = Stack().eval(), torch.randn(3, 5, 8)

    def step(x: Tensor) -> Tensor:
        return model(x)

    compiled = torch.compile(step if form == "function" else model, backend=counter, fullgraph=True)
    plain = compiled(x)
    handle = switch(compiled if form == "wrapper" else model, "on")
    if form != "wrapper":
        handle.learn(x)  # which the hook of the wrapper does on its own, outside of the graph
    outputs = [compiled(x) for _ in range(2)]
    compilations = counter.frame_count
    outputs += [compiled(x) for _ in range(4)]
    assert counter.frame_count == compilations
    assert len({float(output.detach().sum()) for output in outputs}) == 6
    assert 0.3 < float((outputs[-1] == 0).float().mean()) < 0.7
    assert [site.name for site in handle.sites] == ["block.drop", "attention#0", "#0"]
    assert not any(module.training for module in model.modules())
    handle.close()
    assert torch.equal(compiled(x), plain)
    model.train().attention.norm.eval()
    assert not torch.equal(compiled(x), plain)
    with switch(model, "off") as handle:
        handle.learn(x)
        assert torch.equal(compiled(x), plain)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model_that_has_not_learned_breaks_its_graph_once() -> None:
    model, x = Stack().eval(), torch.randn(3, 5, 8)
    compiled = torch.compile(model, backend="eager")
    with switch(model, "on"):
        outputs = [compiled(x) for _ in range(3)]
    assert len({float(output.detach().sum()) for output in outputs}) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_masks_that_have_to_be_left_out_raise() -> None:
    model = Gate(lambda self, x: x * (torch.rand_like(x) > 0.5) / 0.5)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with switch(compiled, "off") as handle:
        handle.learn(X)
        with pytest.raises(Exception, match="cannot be switched off in compiled code"):
            compiled(X)
