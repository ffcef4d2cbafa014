"""Dropout on NumPy arrays: exact moments over all masks, closed forms, and every contract of the operation."""

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dropkit._checks import KEY, PROBABILITY
from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.functional import dropout
from dropkit.numpy import dropout_backward, dropout_forward
from dropkit.random import keep_mask, threshold

RATES = (0.1, 0.25, 1 / 3, 0.5, 0.9, 1 - 2.0**-32)
FLOATS = (np.float16, np.float32, np.float64)
COMPLEX = (np.complex64, np.complex128)
A = np.array([0.36, -0.13, 0.42, 0.25, 7.0])


def realised(p: float) -> Fraction:
    return Fraction(threshold(p), 2**32)


def all_masks(units: int) -> list[np.ndarray]:
    return [np.array(mask) for mask in itertools.product((False, True), repeat=units)]


@pytest.mark.parametrize("p", RATES)
def test_the_mean_over_all_masks_is_the_input_and_the_variance_its_closed_form(p: float) -> None:
    r = realised(p)
    chances = np.array([float(math.prod(1 - r if kept else r for kept in mask)) for mask in all_masks(len(A))])
    outcomes = np.array([dropout_forward(A, p, mask=mask)[0] for mask in all_masks(len(A))])
    mean = chances @ outcomes
    np.testing.assert_allclose(mean, A, rtol=1e-12)
    np.testing.assert_allclose(chances @ (outcomes - mean) ** 2, A**2 * float(r / (1 - r)), rtol=1e-12)


@pytest.mark.parametrize("p", RATES)
def test_survivors_are_scaled_by_the_realised_rate_and_nothing_else_is(p: float) -> None:
    out, mask = dropout_forward(np.ones((50, 40)), p, rng=3)
    assert np.array_equal(out, np.where(mask, float(1 / (1 - realised(p))), 0.0))


@pytest.mark.parametrize("p", RATES)
def test_the_backward_pass_is_the_adjoint_of_the_forward_pass(p: float) -> None:
    """The operation is linear, so <forward(v), g> = <v, backward(g)> for any v and g decides it."""
    rng = np.random.default_rng(0)
    v, g = rng.normal(size=(2, 30, 7))
    out, mask = dropout_forward(v, p, rng=rng)
    assert (out * g).sum() == pytest.approx((v * dropout_backward(g, mask, p)).sum(), rel=1e-12)


def test_the_gradient_agrees_with_finite_differences() -> None:
    rng = np.random.default_rng(0)
    h, g = rng.normal(size=(2, 4, 3))
    mask = dropout_forward(h, 0.3, rng=5)[1]
    numeric = np.zeros_like(h)
    for place in np.ndindex(h.shape):
        bump = np.zeros_like(h)
        bump[place] = 1e-3
        above, below = (dropout_forward(h + sign * bump, 0.3, rng=5)[0] for sign in (1, -1))
        numeric[place] = ((above - below) * g).sum() / 2e-3
    np.testing.assert_allclose(dropout_backward(g, mask, 0.3), numeric, rtol=1e-9, atol=1e-12)


def test_the_mask_is_that_of_the_definition_under_the_key_given() -> None:
    for key in (0, 42, 2**64 - 1):
        out, mask = dropout_forward(np.ones((5, 3, 9)), 0.4, rng=key)
        assert np.array_equal(mask, keep_mask(key, (5, 3, 9), 0.4))
        assert np.array_equal(mask, out != 0)


def test_a_generator_gives_one_key_of_64_bits() -> None:
    rng, twin = np.random.default_rng(8), np.random.default_rng(8)
    keys = twin.integers(2**64, size=2, dtype=np.uint64)
    for key in keys:
        assert np.array_equal(dropout_forward(np.ones((20, 20)), 0.5, rng=rng)[1], keep_mask(int(key), (20, 20), 0.5))
    assert rng.bit_generator.state == twin.bit_generator.state
    assert (keys >= 2**63).any(), "the highest bit is drawn too"


def test_without_a_generator_every_call_draws_another_mask_whatever_the_global_seed() -> None:
    masks = []
    for _ in range(2):
        np.random.seed(0)  # noqa: NPY002  # the global generator must not matter
        masks.append(dropout_forward(np.ones(1000), 0.5)[1])
    assert not np.array_equal(*masks)


