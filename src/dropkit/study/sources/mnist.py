"""The embedded sample of MNIST: 5,000 handwritten digits, grey levels from 0 to 1."""

import numpy as np

from dropkit.study import embedded
from dropkit.study.dataset import Dataset

__all__ = ["load"]


def load() -> Dataset:
    """Load the 5,000 images as rows of 784 grey levels between 0 and 1."""
    images, labels = embedded.mnist()
    return Dataset(
        name="mnist",
        title="MNIST, 5,000 handwritten digits",
        inputs=images.reshape(len(images), -1).astype(np.float32) / np.float32(255),
        targets=labels.astype(np.int64),
        note="A sample of MNIST (LeCun, Bottou, Bengio and Haffner 1998), 500 images a digit, shipped with dropkit.",
        image_shape=(28, 28),
    )
