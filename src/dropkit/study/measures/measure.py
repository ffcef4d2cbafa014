"""What a measure is, the model that it is taken of, and what it gives."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dropkit.study.methods import Recipe

__all__ = ["Measure", "Measured", "Trained", "Values"]


@dataclass(frozen=True, eq=False)
class Trained:
    """A confirmed model at its early-stopping epoch, with the rows that are its own.

    Args:
        key: The key of its seed.
        recipe: How it was trained.
        parameters: Weights and biases, each for one model; batch normalisation is folded into them.
        inputs: All rows as the model sees them, of shape (rows, inputs).
        targets: Their targets, of shape (rows,).
        train: Indices of the rows that trained it.
        validation: Indices of the rows that score it.
        image_shape: Height and width where a row is an image.
    """

    key: int
    recipe: Recipe
    parameters: list[Tensor]
    inputs: Tensor
    targets: Tensor
    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    image_shape: tuple[int, int] | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the hidden layers."""
        return tuple(weight.shape[2] for weight in self.parameters[:-2:2])


@dataclass(frozen=True)
class Values:
    """A measure of one model.

    Args:
        at: From each point at which it was taken to the value there, NaN where it has none.
        left_out: Hidden units that it leaves out.
    """

    at: Mapping[float, float]
    left_out: int = 0


@dataclass(frozen=True)
class Measured:
    """A measure of the models of one method, in the order of their seeds."""

    models: tuple[Values, ...]

    @property
    def mean(self) -> dict[float, float]:
        """The mean over the models that have a value, from point to value; without points that none has."""
        return {point: fmean(values) for point, values in self._columns().items()}

    @property
    def deviation(self) -> dict[float, float]:
        """The standard deviation over the same models, 0 for one."""
        return {point: stdev(values) if len(values) > 1 else 0.0 for point, values in self._columns().items()}

    @property
    def left_out(self) -> float:
        """Hidden units that are left out, on average over the models."""
        return fmean(values.left_out for values in self.models)

    def _columns(self) -> dict[float, list[float]]:
        points = dict.fromkeys(point for values in self.models for point in values.at)
        columns = {point: [values.at[point] for values in self.models if point in values.at] for point in points}
        finite = {point: [value for value in column if math.isfinite(value)] for point, column in columns.items()}
        return {point: column for point, column in finite.items() if column}


@dataclass(frozen=True)
class Measure:
    """Something to measure on a trained network.

    Args:
        name: Its name in results.json and in pictures.
        unit: What a point is, such as ``"share removed"``.
        take: From a model with hidden layers to the values.
        fits: Whether it can be taken of models that were trained in this way.
    """

    name: str
    unit: str
    take: Callable[[Trained], Values]
    fits: Callable[[Recipe], bool] = lambda recipe: True