@pytest.mark.parametrize("p", RATES[:-1])
def test_units_are_kept_as_often_as_the_rate_says(p: float) -> None:
    """A wrong rate shows: 5 standard deviations, two-sided, raise a false alarm with 6e-7 for one rate and key."""
    count = int(dropout_forward(np.ones((1000, 1000)), p, rng=11)[1].sum())
    assert abs(count - 1e6 * (1 - p)) < 5 * math.sqrt(1e6 * p * (1 - p))


@pytest.mark.parametrize("dtype", [*FLOATS, *COMPLEX])
def test_results_equal_those_of_pytorch_under_the_same_key(dtype: type) -> None:
    h = np.random.default_rng(0).normal(size=(13, 17)).astype(dtype)
    out, mask = dropout_forward(h, 0.3, rng=77)
    theirs, their_mask = dropout(torch.from_numpy(h), 0.3, key=77, return_mask=True)
    assert np.array_equal(mask, their_mask.numpy())
    assert np.array_equal(out, theirs.numpy())


@pytest.mark.parametrize("dtype", [*FLOATS, *COMPLEX, np.longdouble, ">f8"])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_the_type_and_shape_are_kept_in_both_directions(dtype: type, p: float) -> None:
    for shape in ((), (0,), (3, 0, 2), (6,), (2, 3, 4)):
        h = np.ones(shape, dtype)
        out, mask = dropout_forward(h, p, rng=0)
        grad = dropout_backward(h, mask, p)
        assert isinstance(mask, np.ndarray)
        assert (out.shape, mask.shape, grad.shape) == (shape, shape, shape)
        assert (out.dtype, mask.dtype, grad.dtype) == (h.dtype, np.bool_, h.dtype)


def test_half_precision_is_computed_in_float32_and_rounded_once() -> None:
    h = np.random.default_rng(0).normal(size=1000).astype(np.float16)
    out, mask = dropout_forward(h, 0.1, rng=1)
    scale = 2**32 / (2**32 - threshold(0.1))
    assert np.array_equal(out, np.where(mask, h.astype(np.float32) * np.float32(scale), 0).astype(np.float16))
    rounded_first = np.where(mask, h * np.float16(scale), np.float16(0))
    assert not np.array_equal(out, rounded_first), "the numbers tell the two apart"


@pytest.mark.parametrize("dtype", [*FLOATS, *COMPLEX])
def test_what_is_dropped_is_plus_zero_whatever_it_was(dtype: type) -> None:
    wild = np.array([np.nan, np.inf, -np.inf, -3.0, -0.0, np.finfo(dtype).max], dtype)
    dropped = np.zeros(len(wild), np.bool_)
    for result in (dropout_forward(wild, 0.5, mask=dropped)[0], dropout_backward(wild, dropped, 0.5)):
        for part in (result.real, result.imag):
            assert np.array_equal(part, np.zeros(len(wild)))
            assert not np.signbit(part).any()


def test_survivors_keep_nan_and_infinity_also_in_complex_numbers() -> None:
    out, _ = dropout_forward(np.array([np.nan, np.inf, -np.inf]), 0.5, mask=np.ones(3, np.bool_))
    np.testing.assert_array_equal(out, [np.nan, np.inf, -np.inf])
    out, _ = dropout_forward(np.array([complex(np.inf, 1), complex(2, np.nan)]), 0.5, mask=np.ones(2, np.bool_))
    np.testing.assert_array_equal(out.real, [np.inf, 4])
    np.testing.assert_array_equal(out.imag, [2, np.nan])


