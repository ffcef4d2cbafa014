"""Masks of any shape, shard, stream and rate against the slow definition, and what follows from addressing."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dropkit import random
from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.random import keep_mask, uniform32
from dropkit.random.keys import call_keys
from tests.helpers import slow_masks

KEY = random.call_key(3, "layer", step=5)
keys = st.integers(0, 2**64 - 1)
words = st.integers(0, 2**32 - 1)
streams = st.integers(0, 2**30 - 1)
rates = st.floats(0, 1) | st.integers(0, 2**32).map(lambda t: t / 2**32)


@st.composite
def fields(draw: st.DrawFn) -> dict[str, Any]:
    """A shape of few elements, the axes that share a draw, and possibly its place in a whole tensor of any size."""
    rank = draw(st.integers(0, 4))
    shape = draw(st.tuples(*[st.integers(0, (1, 40, 9, 5, 3)[rank])] * rank))
    field: dict[str, Any] = {"shape": shape, "stream": draw(streams), "key": draw(keys)}
    if rank:
        axes = draw(st.lists(st.integers(0, rank - 1), unique=True, max_size=rank))
        field["broadcast_dims"] = [axis - rank if draw(st.booleans()) else axis for axis in axes]
    if draw(st.booleans()):
        bits = [64 // max(rank - 1, 1)] * (rank - 1) + [34] if rank else []
        field["offset"] = tuple(draw(st.integers(0, 2**b - n)) for b, n in zip(bits, shape, strict=True))
        field["full_shape"] = tuple(
            draw(st.integers(o + n, 2**b)) for b, n, o in zip(bits, shape, field["offset"], strict=True)
        )
    return field


@given(fields(), rates)
def test_fields_equal_the_slow_definition(field: dict[str, Any], p: float) -> None:
    u = slow_masks.integers(**field)
    drawn = uniform32(**field)
    assert drawn.dtype == np.uint32
    np.testing.assert_array_equal(drawn, u, strict=True)
    np.testing.assert_array_equal(keep_mask(p=p, **field), slow_masks.kept(u, p), strict=True)
    np.testing.assert_array_equal(random.uniform(**field), (u.astype(np.float64) + 0.5) / 2**32, strict=True)


@given(keys, words, keys)
@example(2**64 - 1, 2**32 - 1, 2**64 - 1)
def test_keys_fold_by_the_slow_definition(a: int, b: int, c: int) -> None:
    assert random.fold(a, b, c) == slow_masks.fold(a, b, c)


@given(st.tuples(words, words, words, words), st.tuples(words, words))
def test_philox_equals_the_slow_rounds_for_integers_and_arrays(counter: tuple[int, ...], key: tuple[int, ...]) -> None:
    want = slow_masks.words(counter, key)
    assert random.philox4x32(counter, key) == want
    assert all(type(word) is int for word in random.philox4x32(counter, key))
    lanes = [np.array([word, 0]) for word in counter]
    assert [int(word[0]) for word in random.philox4x32(lanes, key)] == list(want)


@given(st.data(), st.tuples(*[st.integers(1, 7)] * 3), st.lists(st.integers(0, 2), unique=True))
def test_any_split_of_a_tensor_reproduces_the_whole(
    data: st.DataObject, shape: tuple[int, ...], shared: list[int]
) -> None:
    whole = uniform32(KEY, shape, broadcast_dims=shared)
    joined = np.empty(shape, np.uint32)
    cuts = [sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3))}) for n in shape]
    for corner in itertools.product(*(itertools.pairwise(cut) for cut in cuts)):
        lengths, offset = [end - begin for begin, end in corner], [begin for begin, _ in corner]
        part = uniform32(KEY, lengths, broadcast_dims=shared, offset=offset, full_shape=shape)
        joined[tuple(slice(*span) for span in corner)] = part
    np.testing.assert_array_equal(joined, np.broadcast_to(whole, shape))


@given(st.integers(1, 9), st.integers(1, 9), st.tuples(st.integers(1, 4), st.integers(1, 9)))
def test_an_example_has_one_mask_in_any_batch(small: int, large: int, rest: tuple[int, int]) -> None:
    small, large = sorted((small, large))
    np.testing.assert_array_equal(keep_mask(KEY, (large, *rest), 0.4)[:small], keep_mask(KEY, (small, *rest), 0.4))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_results_have_length_one_on_shared_axes(axis: int) -> None:
    shape = (4, 3, 5)
    want = tuple(1 if i == axis % 3 else n for i, n in enumerate(shape))
    for draw in (uniform32, random.uniform, random.normal):
        assert draw(KEY, shape, broadcast_dims=axis).shape == want
        np.testing.assert_array_equal(draw(KEY, shape, broadcast_dims=axis), draw(KEY, shape, broadcast_dims=[axis]))
    assert keep_mask(KEY, shape, 0.5, broadcast_dims=(axis,)).shape == want
    assert keep_mask(KEY, shape, 0.5, broadcast_dims=(0, 1, 2)).shape == (1, 1, 1)


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (5, 0), (2, 0, 3)])
def test_scalars_and_empty_shapes_are_arrays_of_that_shape(shape: tuple[int, ...]) -> None:
    draws = [draw(KEY, shape) for draw in (uniform32, random.uniform, random.normal)] + [keep_mask(KEY, shape, 0.5)]
    for drawn in draws:
        assert isinstance(drawn, np.ndarray)
        assert drawn.shape == shape


@pytest.mark.parametrize(
    ("row", "column"),
    [(2**64 - 1, 2**34 - 1), (2**64 - 1, 0), (0, 2**34 - 1), (2**63, 7), (2**32 - 1, 2**33), (2**32, 8)],
)
@pytest.mark.parametrize("stream", [0, 2**30 - 1])
def test_the_limits_of_addresses(row: int, column: int, stream: int) -> None:
    place: dict[str, Any] = {"offset": (row, column), "full_shape": (2**64, 2**34), "stream": stream}
    want = slow_masks.draw(2**64 - 1, row, column, stream)
    assert uniform32(2**64 - 1, (1, 1), **place).item() == want
    for threshold in (want, want + 1):  # on either side of the very integer, so that its low half decides
        assert keep_mask(2**64 - 1, (1, 1), threshold / 2**32, **place).item() == (want >= threshold)
    spread = {"offset": (row >> 32, row & 0xFFFFFFFF, column), "full_shape": (2**32, 2**32, 2**34), "stream": stream}
    assert uniform32(2**64 - 1, (1, 1, 1), **spread).item() == want


REFUSED = [
    ((2**34 + 1,), {}),
    ((1, 2**34 + 1), {}),
    ((2**64, 2, 1), {}),
    ((2**33, 2**32, 1), {}),
    ((1, 1), {"offset": (0, 2**34), "full_shape": (1, 2**34)}),
    ((2, 3), {"offset": (1, 0), "full_shape": (2, 3)}),
    ((2, 3), {"full_shape": (2, 2)}),
    ((2, 3), {"full_shape": (2, 3, 1)}),
    ((2, 3), {"offset": (0,), "full_shape": (2, 3)}),
    ((2, 3), {"offset": (0, 0)}),
]


@pytest.mark.parametrize(("shape", "place"), REFUSED)
def test_what_has_no_address_is_refused(shape: tuple[int, ...], place: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"^uniform32: `(shape|full_shape|offset)` must be "):
        uniform32(KEY, shape, **place)
    with pytest.raises(ArgumentError, match=r"^keep_mask: `(shape|full_shape|offset)` must be "):
        keep_mask(KEY, shape, 0.5, **place)


@pytest.mark.parametrize(("shape", "shared"), [((2, 2**35), [1]), ((2**40, 2**40, 2), [0, 1])])
def test_an_axis_that_shares_its_draw_counts_as_one_long(shape: tuple[int, ...], shared: list[int]) -> None:
    drawn = uniform32(KEY, shape, broadcast_dims=shared)
    short = [1 if axis in shared else n for axis, n in enumerate(shape)]
    np.testing.assert_array_equal(drawn, slow_masks.integers(KEY, short))


def test_ties_are_decided_by_the_low_halves() -> None:
    p = 0.3
    half = random.threshold(p) >> 16
    column = slow_masks.column_with_high_half(KEY, half, stop=2**21)
    u = slow_masks.draw(KEY, 0, column)
    assert u >> 16 == half
    for threshold in (u - 1, u, u + 1):
        keep = keep_mask(KEY, (1, column + 1), threshold / 2**32)
        assert keep[0, column] == (u >= threshold)


def test_shapes_and_axes_come_as_any_sequence_of_integers() -> None:
    want = keep_mask(KEY, (3, 4), 0.5, broadcast_dims=(0,))
    for shape in ([3, 4], np.array([3, 4]), iter((3, 4))):
        np.testing.assert_array_equal(keep_mask(np.uint64(KEY), shape, np.float64(0.5), broadcast_dims=[0]), want)


def test_thresholds_round_to_the_nearest_unit() -> None:
    unit = 2.0**-32
    assert random.threshold(0.49 * unit) == 0
    assert random.threshold(0.5 * unit) == 1
    assert random.threshold(1 - 0.51 * unit) == 2**32 - 1
    assert random.threshold(1 - 0.5 * unit) == 2**32


@pytest.mark.parametrize("call", [random.site, lambda name: random.call_key(0, name, 0)])
def test_a_name_that_has_no_bytes_is_refused(call: Any) -> None:
    with pytest.raises(ArgumentError, match=r"`name` must be a string that UTF-8 can encode, got '.udcff'"):
        call("\udcff")


@pytest.mark.parametrize("shape", [np.array(3), {2, 3}, {2: 3}])
def test_a_shape_without_an_order_is_refused(shape: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="`shape` must be a sequence of integers"):
        uniform32(KEY, shape)


@pytest.mark.parametrize("counter", [np.array(3), (np.arange(3), np.arange(2), 0, 0)])
def test_a_counter_that_is_no_four_words_is_refused(counter: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^philox4x32: `counter` must be "):
        random.philox4x32(counter, (0, 0))


def test_keys_of_many_seeds_and_steps_are_those_of_single_calls() -> None:
    seeds, steps = [0, 1, 2**32 + 5, 2**63, 2**64 - 1], range(2**40 - 1, 2**40 + 2)
    found = call_keys(seeds, "hidden 0", steps)
    assert found.tolist() == [[random.call_key(seed, "hidden 0", step) for seed in seeds] for step in steps]
