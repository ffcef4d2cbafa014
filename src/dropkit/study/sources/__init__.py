"""Data sources, one file each: a name, and a function that loads the data set."""

from collections.abc import Callable

from dropkit.study.dataset import Dataset
from dropkit.study.sources import churn, mnist

__all__ = ["SOURCES"]

SOURCES: dict[str, Callable[[], Dataset]] = {
    "mnist": mnist.load,
    "churn": churn.load,
}