@pytest.mark.parametrize("p", [1.0, math.nextafter(1.0, 0.0)])
def test_at_p_one_all_is_zero_whatever_the_mask(p: float) -> None:
    """The second rate rounds to 1 in units of 2**-32, so its realised rate is 1."""
    wild = np.array([np.nan, np.inf, 1.0])
    for injected in (None, np.ones(3, np.bool_)):
        out, mask = dropout_forward(wild, p, mask=injected)
        assert not mask.any()
        assert np.array_equal(out, np.zeros(3))
        assert np.array_equal(dropout_backward(wild, np.ones(3, np.bool_), p), np.zeros(3))


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (1.0, False), (0.0, True), (1e-12, True), (0.5, np.False_)])
def test_with_nothing_to_drop_the_result_is_the_input_itself_and_nothing_is_drawn(p: float, training: bool) -> None:
    h, rng = np.array([1.0, np.nan]), np.random.default_rng(0)
    before = rng.bit_generator.state
    out, mask = dropout_forward(h, p, training, rng)
    assert out is h
    assert mask.all()
    assert rng.bit_generator.state == before


def test_in_evaluation_the_gradient_is_the_one_given_and_at_p_zero_its_equal() -> None:
    grad, mask = np.array([1.0, -2.0]), np.ones(2, np.bool_)
    assert dropout_backward(grad, mask, 0.5, training=False) is grad
    assert np.array_equal(dropout_backward(grad, mask, 0.0), grad)


def test_an_injected_mask_is_used_even_at_p_zero_and_ignored_in_evaluation() -> None:
    mask = np.array([True, False])
    out, used = dropout_forward(np.array([3.0, 4.0]), 0.0, mask=mask)
    assert np.array_equal(out, [3.0, 0.0])
    assert used is mask
    out, used = dropout_forward(np.array([3.0, 4.0]), 0.5, training=False, mask=mask)
    assert np.array_equal(out, [3.0, 4.0])
    assert used.all()


def test_strides_never_change_a_mask_and_the_input_is_left_alone() -> None:
    h = np.random.default_rng(0).normal(size=(6, 8, 10))
    expected, mask = dropout_forward(h, 0.5, rng=9)
    views = (
        np.asfortranarray(h),
        np.ascontiguousarray(h.transpose(2, 0, 1)).transpose(1, 2, 0),
        np.repeat(h, 2, 1)[:, ::2],
    )
    for view in views:
        kept = view.copy()
        view.flags.writeable = False
        assert np.array_equal(dropout_forward(view, 0.5, rng=9)[0], expected)
        assert np.array_equal(dropout_backward(view, mask, 0.5), expected)
        assert np.array_equal(view, kept)


def test_subclasses_come_back_as_plain_arrays(tmp_path: Path) -> None:
    for h in (np.ones(3).view(np.recarray), np.memmap(tmp_path / "h", float, "w+", shape=3)):
        out, mask = dropout_forward(h, 0.5)
        assert type(out) is type(mask) is type(dropout_backward(h, mask, 0.5)) is np.ndarray


@pytest.mark.parametrize(
    ("convert", "words"),
    [
        (np.ma.asarray, r"must be an array that is not masked, got masked_array.*\(MaskedArray\).*NAME\.filled\(0\)"),
        (np.asmatrix, r"must be an array that is no matrix, got matrix.*\(matrix\).*numpy\.asarray\(NAME\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_what_a_plain_array_could_not_say_is_refused(convert: Callable[..., np.ndarray], words: str) -> None:
    plain, keep = np.ones((2, 3)), np.ones((2, 3), np.bool_)
    for name, call in {
        "h": lambda: dropout_forward(convert(plain), 0.5, training=False),
        "grad_out": lambda: dropout_backward(convert(plain), keep, 0.5),
        "mask": lambda: dropout_forward(plain, 0.5, mask=convert(keep)),
    }.items():
        with pytest.raises(ArgumentTypeError, match=f"`{name}` {words.replace('NAME', name)}"):
            call()


@pytest.mark.parametrize("kind", [np.array, np.float32, np.float64, np.longdouble, Fraction])
def test_a_rate_may_be_a_number_of_any_kind(kind: Callable[[float], Any]) -> None:
    h = np.random.default_rng(0).normal(size=(5, 7))
    for p in (0.25, 0, 1):
        wanted, mask = dropout_forward(h, float(p), rng=3)
        assert np.array_equal(dropout_forward(h, kind(p), rng=3)[0], wanted)
        assert np.array_equal(dropout_backward(h, mask, kind(p)), dropout_backward(h, mask, float(p)))


@pytest.mark.parametrize("p", PROBABILITY.bad_values())
def test_a_bad_rate_is_refused_and_nothing_is_drawn(p: object) -> None:
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    with pytest.raises(ArgumentError, match=r"dropout_forward: `p` must be a number in \[0, 1\], got .*dropping"):
        dropout_forward(np.ones(3), p, rng=rng)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"dropout_backward: `p` must be a number in \[0, 1\], got .*dropping"):
        dropout_backward(np.ones(3), np.ones(3, np.bool_), p)  # type: ignore[arg-type]
    assert rng.bit_generator.state == before


@pytest.mark.parametrize(
    "rng", [*(value for value in KEY.bad_values() if value is not None), np.random.RandomState(0), np.random]
)
@pytest.mark.parametrize("training", [True, False])
def test_a_bad_rng_is_refused_in_training_and_in_evaluation(rng: object, training: bool) -> None:
    with pytest.raises(
        (ArgumentError, ArgumentTypeError), match=r"`rng` must be an integer in \[0, 2\*\*64\), got .*default_rng"
    ):
        dropout_forward(np.ones(3), 0.5, training, rng)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [[0.5], 0.5, None, "a", torch.ones(2), np.float64(1.0)])
def test_what_is_no_array_is_refused_with_the_conversion(value: object) -> None:
    with pytest.raises(ArgumentTypeError, match=r"`h` must be a NumPy array of floats, got .*numpy\.asarray"):
        dropout_forward(value, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match=r"`grad_out` must be a NumPy array of floats, got .*numpy\.asarray"):
        dropout_backward(value, np.ones(1, np.bool_), 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "object", "U3", "datetime64[s]"])
