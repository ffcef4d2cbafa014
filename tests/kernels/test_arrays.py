"""NumPy's arrays on the compiled kernels: the bits that NumPy alone gives, for every type, shape and layout."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dropkit import random
from dropkit.errors import ArgumentError
from dropkit.kernels.native import arrays
from dropkit.numpy import dropout_backward, dropout_forward
from dropkit.numpy.dropout import _apply_by_numpy
from tests.helpers.native import RATES

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("instruction_set")]

KEY = random.call_key(17, "arrays", step=4)
TAKEN = ("f2", "f4", "f8", "c8", "c16")
FOREIGN = [np.dtype(name).newbyteorder().str for name in TAKEN]
SPECIAL = (np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-40, 6e-8, 65504.0, 3e38, 1.7e308)


def bits(values: np.ndarray) -> np.ndarray:
    """The bytes of every element, in the order of its index; those of a longdouble are not all its own."""
    if values.dtype.char == "g":
        return np.ascontiguousarray(values)
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def assert_same(found: np.ndarray, want: np.ndarray) -> None:
    """Equal bits, type and layout."""
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape, found.strides) == (want.dtype, want.shape, want.strides)
    np.testing.assert_array_equal(bits(found), bits(want))


def numbers(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Numbers of every size, with those in which mistakes hide."""
    rng = np.random.default_rng(seed)
    pairs = rng.normal(size=(*shape, 2)) * 10.0 ** rng.integers(-6, 6, (*shape, 2))
    pairs = np.where(rng.random(pairs.shape) < 0.2, rng.choice(SPECIAL, pairs.shape), pairs)
    values = (pairs.view(np.complex128) if np.dtype(dtype).kind == "c" else pairs)[..., 0]
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype)


def unaligned(values: np.ndarray) -> np.ndarray:
    found = np.zeros(values.nbytes + 1, np.uint8)[1:].view(values.dtype).reshape(values.shape)
    found[...] = values
    return found


def read_only(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.flags.writeable = False
    return values


LAYOUTS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "transposed": lambda values: np.moveaxis(np.ascontiguousarray(np.moveaxis(values, -1, 0)), 0, -1),
    "every other": lambda values: np.repeat(values, 2, -1)[..., ::2],
    "backwards": lambda values: np.ascontiguousarray(values[..., ::-1])[..., ::-1],
    "expanded": lambda values: np.broadcast_to(values[..., :1], values.shape),
    "read-only": read_only,
    "unaligned": unaligned,
    "subclass": lambda values: values.view(np.recarray),
}


@given(
    st.lists(st.integers(0, 40), max_size=3).map(tuple),
    st.sampled_from([*TAKEN, *FOREIGN, "g"]),
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from(RATES[:-1]) | st.floats(0, 1 - 2.0**-32),
    st.integers(0, 2**32),
)
def test_results_have_the_bits_of_numpy(shape: tuple[int, ...], dtype: str, layout: str, p: float, seed: int) -> None:
    t, values = random.threshold(p), numbers(shape, dtype, seed)
    if shape:
        values = LAYOUTS[layout](values)
    before, mask = values.copy(), np.asarray(np.random.default_rng(seed).random(shape) >= p)
    want = _apply_by_numpy(values, mask, t)
    found = arrays.apply_mask(values, mask, t)
    flags = values.flags
    taken = dtype in TAKEN and flags.aligned and (flags.c_contiguous or flags.f_contiguous)
    assert (found is not None) == taken
    if found is not None:
        assert_same(found, want)
    assert_same(dropout_forward(values, p, mask=mask)[0], want)
    assert_same(dropout_backward(values, mask, p), want)
    np.testing.assert_array_equal(bits(np.asarray(values)), bits(np.asarray(before)))


@given(st.lists(st.integers(0, 70), max_size=4).map(tuple), st.integers(0, 2**64 - 1), st.sampled_from(RATES))
def test_masks_are_those_of_the_definition(shape: tuple[int, ...], key: int, p: float) -> None:
    found = arrays.keep_mask(key, shape, random.threshold(p))
    np.testing.assert_array_equal(found, random.keep_mask(key, shape, p), strict=True)


@pytest.mark.parametrize("p", [0.0, 1e-6, 0.1, 1 / 3, 0.5, 0.9, 1 - 2.0**-32])
def test_all_numbers_of_half_precision(p: float) -> None:
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    for mask in (np.ones(2**16, np.bool_), np.arange(2**16) % 3 == 0):
        assert_same(
            arrays.apply_mask(values, mask, random.threshold(p)), _apply_by_numpy(values, mask, random.threshold(p))
        )


@pytest.mark.parametrize("dtype", TAKEN)
@pytest.mark.parametrize("shape", [(100_003,), (70_001, 3), (3, 40_001)])
def test_large_arrays(shape: tuple[int, ...], dtype: str) -> None:
    values = numbers(shape, dtype, 5)
    for array in (values, np.asfortranarray(values)):
        out, mask = dropout_forward(array, 0.3, rng=KEY)
        np.testing.assert_array_equal(mask, random.keep_mask(KEY, shape, 0.3))
        assert_same(out, _apply_by_numpy(array, mask, random.threshold(0.3)))


def test_a_mask_may_have_any_strides() -> None:
    values, mask = numbers((6, 7, 9), "f4", 0), random.keep_mask(KEY, (6, 7, 9), 0.4)
    want = dropout_backward(values, mask, 0.4)
    for other in (np.asfortranarray(mask), np.repeat(mask, 2, 0)[::2], mask[::-1].copy()[::-1], unaligned(mask)):
        for array in (values, np.asfortranarray(values)):
            np.testing.assert_array_equal(bits(dropout_backward(array, other, 0.4)), bits(want))


def test_an_array_without_an_address_is_refused_before_anything_is_allocated() -> None:
    huge = np.broadcast_to(np.float32(1), (2**34 + 1,))
    with pytest.raises(ArgumentError, match=r"^dropout_forward: `h` must be at most 2\*\*64 rows of 2\*\*34 columns"):
        dropout_forward(huge, 0.5, rng=0)


def test_an_overflow_gives_infinity_in_silence() -> None:
    values, mask = np.full(70, 3e38, np.float32), np.ones(70, np.bool_)
    with np.errstate(all="raise"):
        for found in (dropout_backward(values, mask, 0.5), dropout_backward(values[::2], mask[::2], 0.5)):
            assert np.isposinf(found).all()


def test_the_number_of_threads_changes_nothing() -> None:
    before, values, found = torch.get_num_threads(), numbers((300, 301), "f4", 1), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(dropout_forward(values, 0.3, rng=KEY))
    finally:
        torch.set_num_threads(before)
    for out, mask in found[1:]:
        np.testing.assert_array_equal(mask, found[0][1])
        assert_same(out, found[0][0])
