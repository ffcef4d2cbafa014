"""Uniforms and normals: types, exactness, accuracy and range."""

import numpy as np
import pytest

from dropkit import random

KEY = random.call_key(11, "noise", step=2)
SHAPE = (32, 250)


def test_uniforms_are_their_integers_exactly() -> None:
    u = random.uniform32(KEY, SHAPE)
    double, single = random.uniform(KEY, SHAPE), random.uniform(KEY, SHAPE, dtype=np.float32)
    assert double.dtype == np.float64
    np.testing.assert_array_equal(double * 2.0**33, 2.0 * u + 1)
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single.astype(np.float64) * 2.0**24, 2.0 * (u >> np.uint32(9)) + 1)


@pytest.mark.parametrize("draw", [random.uniform, random.normal])
def test_half_type_is_single_precision_rounded(draw: object) -> None:
    half, single = draw(KEY, SHAPE, dtype=np.float16), draw(KEY, SHAPE, dtype=np.float32)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, single.astype(np.float16))


@pytest.mark.parametrize("draw", [random.uniform, random.normal])
@pytest.mark.parametrize("dtype", ["float64", np.float64, np.dtype("f8"), float], ids=repr)
def test_types_by_any_name(draw: object, dtype: object) -> None:
    np.testing.assert_array_equal(draw(KEY, (5,), dtype=dtype), draw(KEY, (5,)), strict=True)


@pytest.mark.parametrize(("dtype", "low"), [(np.float64, 2.0**-33), (np.float32, 2.0**-24)])
def test_uniforms_lie_strictly_inside_the_unit_interval(dtype: type, low: float) -> None:
    drawn = random.uniform(KEY, SHAPE, dtype=dtype)
    assert low <= drawn.min() < drawn.max() <= 1 - low
    assert dtype(1 - low) < 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 4e-6)])
def test_normals_are_the_cosine_branch_of_two_fields(dtype: type, tolerance: float) -> None:
    second = random.fold(KEY, 2**32 - 1, 0)
    u, v = (random.uniform(key, SHAPE, dtype=dtype).astype(np.longdouble) for key in (KEY, second))
    want = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.longdouble("3.14159265358979323846") * v)
    drawn = random.normal(KEY, SHAPE, dtype=dtype)
    assert drawn.dtype == dtype
    np.testing.assert_allclose(drawn.astype(np.longdouble), want, rtol=0, atol=tolerance)


def test_fields_of_floats_take_the_addresses_of_masks() -> None:
    place = {"offset": (3, 9), "full_shape": (40, 300), "stream": 4}
    for draw in (random.uniform, random.normal):
        whole = draw(KEY, (40, 300), stream=4)
        np.testing.assert_array_equal(draw(KEY, (20, 30), **place), whole[3:23, 9:39])
    u = random.uniform32(KEY, (20, 30), **place)
    np.testing.assert_array_equal(random.uniform(KEY, (20, 30), **place), (u + 0.5) * 2.0**-32)