def test_an_array_of_anything_but_floats_is_refused_with_its_type(dtype: str) -> None:
    value = np.zeros(3, dtype)
    match = re.escape(f"must be of a floating or complex type, got {value.dtype!r}")
    with pytest.raises(ArgumentTypeError, match="`h` " + match):
        dropout_forward(value, 0.5)
    with pytest.raises(ArgumentTypeError, match="`grad_out` " + match):
        dropout_backward(value, np.ones(3, np.bool_), 0.5)


@pytest.mark.parametrize("mask", [[True, False], np.array([1, 0]), np.array([1.0, 0.0]), "10", torch.ones(2) > 0])
def test_a_mask_of_another_type_is_refused(mask: object) -> None:
    with pytest.raises(ArgumentTypeError, match="dropout_forward: `mask` must be a NumPy array of type bool, got"):
        dropout_forward(np.ones(2), 0.5, mask=mask)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="dropout_backward: `mask` must be a NumPy array of type bool, got"):
        dropout_backward(np.ones(2), mask, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (2, 2)])
def test_a_mask_of_another_shape_is_refused_even_if_it_would_broadcast(shape: tuple[int, ...]) -> None:
    match = re.escape(f"`mask` must be of shape (2,), got {shape}")
    with pytest.raises(ArgumentError, match=match):
        dropout_forward(np.ones(2), 0.5, mask=np.ones(shape, np.bool_))
    with pytest.raises(ArgumentError, match=match):
        dropout_backward(np.ones(2), np.ones(shape, np.bool_), 0.5)


def test_a_mask_and_a_source_of_masks_are_refused_together() -> None:
    with pytest.raises(ArgumentError, match="`rng` must be left out where a mask is given, got 0"):
        dropout_forward(np.ones(2), 0.5, rng=0, mask=np.ones(2, np.bool_))


def test_a_key_in_the_place_of_training_is_told_its_name() -> None:
    for source in (42, np.random.default_rng(42)):
        with pytest.raises(ArgumentTypeError, match=r"`training` must be True or False, got .* such as rng=42\.$"):
            dropout_forward(np.ones(2), 0.5, source)  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [1, 0, None, "train", np.ones(2)])
def test_training_is_true_or_false(training: object) -> None:
    with pytest.raises(ArgumentTypeError, match="dropout_forward: `training` must be True or False, got"):
        dropout_forward(np.ones(2), 0.5, training)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="dropout_backward: `training` must be True or False, got"):
        dropout_backward(np.ones(2), np.ones(2, np.bool_), 0.5, training)  # type: ignore[arg-type]


def test_no_torch_is_imported() -> None:
    code = "import sys, dropkit.numpy; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
