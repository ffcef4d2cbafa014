"""Integers, uniforms and normals of the compiled kernels: NumPy's bits, and one result on all instruction sets."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dropkit import random
from dropkit.errors import ArgumentError
from dropkit.kernels import fields as reached
from dropkit.kernels import portable
from dropkit.kernels.native import fields
from dropkit.random.layout import layout
from tests.helpers.native import CPU, Address, addresses, bits, signed, using

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("instruction_set")]

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "mask_vectors.json").read_text())
KEY = random.call_key(17, "fields", step=4)
TOLERANCE = {torch.float64: 2e-14, torch.float32: 2e-6}  # the definition allows 1e-12 and 4e-6
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WIDTHS = (*range(1, 18), 31, 32, 33, 63, 64, 65, 96, 97, 120, 121, 127, 128, 129, 136, 137, 256, 1000, 4099)
WHOLE = (2**64, 2**34)


def integers(address: Address) -> np.ndarray:
    return fields.integers(signed(address.key), torch.tensor(address.stream), address.place(), CPU).numpy()


def floats(draw: Callable[..., Tensor], address: Address, dtype: torch.dtype) -> Tensor:
    return draw(signed(address.key), torch.tensor(address.stream), address.place(), CPU, dtype)


def reference(draw: Callable[..., np.ndarray], address: Address, **options: Any) -> np.ndarray:
    places: dict[str, Any] = address._asdict()
    return draw(places.pop("key"), places.pop("shape"), **places, **options)


def assert_all_agree(address: Address) -> None:
    """Every kind of number at an address is what NumPy draws, and what the scalar path draws."""
    np.testing.assert_array_equal(integers(address), reference(random.uniform32, address).astype(np.int64), strict=True)
    for dtype, tolerance in TOLERANCE.items():
        name = str(dtype).removeprefix("torch.")
        found = floats(fields.uniform, address, dtype).numpy()
        np.testing.assert_array_equal(found, reference(random.uniform, address, dtype=name), strict=True)
        drawn = floats(fields.normal, address, dtype).numpy()
        wanted = reference(random.normal, address, dtype=name)
        np.testing.assert_allclose(drawn, wanted, rtol=0, atol=tolerance, strict=True)
    for draw, dtype in itertools.product((fields.uniform, fields.normal), DTYPES):
        found = floats(draw, address, dtype)
        if dtype.itemsize == 2:
            assert torch.equal(bits(found), bits(floats(draw, address, torch.float32).to(dtype)))
        with using("scalar"):
            assert torch.equal(bits(found), bits(floats(draw, address, dtype)))


# Known answers


def test_known_integers() -> None:
    for case in VECTORS["uniforms"]:
        address = Address(case["key"], (1, len(case["u"])), case["stream"], (case["row"], case["col"]), WHOLE)
        assert integers(address).tolist() == [case["u"]]
    for case in [*VECTORS["shapes"], VECTORS["shard"]]:
        address = Address(case["key"], tuple(case["shape"]), 0, case.get("offset"), case.get("full_shape"))
        assert integers(address).ravel().tolist() == case["u"]


def test_known_floats() -> None:
    cases = VECTORS["floats"]
    key = random.call_key(cases[0]["seed"], cases[0]["name"], cases[0]["step"])
    address = Address(key, (1, len(cases)), 0, (cases[0]["row"], cases[0]["col"]), WHOLE)
    assert floats(fields.uniform, address, torch.float64)[0].tolist() == [case["uniform64"] for case in cases]
    assert floats(fields.uniform, address, torch.float32)[0].tolist() == [case["uniform32"] for case in cases]
    normals = floats(fields.normal, address, torch.float64)[0].numpy()
    np.testing.assert_allclose(normals, [case["normal"] for case in cases], rtol=0, atol=2e-14)


# The reference


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width(width: int) -> None:
    assert_all_agree(Address(KEY, (max(3, 300 // width), width)))


@pytest.mark.parametrize("width", WIDTHS)
def test_shards_of_every_width_begin_anywhere(width: int) -> None:
    rows = 2 + 50 // width
    columns, firsts = (1, 5, 8, 60, 2**31 + 3, 2**34 - width), 2 * (2**32 - 2, 2**63 - 1, 2**64 - rows)
    for column, row in zip(columns, firsts, strict=True):
        assert_all_agree(Address(KEY, (rows, width), 7, (row, column), WHOLE))


@pytest.mark.parametrize(
    "shape", [(), (1,), (0,), (0, 5), (5, 0), (2, 0, 3), (100_003,), (32_769,), (2, 49_160), (7, 3, 5, 11), (70_001, 3)]
)
def test_any_shape(shape: tuple[int, ...]) -> None:
    assert_all_agree(Address(KEY, shape))


@given(addresses())
def test_any_address(address: Address) -> None:
    assert_all_agree(address)


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    st.lists(st.integers(0, 2**30 - 1), min_size=4, max_size=4),
    st.lists(st.integers(1, 70), max_size=2),
    st.booleans(),
)
def test_slices_have_keys_and_streams_of_their_own(
    keys: list[int], streams: list[int], rest: list[int], shared: bool
) -> None:
    streams = streams[:1] if shared else streams[: len(keys)]
    address = (torch.stack([signed(key) for key in keys]), torch.tensor(streams), layout("test", rest), CPU)
    found, uniform = fields.integers(*address), fields.uniform(*address, torch.float32)
    normal = fields.normal(*address, torch.float64)
    for i, key in enumerate(keys):
        at: dict[str, Any] = {"key": key, "shape": rest, "stream": streams[i % len(streams)]}
        np.testing.assert_array_equal(found[i], random.uniform32(**at).astype(np.int64))
        np.testing.assert_array_equal(uniform[i], random.uniform(dtype="float32", **at))
        np.testing.assert_allclose(normal[i], random.normal(**at), rtol=0, atol=2e-14)


def test_two_axes_of_slices() -> None:
    keys, streams = torch.stack([signed(KEY), signed(8), signed(9)]).reshape(3, 1), torch.tensor([[0, 4]])
    found = fields.integers(keys, streams, layout("test", (5, 20)), CPU)
    for (i, key), (j, stream) in itertools.product(enumerate((KEY, 8, 9)), enumerate((0, 4))):
        np.testing.assert_array_equal(found[i, j], random.uniform32(key, (5, 20), stream=stream))


# Numbers


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_million_normals_are_as_exact_as_is_said(dtype: torch.dtype) -> None:
    address = Address(KEY, (1000, 1000))
    found = floats(fields.normal, address, dtype).numpy()
    wanted = reference(random.normal, address, dtype=str(dtype).removeprefix("torch."))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(100_003,), (70_001, 3), (5, 7, 1000)])
def test_the_number_of_threads_changes_nothing(shape: tuple[int, ...]) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append([floats(fields.normal, Address(KEY, shape), dtype) for dtype in DTYPES])
    finally:
        torch.set_num_threads(before)
    for several in found[1:]:
        assert all(torch.equal(bits(one), bits(other)) for one, other in zip(several, found[0], strict=True))


# What serves


def test_what_reaches_the_kernels_runs_on_the_compiled_kernels() -> None:
    address = (signed(KEY), torch.tensor(3), layout("test", (40, 50)), CPU)
    assert torch.equal(reached.integers(*address), fields.integers(*address))
    for dtype in DTYPES:
        assert torch.equal(reached.uniform(*address, dtype), fields.uniform(*address, dtype))
        assert torch.equal(reached.normal(*address, dtype), fields.normal(*address, dtype))
    assert not torch.equal(reached.normal(*address, torch.float64), portable.normal(*address, torch.float64))
    threshold = torch.tensor(random.threshold(0.3))
    keep = reached.keep_mask(*address[:2], threshold, *address[2:])
    np.testing.assert_array_equal(keep, random.keep_mask(KEY, (40, 50), 0.3, stream=3))


def test_what_the_kernels_do_not_take_is_left_to_portable_operations() -> None:
    address = (signed(KEY), torch.tensor(3), layout("test", (4, 5)))
    meta = torch.device("meta")
    assert fields.integers(*address, meta).is_meta
    assert fields.uniform(*address, meta, torch.float32).is_meta
    assert fields.normal(*address, meta, torch.float32).is_meta


def test_places_without_an_address_are_refused() -> None:
    place = layout("test", (2**34 + 1,))
    for draw in (fields.uniform, fields.normal):
        with pytest.raises(ArgumentError, match=r"at most 2\*\*64 rows of 2\*\*34 columns"):
            draw(signed(KEY), torch.tensor(0), place, CPU, torch.float32)
