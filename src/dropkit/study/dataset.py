"""A data set as a study sees it: rows of numbers, each with a class."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dropkit.errors import DataError

__all__ = ["Dataset"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows of numbers and the class of each row.

    Args:
        name: Short name, used for the run directory.
        title: What the report calls it, such as ``"MNIST, 5,000 images"``.
        inputs: Array of shape (rows, columns); converted to float32. No NaN, no infinity.
        targets: Class of each row, integers 0 .. classes - 1, of shape (rows,).
        note: Where the data come from, printed in the report. Default: nothing.

    Raises:
        DataError: If the shapes do not fit, a number is not finite, or there are fewer than two classes.

    Examples:
        >>> import numpy as np
        >>> Dataset("toy", "Two points", np.array([[0.0], [1.0]]), np.array([0, 1]))
        Dataset('toy', 2 rows, 1 columns, 2 classes)
    """

    name: str
    title: str
    inputs: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]
    note: str = ""

    def __post_init__(self) -> None:
        inputs, targets = np.asarray(self.inputs), np.asarray(self.targets)
        if inputs.ndim != 2 or targets.shape != inputs.shape[:1] or inputs.size == 0:
            raise self._error(
                f"inputs must be of shape (rows, columns) and targets (rows,), got {inputs.shape} and {targets.shape}"
            )
        if not np.issubdtype(targets.dtype, np.integer) or targets.min() < 0:
            raise self._error(f"targets must be integers from 0, got {targets.dtype} from {targets.min()}")
        if np.count_nonzero(np.bincount(targets)) != targets.max() + 1 or targets.max() < 1:
            raise self._error(
                f"targets must use every class from 0 and at least two, got {np.unique(targets).tolist()}"
            )
        try:
            inputs = np.ascontiguousarray(inputs, np.float32)
        except (TypeError, ValueError):
            raise self._error(f"inputs must be numbers, got {inputs.dtype}") from None
        if not np.isfinite(inputs).all():
            raise self._error("inputs hold NaN or infinity; fill or leave out these rows first")
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "targets", np.ascontiguousarray(targets, np.int64))

    def _error(self, what: str) -> DataError:
        return DataError(f"Data set {self.name!r}: {what}.")

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.targets)

    @property
    def columns(self) -> int:
        """Number of input columns."""
        return self.inputs.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.targets.max()) + 1

    def digest(self) -> str:
        """Return the SHA-256 of inputs and targets, which a run's plan records."""
        found = hashlib.sha256(repr(self.inputs.shape).encode())
        found.update(self.inputs.tobytes())
        found.update(self.targets.tobytes())
        return found.hexdigest()

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {self.rows} rows, {self.columns} columns, {self.classes} classes)"
