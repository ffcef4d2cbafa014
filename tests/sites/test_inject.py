"""Masks read out of a model and handed in."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

import dropkit.functional as ours
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.sites import accelerate, address, inject, record
from tests.sites.networks import Plain
from tests.sites.zoo import MODELS, Model

CASES = [pytest.param(model, id=name) for name, model in MODELS.items() if name != "scripted"]


def tensors(found: Any) -> list[Tensor]:
    values = [getattr(found, name) for name in vars(found)] if hasattr(found, "__dataclass_fields__") else found
    return [leaf for leaf in torch.utils._pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def step(network: nn.Module, model: Model) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs and gradients of a forward."""
    network.zero_grad()
    outputs = tensors(network(*model.inputs()))
    losses = [output.double().square().sum() for output in outputs if output.requires_grad]
    if losses:
        torch.stack(losses).sum().backward()
    return outputs, [parameter.grad for parameter in network.parameters()]


@pytest.mark.parametrize("model", CASES)
def test_a_step_is_replayed_exactly(model: Model) -> None:
    network = model.build()
    buffers = copy.deepcopy(list(network.buffers()))
    with record(network) as masks:
        outputs, gradients = step(network, model)
    assert len(masks) >= sum(site.calls for site in model.sites if site.in_train)
    for buffer, before in zip(network.buffers(), buffers, strict=True):
        buffer.data.copy_(before)
    torch.manual_seed(99)
    with inject(network, masks):
        again, same = step(network, model)
    assert all(map(torch.equal, outputs, again))
    for one, other in zip(gradients, same, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize("model", CASES)
def test_names_are_those_of_find(model: Model) -> None:
    network = model.build()
    with record(network) as masks:
        network(*model.inputs())
    if model.name != "compiled":
        names = {name for name, _ in masks}
        assert {site.name for site in (*model.sites, *model.masks) if site.in_train and site.p is not None} <= names


def test_masks_are_those_that_were_applied() -> None:
    model, x = Plain(), torch.ones(5, 6)
    with record(model) as masks:
        y = model(x)
    assert list(masks) == [("drop", 0), ("#0", 0)]
    hidden = torch.where(masks["drop", 0], model.first(x) / 0.75, 0.0)
    torch.testing.assert_close(y, torch.where(masks["#0", 0], model.second(hidden) / 0.5, 0.0))


def test_every_call_has_its_own_mask() -> None:
    model, x = Plain(), torch.ones(5, 6)
    with record(model) as masks:
        one, two = model(x), model(x)
    assert list(masks) == [("drop", 0), ("#0", 0), ("drop", 1), ("#0", 1)]
    with inject(model, masks):
        assert torch.equal(model(x), one)
        assert torch.equal(model(x), two)


def test_masks_can_be_saved() -> None:
    model, x = Plain(), torch.ones(5, 6)
    with record(model) as masks:
        y = model(x)
    stream = io.BytesIO()
    torch.save(masks, stream)
    stream.seek(0)
    with inject(model, torch.load(stream)):
        assert torch.equal(model(x), y)


def test_all_masks_of_a_layer_average_to_no_dropout() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(x)

    model, x = One(), torch.randn(1, 3, dtype=torch.float64)
    outputs = []
    for number in range(8):
        mask = torch.tensor([[bool(number >> bit & 1) for bit in range(3)]])
        with inject(model, {"drop": mask}):
            outputs.append(model(x))
    torch.testing.assert_close(torch.stack(outputs).mean(0), x)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("preserve", [True, False])
def test_recomputed_forwards_get_the_same_masks(use_reentrant: bool, preserve: bool) -> None:
    class Checkpointed(Plain):
        is_checkpointed = True

        def forward(self, x: Tensor) -> Tensor:
            if not self.is_checkpointed:
                return super().forward(x).square()
            options = {"use_reentrant": use_reentrant, "preserve_rng_state": preserve}
            return checkpoint(super().forward, x, **options).square()

    model, x = Checkpointed().double(), torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    with record(model) as masks:
        model(x).sum().backward()
    assert len(masks) == 2
    model.is_checkpointed = False
    first, x.grad = x.grad, None
    with inject(model, masks):
        model(x).sum().backward()
    torch.testing.assert_close(x.grad, first, rtol=1e-12, atol=1e-12)


def test_functions_without_a_mask_are_replayed_by_their_key() -> None:
    class Activation(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ours.activation_dropout(x, "relu", 0.5) + ours.activation_dropout(x, "relu", 0.5, key=3)

    model, x = Activation(), torch.randn(5, 6)
    with record(model) as masks:
        y = model(x)
    assert [type(key) for key in masks.values()] == [int]
    with inject(model, masks):
        assert torch.equal(model(x), y)
    with (
        pytest.raises(UnsupportedError, match="activation_dropout takes no mask"),
        inject(model, {"#0": torch.ones(5, 6).bool()}),
    ):
        model(x)


def test_hand_written_masks_and_other_noise_are_replayed() -> None:
    class Hand(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept = torch.empty_like(x).bernoulli_(0.5)
            return x * kept * 2 + torch.randn_like(x)

    model, x = Hand(), torch.randn(5, 6)
    with record(model) as masks:
        y = model(x)
    assert list(masks) == [("~0", 0), ("~1", 0)]
    with inject(model, masks):
        assert torch.equal(model(x), y)
    for wrong, error, message in (
        (torch.ones(3), ArgumentError, r"masks\[\('~0', 0\)\].*of shape \(5, 6\)"),
        (torch.ones(5, 6).bool(), ArgumentError, r"torch\.bool on cpu"),
        (7, ArgumentTypeError, "for a random operator"),
    ):
        with pytest.raises(error, match=message), inject(model, {"~0": wrong}):
            model(x)


def test_accelerated_and_addressed_models() -> None:
    model, x = Plain(), torch.randn(5, 6)
    handle = accelerate(model)
    with record(model) as masks:
        y = model(x)
    with inject(model, masks):
        assert torch.equal(model(x), y)
    handle.remove()
    handle = address(model, seed=7)
    expected = model(x)
    handle.step()
    handle.load_state_dict({**handle.state_dict(), "last_step": 0, "runs": {}})
    with record(model) as masks:
        assert torch.equal(model(x), expected)
    handle.close()
    with inject(model, masks):
        assert torch.equal(model(x), expected)


def test_wrong_masks() -> None:
    model, x = Plain(), torch.ones(5, 6)
    fits = {"drop": torch.ones(5, 8).bool(), "#0": torch.ones(5, 3).bool()}
    with inject(model, fits):
        model(x)
    cases = [
        ({**fits, "drop": torch.ones(5, 9).bool()}, ArgumentError, r"the mask of 'drop', call 0: .*of shape \(5, 8\)"),
        ({**fits, "drop": torch.ones(5, 8)}, ArgumentTypeError, "the mask of 'drop', call 0: .*a bool tensor"),
        ({**fits, "drop": 7}, ArgumentTypeError, "the mask of 'drop', call 0: .*a tensor"),
        ({**fits, "drop": None}, ArgumentTypeError, r"`masks\['drop'\]` must be a dense tensor.* got None"),
        ({**fits, "drop": (None, fits["drop"])}, ArgumentTypeError, r"`masks\['drop'\]` must be a dense .* got None"),
        ({**fits, "drop": True}, ArgumentTypeError, r"`masks\['drop'\]` must be a dense tensor.* got True"),
        ({**fits, "drop": fits["drop"].to_sparse()}, ArgumentError, r"must be a dense tensor.*sparse_coo.*to_dense"),
        ({"drop": fits["drop"]}, ArgumentError, "a mask for '#0', call 0"),
        ({**fits, ("drop", 1): fits["drop"]}, ArgumentError, r"all used, got \"?'?no use of 'drop' \(call 1\)"),
        ({**fits, "dropped": fits["drop"]}, ArgumentError, "for sites of the model, got 'dropped'"),
        ({**fits, ("drop", 0): fits["drop"]}, ArgumentError, "one for each call"),
        ({**fits, 3: fits["drop"]}, ArgumentTypeError, "a dict by name"),
    ]
    for masks, error, message in cases:
        with pytest.raises(error, match=message), inject(model, masks):  # type: ignore[arg-type]
            model(x)
        assert not _get_current_function_mode_stack()
        assert not model._forward_pre_hooks


def test_masks_that_are_missing_can_be_drawn() -> None:
    model, x = Plain(), torch.ones(50, 6)
    with inject(model, {"drop": torch.zeros(1, 1).bool()}, strict=False):
        one = model(x)
    assert ((one == 0) | torch.isclose(one, 2 * model.second.bias)).all()


def test_an_evaluated_model_uses_no_mask() -> None:
    model, x = Plain(), torch.ones(5, 6)
    with record(model) as masks:
        model(x)
    model.eval()
    with pytest.raises(ArgumentError, match="training mode"), inject(model, masks):
        model(x)
    with record(model) as none:
        model(x)
    assert none == {}


def test_an_error_of_the_model_is_its_own() -> None:
    model = Plain()
    with pytest.raises(RuntimeError, match="shapes"), inject(model, {"drop": torch.ones(5, 8).bool()}):
        model(torch.ones(5, 7))
    assert not model._forward_pre_hooks


def test_nothing_is_exported_meanwhile() -> None:
    model, x = Plain(), torch.ones(5, 6)
    with record(model) as masks:
        model(x)
        with pytest.raises(UnsupportedError, match="no program is exported"):
            torch.export.export(model, (x,))
    with inject(model, masks):
        model(x)
        with pytest.raises(UnsupportedError, match="no program is exported"):
            torch.export.export(model, (x,))
    assert not _get_current_function_mode_stack()


def test_wrong_arguments() -> None:
    with pytest.raises(ArgumentTypeError, match="record: `model`"), record("model"):  # type: ignore[arg-type]
        pass
    with pytest.raises(ArgumentTypeError, match="inject: `model`"), inject("model", {}):  # type: ignore[arg-type]
        pass
    with pytest.raises(ArgumentTypeError, match="inject: `masks`"), inject(Plain(), 3):  # type: ignore[arg-type]
        pass
    with pytest.raises(ArgumentTypeError, match="inject: `strict`"), inject(Plain(), {}, strict=1):  # type: ignore[arg-type]
        pass
