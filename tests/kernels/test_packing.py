"""Masks as the library reads them, whatever the order of bytes in a word."""

import numpy as np
import pytest

from dropkit.kernels.native.packing import packed_words


@pytest.mark.parametrize("shape", [(), (0,), (1,), (63,), (64,), (65,), (3, 5, 7)])
def test_the_first_elements_are_the_lowest_bits_of_the_first_words(shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(3).random(shape) < 0.5
    words = packed_words(np.asarray(mask))
    assert words.dtype == np.uint64
    assert words.dtype.isnative
    elements = mask.reshape(-1).tolist()
    want = [sum(int(bit) << place for place, bit in enumerate(elements[i : i + 64])) for i in range(0, mask.size, 64)]
    assert words.tolist() == want
