"""The layer inside real models, in the place of PyTorch's."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dropkit


def replaced(model: nn.Module) -> nn.Module:
    """A copy of the model with dropkit's layer wherever PyTorch's was."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, dropkit.nn.Dropout(child.p, child.inplace).train(child.training))
    return model


def transformer(p: float = 0.1) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=p, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


def network(p: float = 0.3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(p, inplace=True), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(4 * 36, 10), nn.Dropout(p), nn.Linear(10, 1),
    )  # fmt: skip


MODELS = {"transformer": (transformer, (3, 7, 16)), "network": (network, (5, 1, 8, 8))}


@pytest.mark.parametrize("name", MODELS)
def test_state_and_evaluation_are_those_of_the_original(name: str) -> None:
    build, shape = MODELS[name]
    original = build().eval()
    model = replaced(original)
    assert sum(type(module) is dropkit.nn.Dropout for module in model.modules()) >= 2
    assert not any(type(module) is nn.Dropout for module in model.modules())
    assert model.state_dict().keys() == original.state_dict().keys()
    x = torch.randn(shape)
    assert torch.equal(model(x), original(x))
    with torch.no_grad():
        assert torch.equal(model(x), original(x))


@pytest.mark.parametrize("name", MODELS)
def test_without_dropping_training_is_that_of_the_original(name: str) -> None:
    build, shape = MODELS[name]
    original = build(0.0)
    model, x = replaced(original), torch.randn(shape)
    for net in (original, model):
        net(x).square().mean().backward()
    for one, other in zip(original.parameters(), model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("name", MODELS)
def test_training_follows_the_seed_and_lowers_the_loss(name: str) -> None:
    build, shape = MODELS[name]
    torch.manual_seed(1)
    initial, x = replaced(build()), torch.randn(shape)
    histories = []
    for seed in (2, 2, 3):
        torch.manual_seed(seed)
        model = copy.deepcopy(initial)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        losses = []
        for _ in range(8):
            loss = (model(x) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        histories.append(losses)
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]
    assert histories[0][-1] < 0.9 * histories[0][0]


def test_gradients_of_dropped_units_vanish() -> None:
    model = nn.Sequential(nn.Linear(6, 40), dropkit.nn.Dropout(0.5), nn.Linear(40, 1))
    hidden: list[Tensor] = []
    model[1].register_forward_hook(lambda _module, _inputs, output: hidden.append(output))
    model(torch.randn(1, 6)).sum().backward()
    dropped = hidden[0][0] == 0
    assert 0 < dropped.sum() < 40
    assert (model[0].weight.grad[dropped] == 0).all()
    assert (model[0].weight.grad[~dropped] != 0).all()
    assert (model[2].weight.grad[0, dropped] == 0).all()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_model_has_the_gradients_of_a_plain_one(reentrant: bool) -> None:
    original = replaced(transformer(0.5))
    x = torch.randn(2, 5, 16, requires_grad=True)
    gradients = []
    for checkpointed in (True, False):
        torch.manual_seed(4)
        model = copy.deepcopy(original)
        out = checkpoint(model, x, use_reentrant=reentrant) if checkpointed else model(x)
        out.sin().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_model_has_the_gradients_of_an_eager_one(backend: str) -> None:
    torch._dynamo.reset()
    original = replaced(transformer(0.5))
    x = torch.randn(2, 5, 16)
    gradients = []
    for compiled in (True, False):
        torch.manual_seed(4)
        model = copy.deepcopy(original)
        run = torch.compile(model, backend=backend) if compiled else model
        run(x).sin().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    if backend == "aot_eager":  # Inductor draws keys, and computes attention's own dropout, in its own way
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)
    assert all(gradient.isfinite().all() for gradient in gradients[0])


def test_data_parallel_replicas_and_shared_layers() -> None:
    shared = dropkit.nn.Dropout(0.5)
    model = nn.Sequential(shared, nn.Linear(8, 8), shared)
    assert len(list(model.modules())) == 3
    out = model(torch.ones(4, 8))
    assert out.shape == (4, 8)
    shared.p = 1.0
    assert torch.equal(model(torch.ones(4, 8)), torch.zeros(4, 8))
