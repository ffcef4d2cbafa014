"""Dropout of whole channels: PyTorch's by type, signature and result, and exact over all masks."""

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import dropkit
from dropkit import functional, random
from dropkit.errors import ArgumentError
from tests.helpers.contract import KEY, all_masks, assert_same, chances, realised, scale

DIMS = (1, 2, 3)
SHAPES = {1: (3, 4, 5), 2: (3, 4, 5, 2), 3: (3, 4, 5, 2, 3)}
FUNCTIONS = {dims: getattr(functional, f"dropout{dims}d") for dims in DIMS}
TORCHS = {dims: getattr(F, f"dropout{dims}d") for dims in DIMS}


def layer(dims: int, *arguments: Any, **options: Any) -> torch.nn.Module:
    return getattr(dropkit.nn, f"Dropout{dims}d")(*arguments, **options)


def values(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dims", DIMS)
def test_it_is_pytorchs_class_with_pytorchs_arguments(dims: int) -> None:
    theirs = getattr(torch.nn, f"Dropout{dims}d")
    assert isinstance(layer(dims), theirs)
    for ours, other in ((type(layer(dims)), theirs), (FUNCTIONS[dims], TORCHS[dims])):
        found, wanted = inspect.signature(ours).parameters, inspect.signature(other).parameters
        positional = [name for name, parameter in found.items() if parameter.kind is not parameter.KEYWORD_ONLY]
        assert positional == list(wanted)
        assert [found[name].default for name in positional] == [wanted[name].default for name in positional]
    assert repr(layer(dims, 0.3, True)) == repr(theirs(0.3, True)) == f"Dropout{dims}d(p=0.3, inplace=True)"
    assert layer(dims).state_dict() == {}


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pytorchs_function_does_the_same_with_the_same_mask(dims: int, dtype: torch.dtype) -> None:
    x = values(SHAPES[dims], dtype)
    for each in (x, x[0]) if dims != 2 else (x,):
        torch.manual_seed(3)
        mask = TORCHS[dims](torch.ones_like(each), 0.25) != 0
        assert 0 < mask.sum() < mask.numel()
        torch.manual_seed(3)
        want = TORCHS[dims](each, 0.25)
        assert torch.equal(FUNCTIONS[dims](each, 0.25, mask=mask), want)
        per_channel = mask[(..., *(slice(1),) * dims)]
        assert torch.equal(layer(dims, 0.25)(each, mask=per_channel), want)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("p", [0.1, 0.5, 1 / 3])
def test_moments_and_gradients_over_all_masks(dims: int, p: float) -> None:
    x = values((2, 4, *SHAPES[dims][2:])).requires_grad_()
    upstream, factor = values((4, 2, *SHAPES[dims][2:])).transpose(0, 1), realised(p) / (1 - realised(p))
    masks = all_masks(8)
    weights = chances(masks, p)
    outs = torch.stack([layer(dims, p)(x, mask=mask.view(2, 4, *(1,) * dims)) for mask in masks])
    gradients = torch.stack([torch.autograd.grad(out, x, upstream, retain_graph=True)[0] for out in outs])
    outs = outs.detach()
    spread = weights.view(-1, *(1,) * x.dim())
    torch.testing.assert_close((spread * outs).sum(0), x.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close((spread * (outs - x).square()).sum(0), factor * x.detach() ** 2, rtol=1e-12, atol=0)
    torch.testing.assert_close((spread * gradients).sum(0), upstream, rtol=1e-12, atol=0)
    # A channel's mean keeps the whole variance, which dropout of its elements would divide by their number.
    means, wanted = outs.flatten(3).mean(-1), x.detach().flatten(2).mean(-1)
    variance = (weights.view(-1, 1, 1) * (means - wanted).square()).sum(0)
    torch.testing.assert_close(variance, factor * wanted**2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dims", DIMS)
def test_one_draw_for_each_example_and_channel(dims: int) -> None:
    x = torch.ones(64, 128, *SHAPES[dims][2:])
    out, mask = layer(dims, 0.4)(x, key=KEY, return_mask=True)
    assert mask.shape == (64, 128, *(1,) * dims)
    assert_same(out, torch.where(mask, torch.tensor(scale(0.4), dtype=torch.float32), 0.0).expand(x.shape))
    keep = mask.reshape(64, 128)
    assert torch.equal(mask, torch.from_numpy(random.keep_mask(KEY, mask.shape, 0.4)))
    signs = (keep.double() - 0.6) / 0.24**0.5
    _, other = layer(dims, 0.4)(x, key=KEY + 1, return_mask=True)
    of_next_call = (other.reshape(64, 128).double() - 0.6) / 0.24**0.5
    for neighbours in (signs.roll(1, 0), signs.roll(1, 1), signs.roll(4, 1), of_next_call):
        assert (signs * neighbours).mean().abs() < 5 / keep.numel() ** 0.5  # five standard errors: 6e-7 by chance
    assert abs(keep.sum() - 0.6 * keep.numel()) < 5 * (keep.numel() * 0.24) ** 0.5


@pytest.mark.parametrize("dims", [1, 3])
def test_one_example_needs_no_axis_of_its_own(dims: int) -> None:
    x = values(SHAPES[dims])[0]
    assert torch.equal(layer(dims, 0.5)(x, key=KEY), layer(dims, 0.5)(x[None], key=KEY)[0])


@pytest.mark.parametrize("dims", DIMS)
def test_an_example_has_its_mask_whatever_the_batch(dims: int) -> None:
    x, keys = values(SHAPES[dims]), torch.tensor([5, 9, 2])
    whole = layer(dims, 0.5)(x, key=keys)
    assert torch.equal(torch.cat([layer(dims, 0.5)(x[i : i + 1], key=keys[i : i + 1]) for i in range(3)]), whole)


def test_memory_format_changes_no_mask_and_stays() -> None:
    x = values(SHAPES[2])
    last = x.to(memory_format=torch.channels_last)
    out = layer(2)(last, key=KEY)
    assert torch.equal(out, layer(2)(x, key=KEY))
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dims", DIMS)
def test_in_place(dims: int) -> None:
    x = values(SHAPES[dims])
    want = layer(dims)(x, key=KEY)
    out = layer(dims, inplace=True)(x, key=KEY)
    assert out is x
    assert torch.equal(x, want)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_sequences_of_several_lengths() -> None:
    parts = [values((4, 5)), values((4, 2)), values((4, 7))]
    x = torch.nested.nested_tensor(parts, layout=torch.strided)
    out = layer(1)(x, key=KEY).unbind()
    for i, (part, found) in enumerate(zip(parts, out, strict=True)):
        place = {"offset": (i, 0, 0), "full_shape": (3, 2**32, 7)}  # the first axis of a constituent counts as ragged
        mask = torch.from_numpy(random.keep_mask(KEY, (1, *part.shape), 0.5, broadcast_dims=2, **place))[0]
        assert torch.equal(found, torch.where(mask, 2 * part, 0.0))
    with pytest.raises(ArgumentError, match=r"^dropout3d: `input` must be of shape"):
        layer(3)(x)


def test_three_axes_of_images_are_an_error_with_both_readings() -> None:
    for training in (True, False):
        with pytest.raises(ArgumentError) as caught:
            layer(2).train(training)(torch.ones(2, 3, 4))
        assert str(caught.value) == (
            "dropout2d: `input` must be of shape (N, C, H, W), got (2, 3, 4) (tuple). Of shape (N, C, L) it is for "
            "dropout1d; of shape (C, H, W), call unsqueeze(0) first."
        )


@pytest.mark.parametrize("dims", DIMS)
def test_a_mode_sees_the_function(dims: int) -> None:
    class Recorder(TorchFunctionMode):
        seen: list[Any] = []  # noqa: RUF012  # one list is the point

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(func)
            return func(*args, **(kwargs or {}))

    x = values(SHAPES[dims])
    with Recorder() as mode:
        out = layer(dims, 0.3)(x, key=KEY)
    assert mode.seen[-1] is FUNCTIONS[dims]
    assert torch.equal(out, layer(dims, 0.3)(x, key=KEY))
