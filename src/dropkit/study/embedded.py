"""The two real data sets that ship with dropkit: images and a table, each checked against its hash when read."""

import csv
import gzip
import hashlib
import io
from importlib import resources

import numpy as np
import numpy.typing as npt

from dropkit.errors import DataError
from dropkit.kernels.native.reinstall import place_to_run, reinstall_command

__all__ = ["churn", "mnist"]

_SHA256 = {
    "mnist_5k.npz": "246e0c30eeea57c8d0037d3f38c8e00651ec204cc61b8022563e9aeeb9d756f4",
    "telco_churn.csv.gz": "1cf23f46b69cccf2877dc8ca9b4dd2ee5d79e60ce0e0e50104d75b0d54180333",
}
_FOLDER = resources.files("dropkit.study") / "files"


def mnist() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Read the embedded sample of 5,000 handwritten digits from MNIST, 500 of each digit.

    The rows are sorted by digit: shuffle them before splitting.

    Returns:
        The images, uint8 of shape (5000, 28, 28) from 0 (paper) to 255 (ink), and the labels 0 to 9, uint8 of shape
        (5000,).

    Raises:
        DataError: if the file is missing or damaged.

    Examples:
        >>> from dropkit.study import embedded
        >>> images, labels = embedded.mnist()
        >>> images.shape, labels[[0, -1]].tolist()
        ((5000, 28, 28), [0, 9])

    References:
        LeCun, Bottou, Bengio and Haffner (1998), "Gradient-based learning applied to document recognition",
        section III.
    """
    with np.load(io.BytesIO(_read("mnist_5k.npz")), allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def churn() -> dict[str, list[str]]:
    """Read the embedded table of 7,043 telephone customers, of whom 1,869 left.

    Returns:
        One list of strings a column, as they stand in the CSV file, in its order: `churn` ("Yes" or "No") first, then
        19 columns that describe the customer. Eleven `total_charges` are empty.

    Raises:
        DataError: if the file is missing or damaged.

    Examples:
        >>> from dropkit.study import embedded
        >>> table = embedded.churn()
        >>> len(table), table["churn"].count("Yes"), table["tenure"][:3]
        (20, 1869, ['1', '34', '2'])
    """
    text = gzip.decompress(_read("telco_churn.csv.gz")).decode()
    header, *rows = csv.reader(io.StringIO(text))
    return {name: list(column) for name, column in zip(header, zip(*rows, strict=True), strict=True)}


def _read(name: str) -> bytes:
    try:
        content = (_FOLDER / name).read_bytes()
    except OSError as error:
        raise _unfit(name, f"cannot be read ({error})") from error
    found = hashlib.sha256(content).hexdigest()
    if found != _SHA256[name]:
        raise _unfit(name, f"is damaged: its sha256 must be {_SHA256[name]}, got {found}")
    return content


def _unfit(name: str, reason: str) -> DataError:
    command = reinstall_command()
    remedy = f"Reinstall dropkit{place_to_run(command)}: {command}"
    return DataError(f"The embedded data file {name} {reason}. {remedy}")
