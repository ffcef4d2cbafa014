"""Nested tensors: every example has one mask, whatever batch it is in."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dropkit import random
from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.functional import dropout

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")

LAYOUTS = [torch.strided, torch.jagged]
LENGTHS = (2, 5, 1, 9)
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=str)


def parts(lengths: tuple[int, ...] = LENGTHS, width: int = 6) -> list[Tensor]:
    return [torch.ones(length, width) * (i + 1) for i, length in enumerate(lengths)]


def nested(examples: list[Tensor], layout: torch.layout, **options: Any) -> Tensor:
    return torch.nested.nested_tensor(examples, layout=layout, **options)


def mask_of(i: int, length: int, batch: int = len(LENGTHS), key: int = 7, p: float = 0.4, width: int = 6) -> np.ndarray:
    place = {"offset": (i, 0, 0), "full_shape": (batch, 2**32, width)}
    return random.keep_mask(key, (1, length, width), p, **place)[0]


@layouts
def test_a_ragged_axis_counts_as_two_to_the_32(layout: torch.layout) -> None:
    out, keep = dropout(nested(parts(), layout), 0.4, key=7, return_mask=True)
    assert out.is_nested
    assert keep.is_nested
    assert (out.layout, keep.layout, keep.dtype) == (layout, layout, torch.bool)
    for i, (found, kept) in enumerate(zip(out.unbind(), keep.unbind(), strict=True)):
        np.testing.assert_array_equal(kept, mask_of(i, LENGTHS[i]), strict=True)
        np.testing.assert_array_equal(found != 0, kept)


@layouts
def test_an_example_has_one_mask_in_any_batch(layout: torch.layout) -> None:
    whole = dropout(nested(parts(), layout), 0.4, key=7).unbind()
    for count in (1, 2, 3):
        batch = dropout(nested(parts(LENGTHS[:count]), layout), 0.4, key=7).unbind()
        assert all(torch.equal(one, other) for one, other in zip(batch, whole, strict=False))
    longer = dropout(nested(parts((2, 5, 1, 900)), layout), 0.4, key=7).unbind()
    assert all(torch.equal(one, other) for one, other in zip(longer[:3], whole[:3], strict=True))


def test_both_layouts_have_the_same_masks() -> None:
    strided, jagged = (dropout(nested(parts(), layout), 0.4, key=7).unbind() for layout in LAYOUTS)
    assert all(torch.equal(one, other) for one, other in zip(strided, jagged, strict=True))


@layouts
def test_equal_lengths_are_ragged_too(layout: torch.layout) -> None:
    """A batch whose examples happen to be equally long has the masks of any other."""
    out = dropout(nested(parts((3, 3)), layout), 0.4, key=7).unbind()
    for i in range(2):
        np.testing.assert_array_equal(out[i] != 0, mask_of(i, 3, batch=2))


@layouts
def test_the_gradient_is_gated_by_the_same_mask(layout: torch.layout) -> None:
    x = nested(parts(), layout, requires_grad=True)
    out = dropout(x * 1, 0.5, key=7)
    torch.cat([found.reshape(-1) for found in out.unbind()]).sum().backward()
    for gradient, found in zip(x.grad.unbind(), out.unbind(), strict=True):
        assert torch.equal(gradient, (found != 0) * 2.0)


@layouts
def test_a_residual_connection_works(layout: torch.layout) -> None:
    x = nested(parts(), layout)
    total = x + dropout(x, 0.5, key=7)
    for i, found in enumerate(total.unbind()):
        np.testing.assert_array_equal(found, (1 + 2 * mask_of(i, LENGTHS[i], p=0.5)) * (i + 1))


@layouts
@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)])
def test_evaluation_and_a_rate_of_zero_return_the_input(layout: torch.layout, p: float, training: bool) -> None:
    x, state = nested(parts(), layout), torch.get_rng_state()
    assert dropout(x, p, training) is x
    assert dropout(x, p, training, inplace=True) is x
    assert dropout(x, p, training, key=torch.arange(4)) is x
    out, keep = dropout(x, p, training, return_mask=True)
    assert out is x
    assert keep.is_nested
    assert [mask.shape for mask in keep.unbind()] == [part.shape for part in x.unbind()]
    assert all(mask.all() for mask in keep.unbind())
    assert torch.equal(torch.get_rng_state(), state)


@layouts
def test_the_original_form_scales_in_evaluation(layout: torch.layout) -> None:
    out = dropout(nested(parts(), layout), 0.25, False, scale_at="eval")
    assert all(torch.equal(found, part * 0.75) for found, part in zip(out.unbind(), parts(), strict=True))


@layouts
def test_a_rate_of_one_leaves_zeros(layout: torch.layout) -> None:
    out = dropout(nested(parts(), layout), 1.0, key=7)
    assert all(torch.equal(found, torch.zeros_like(part)) for found, part in zip(out.unbind(), parts(), strict=True))


@layouts
def test_drawn_keys_follow_the_seed_and_cost_one_draw(layout: torch.layout) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(2)
        runs.append(dropout(nested(parts(), layout), 0.5).unbind())
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    after = torch.get_rng_state()
    torch.manual_seed(2)
    dropout(torch.ones(3), 0.5)
    assert torch.equal(torch.get_rng_state(), after)


@layouts
def test_one_key_stream_and_rate_an_example(layout: torch.layout) -> None:
    keys, streams = torch.tensor([7, 8, -1, 0]), torch.tensor([0, 3, 0, 1])
    rates = torch.tensor([0.1, 0.5, 1.0, 0.0], dtype=torch.float64)
    out = dropout(nested(parts(), layout), rates, key=keys, stream=streams)
    for i, found in enumerate(out.unbind()):
        want = random.keep_mask(
            int(keys[i]) % 2**64, (LENGTHS[i], 6), rates[i].item(), stream=int(streams[i]), full_shape=(2**32, 6)
        )
        np.testing.assert_array_equal(found != 0, want)
    by_rate = dropout(nested(parts(), layout), rates, key=7).unbind()
    for i, found in enumerate(by_rate):
        np.testing.assert_array_equal(found != 0, mask_of(i, LENGTHS[i], p=rates[i].item()))


@layouts
@pytest.mark.parametrize("axis", [1, -2, 2, -1, 0])
def test_shared_axes(layout: torch.layout, axis: int) -> None:
    out = dropout(nested(parts(), layout), 0.5, key=7, broadcast_dims=axis).unbind()
    for i, found in enumerate(out):
        shared = random.keep_mask(
            7, (1, LENGTHS[i], 6), 0.5, broadcast_dims=axis, offset=(i, 0, 0), full_shape=(4, 2**32, 6)
        )[0]
        np.testing.assert_array_equal(found != 0, np.broadcast_to(shared, found.shape))


@layouts
def test_nested_masks_are_injected_example_by_example(layout: torch.layout) -> None:
    x = nested(parts(), layout)
    masks = [torch.rand(length, 6) > 0.5 for length in LENGTHS]
    out, keep = dropout(x, 0.5, mask=nested(masks, layout), return_mask=True)
    for found, kept, mask, part in zip(out.unbind(), keep.unbind(), masks, parts(), strict=True):
        assert torch.equal(found, part * mask * 2)
        assert torch.equal(kept, mask)


@pytest.mark.parametrize("training", [True, False])
def test_jagged_masks_combine_with_the_tensors_they_belong_to(training: bool) -> None:
    x = nested(parts(), torch.jagged)
    out, keep = dropout(x, 0.5, training, key=7, return_mask=True)
    for found, part in zip((x * keep).unbind(), out.unbind(), strict=True):
        assert torch.equal(found * (2.0 if training else 1.0), part)


@pytest.mark.slow
@layouts
def test_compiled_code_has_the_masks_of_eager_code(layout: torch.layout) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: dropout(x, 0.4, key=7), backend="aot_eager")(nested(parts(), layout))
    for i, found in enumerate(compiled.unbind()):
        np.testing.assert_array_equal(found != 0, mask_of(i, LENGTHS[i]))


@layouts
def test_nested_masks_of_another_batch_are_refused(layout: torch.layout) -> None:
    x = nested(parts(), layout)
    for lengths in (LENGTHS[:2], (*LENGTHS, 3), (2, 5, 2, 9)):
        masks = nested([torch.rand(length, 6) > 0.5 for length in lengths], layout)
        with pytest.raises(ArgumentError, match="`mask` must be "):
            dropout(x, 0.5, mask=masks)
    with pytest.raises(ArgumentTypeError, match="`mask` must be nested like the input"):
        dropout(x, 0.5, mask=torch.ones(4, 9, 6, dtype=torch.bool))


@layouts
@pytest.mark.parametrize(("name", "value"), [("inplace", True), ("offset", (0, 0, 0)), ("full_shape", (4, 9, 6))])
def test_options_that_nested_tensors_do_not_take(layout: torch.layout, name: str, value: Any) -> None:
    options = {name: value} | ({"full_shape": (4, 9, 6)} if name == "offset" else {})
    with pytest.raises(ArgumentError, match=f"`{name}` must be left out where the input is nested"):
        dropout(nested(parts(), layout), 0.5, key=7, **options)


@layouts
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{"broadcast_dims": 3}, {"p": 1.5}, {"key": -1}, {"stream": -1}])
def test_bad_arguments_of_nested_tensors(layout: torch.layout, training: bool, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"^dropout: `{next(iter(options))}` must be "):
        dropout(nested(parts(), layout), **{"p": 0.5, "training": training} | options)


def test_a_jagged_tensor_whose_second_axis_is_regular() -> None:
    x = nested(parts(), torch.jagged).transpose(1, 2)
    out = dropout(x, 0.5, key=7)
    assert out.shape == x.shape
    for i, found in enumerate(out.unbind()):
        want = random.keep_mask(7, (1, 6, LENGTHS[i]), 0.5, offset=(i, 0, 0), full_shape=(4, 6, 2**32))[0]
        np.testing.assert_array_equal(found != 0, want)


def test_a_jagged_tensor_with_holes_is_refused() -> None:
    x = torch.nested.nested_tensor_from_jagged(torch.ones(9, 2), torch.tensor([0, 4, 9]), torch.tensor([2, 3]))
    with pytest.raises(ArgumentTypeError, match="`input` must be a nested tensor without holes"):
        dropout(x, 0.5)


@layouts
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(layout: torch.layout, dtype: torch.dtype) -> None:
    x = nested([part.to(dtype) for part in parts()], layout)
    out = dropout(x, 0.4, key=7)
    assert out.dtype == dtype
    for i, found in enumerate(out.unbind()):
        np.testing.assert_array_equal(found != 0, mask_of(i, LENGTHS[i]))


@layouts
def test_integers_are_refused(layout: torch.layout) -> None:
    with pytest.raises(ArgumentTypeError, match="`input` must be of a floating or complex type"):
        dropout(nested([part.long() for part in parts()], layout), 0.5)


def test_the_input_is_left_alone() -> None:
    x = nested(parts(), torch.jagged)
    before = copy.deepcopy(x.values())
    dropout(x, 0.5)
    assert torch.equal(x.values(), before)
