"""Activation checkpointing recomputes a forward: the mask must be the one of the first run."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import dropkit
from dropkit.errors import UnsupportedError
from dropkit.functional import dropout

KINDS = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])


def gradient_and_output(block: object, reentrant: bool, **options: object) -> tuple[Tensor, Tensor]:
    x = torch.ones(500, requires_grad=True)
    out = checkpoint(block, x, use_reentrant=reentrant, **options)
    torch.rand(3)  # the generator moves on between the runs
    out.sum().backward()
    return x.grad, out.detach()


@KINDS
def test_drawn_masks_are_drawn_again(reentrant: bool) -> None:
    gradient, out = gradient_and_output(lambda x: dropout(x, 0.5).sin(), reentrant)
    assert torch.equal(gradient != 0, out != 0)
    assert 0 < (out == 0).sum() < 500


@KINDS
@pytest.mark.parametrize("preserve", [True, False])
def test_explicit_keys_need_no_saved_state(reentrant: bool, preserve: bool) -> None:
    gradient, out = gradient_and_output(
        lambda x: dropout(x, 0.5, key=torch.tensor(4)).sin(), reentrant, preserve_rng_state=preserve
    )
    x = torch.ones(500, requires_grad=True)
    want = dropout(x, 0.5, key=4).sin()
    want.sum().backward()
    assert torch.equal(out, want.detach())
    assert torch.equal(gradient, x.grad)


@KINDS
def test_the_generator_ends_where_it_would_without_checkpoints(reentrant: bool) -> None:
    states = []
    for checkpointed in (True, False):
        torch.manual_seed(1)
        x = torch.ones(50, requires_grad=True)
        out = checkpoint(dropout, x, use_reentrant=reentrant) if checkpointed else dropout(x)
        out.sin().sum().backward()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@KINDS
def test_a_generator_of_ones_own_cannot_be_replayed(reentrant: bool) -> None:
    own = torch.Generator()
    with pytest.raises(UnsupportedError) as caught:
        gradient_and_output(lambda x: dropout(x, 0.5, generator=own).sin(), reentrant)
    assert str(caught.value) == (
        "dropout: `generator` cannot be used in a checkpointed forward, which cannot replay it: pass `key`."
    )


@KINDS
def test_the_layer_in_checkpointed_segments(reentrant: bool) -> None:
    def model() -> torch.nn.Sequential:
        torch.manual_seed(0)
        blocks = [(torch.nn.Linear(8, 8), torch.nn.ReLU(), dropkit.nn.Dropout(0.3)) for _ in range(3)]
        return torch.nn.Sequential(*itertools.chain(*blocks), torch.nn.Linear(8, 1))

    gradients = []
    for checkpointed in (True, False):
        net, x = model(), torch.randn(5, 8, generator=torch.Generator().manual_seed(2), requires_grad=True)
        torch.manual_seed(1)
        out = checkpoint_sequential(net, 3, x, use_reentrant=reentrant) if checkpointed else net(x)
        out.sum().backward()
        gradients.append([x.grad, *(p.grad for p in net.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")  # in the first run
@KINDS
def test_checkpoints_within_checkpoints(reentrant: bool) -> None:
    def inner(x: Tensor) -> Tensor:
        return dropout(x, 0.3, key=5).sin()

    gradient, out = gradient_and_output(lambda x: checkpoint(inner, inner(x), use_reentrant=reentrant), reentrant)
    x = torch.ones(500, requires_grad=True)
    want = inner(inner(x))
    want.sum().backward()
    assert torch.equal(out, want.detach())
    assert torch.equal(gradient, x.grad)


def test_double_backward_through_a_checkpoint() -> None:
    x = torch.linspace(0.1, 1, 60, dtype=torch.float64, requires_grad=True)
    out = checkpoint(lambda v: dropout(v, 0.5, key=5).pow(3), x, use_reentrant=False)
    (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    keep = out.detach() != 0
    torch.testing.assert_close(second, torch.where(keep, 48 * x, 0))
