"""Hand-written masks that a backward pass of the model's own uses too: they cannot be left out of the forward alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dropkit.sites import find, switch
from tests.sites.disguises import KEEP, Forward, P, bernoulli, rows


class Saved(torch.autograd.Function):
    """A mask that is saved for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mask = (torch.rand_like(x) > P) / KEEP
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * ctx.saved_tensors[0]


class Returned(torch.autograd.Function):
    """The same, saved after the forward."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.rand_like(x) > P
        return x * mask / KEEP, mask

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * ctx.saved_tensors[0] / KEEP


def saved(x: Tensor) -> Tensor:
    return Saved.apply(x)


def returned(x: Tensor) -> Tensor:
    return Returned.apply(x)[0]


def hooked(x: Tensor) -> Tensor:
    mask = (torch.rand_like(x) > P) / KEEP
    output = x * mask
    output.register_hook(lambda gradient: gradient * mask)
    return output


def hooked_to_a_part(x: Tensor) -> Tensor:
    mask = (torch.rand_like(x) > P) / KEEP
    output = x * mask
    output.register_hook(partial(torch.mul, mask))
    return output


USED = (saved, returned, hooked, hooked_to_a_part)


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    x = x.detach().clone().requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("function", USED, ids=lambda function: function.__name__)
def test_a_mask_of_the_backward_pass_too_is_not_switched_and_told(function: Callable[[Tensor], Tensor]) -> None:
    model, x = Forward(function), rows()
    [site] = find(model, x.requires_grad_())
    assert (site.is_certain, site.is_rewritable) == (True, False)
    expected = gradient(model, x)
    assert (expected == 0).any()
    with switch(model, "off") as handle, pytest.warns(UserWarning, match="cannot be switched 'off'"):
        assert torch.equal(gradient(model, x), expected)
    assert [each.name for each in handle.unswitched] == ["~0"]


@pytest.mark.parametrize("function", USED, ids=lambda function: function.__name__)
def test_a_module_that_asks_for_the_mode_turns_it_off_in_both_passes(function: Callable[[Tensor], Tensor]) -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x) if self.training else x * 1

    model, x = Gated(), rows()
    with switch(model, "off") as handle:
        assert torch.equal(gradient(model, x), torch.ones_like(x))
    assert not handle.unswitched


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_is_no_backward_pass_of_the_model_s_own(use_reentrant: bool) -> None:
    model, x = Forward(lambda x: checkpoint(bernoulli, x, use_reentrant=use_reentrant)), rows()
    with switch(model, "off") as handle:
        assert torch.equal(gradient(model, x), torch.ones_like(x))
    assert not handle.unswitched


def test_other_hooks_do_not_matter() -> None:
    def watched(x: Tensor) -> Tensor:
        output, seen = bernoulli(x), []
        output.register_hook(lambda gradient: seen.append(gradient * 1))
        return output

    model, x = Forward(watched), rows()
    with switch(model, "off") as handle:
        assert torch.equal(gradient(model, x), torch.ones_like(x))
    assert not handle.unswitched
