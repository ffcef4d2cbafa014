"""Predicting new rows with the model that a study recommends."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dropkit._checks import KEY, Integer, Number, argument_error, argument_type_error, require
from dropkit.errors import DataError
from dropkit.study.inference import encode
from dropkit.study.preparation import DATE
from dropkit.study.reading import Table, listed, read_table

if TYPE_CHECKING:
    from torch import nn

    from dropkit.study.own import Factory
    from dropkit.study.saved_model import SavedModel

__all__ = ["Predictions", "load_models", "predict"]

_SAMPLES = Integer(2, 100_000, "[2, 100,000]")
_LEVEL = Number(0.0, 1.0, open_low=True, open_high=True, remedy="It is the share of the samples in an interval.")
_TOLERANCE = Number(0.0, float("inf"), open_high=True)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of new rows, in their order.

    Args:
        target: What is predicted.
        class_names: The name of each class; none where numbers are predicted.
        values: Probabilities of shape (rows, classes), or numbers of shape (rows, 1).
        low: The lower end of the interval of each value over the samples; None without samples.
        high: The upper end.
        unsure: Whether the model is unsure of a row, of shape (rows,); None without samples.
    """

    target: str
    class_names: tuple[str, ...]
    values: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64] | None = None
    high: npt.NDArray[np.float64] | None = None
    unsure: npt.NDArray[np.bool_] | None = None

    @property
    def labels(self) -> list[str]:
        """The likeliest class of each row; for numbers the number as text."""
        if self.class_names:
            return [self.class_names[place] for place in self.values.argmax(1)]
        return [f"{value:.8g}" for value in self.values[:, 0]]

    def to_csv(self, separator: str = ",") -> str:
        """Return a line a row: the prediction, for classes the probability of each, then intervals and ``unsure``.

        Args:
            separator: What stands between two fields. Default: a comma.
        """
        text = io.StringIO()
        writer = csv.writer(text, delimiter=separator, lineterminator="\n")
        names, columns = zip(*self._columns(), strict=True)
        writer.writerow(names)
        writer.writerows(zip(*columns, strict=True))
        return text.getvalue()

    def _columns(self) -> Iterator[tuple[str, list[str]]]:
        yield f"predicted {self.target}", self.labels
        for place, name in enumerate(self.class_names):
            yield f"probability {name}", _written(self.values[:, place], 6)
        if self.low is None or self.high is None or self.unsure is None:
            return
        headings = [(f"low {name}", f"high {name}") for name in self.class_names] or [("low", "high")]
        for place, pair in enumerate(headings):
            for heading, ends in zip(pair, (self.low, self.high), strict=True):
                yield heading, _written(ends[:, place], 6 if self.class_names else 8)
        yield "unsure", ["yes" if unsure else "no" for unsure in self.unsure]

    def __repr__(self) -> str:
        return f"Predictions of {self.target}, {len(self.values)} rows"


def _written(values: npt.NDArray[np.float64], digits: int) -> list[str]:
    return [f"{value:.{digits}g}" for value in values]


def predict(
    directory: str | PathLike[str],
    data: object,
    *,
    network: "Factory | None" = None,
    samples: int | None = None,
    level: float = 0.9,
    tolerance: float | None = None,
    seed: int = 0,
) -> Predictions:
    """Predict new rows with the recommended model of a study that has ended.

    With `samples` its networks drop as they did in training: that many passes over each are the samples. Their mean
    is the prediction, and how they differ is what dropout and the split of the rows leave open, not the noise of the
    data. Where nothing was dropped, which is warned of, each network is a sample as it is. Rates that a layer learned
    unit by unit are taken at their mean.

    Args:
        directory: The run directory.
        data: The path of a CSV or Parquet file with the columns of the study's table, in any order; others are left
            alone. For a study of an array: an array of shape (rows, columns). For rows that a function of yours loaded:
            inputs as the network takes them, a tensor or tensors in a tuple, list or dictionary.
        network: The function that the run began with, if its network was one of your own. Default: the study's network.
        samples: Passes with dropout over each network, from 2 to 100,000. Default: none, and no interval.
        level: Of samples, the share in the central interval, in (0, 1). A class is unsure where it is the likeliest in
            a smaller share of them. Default: 0.9.
        tolerance: Of samples of numbers, in their units: a prediction is unsure where half its interval is wider.
            Default: the root mean squared error on the study's test rows.
        seed: Of samples, what the masks are drawn from, in ``[0, 2**64)``. Default: 0.

    Returns:
        Probabilities of each class, or numbers; with `samples`, their intervals and which rows are unsure.

    Raises:
        ArgumentError: If the network is not the one that the run began with, or another value is not accepted.
        ArgumentTypeError: If an argument has a type that is not accepted.
        DataError: If columns are missing, or hold something else than in the study.
        RunError: If the run holds no model, or none that has samples.

    Examples:
        >>> from dropkit import study
        >>> study.predict("runs/forgotten", "new.csv")
        Traceback (most recent call last):
            ...
        dropkit.errors.RunError: runs/forgotten holds no model. Name the directory of a study that has ended, ...

    References:
        Gal and Ghahramani (2016), "Dropout as a Bayesian approximation", equation 6. Lakshminarayanan, Pritzel and
        Blundell (2017), "Simple and scalable predictive uncertainty estimation using deep ensembles", section 2.4.
    """
    if not isinstance(directory, str | PathLike):
        raise argument_type_error("predict", "directory", "a path", directory)
    level, seed = _LEVEL.check("predict", "level", level), KEY.check("predict", "seed", seed)
    if samples is not None:
        samples = _SAMPLES.check("predict", "samples", samples)
    if tolerance is not None:
        tolerance = _TOLERANCE.check("predict", "tolerance", tolerance)
        if samples is None:
            raise argument_error("predict", "tolerance", "left out without `samples`", tolerance)
    require("safetensors", "study", "A prediction")
    from dropkit.study.own.inputs import holds_tensors_alone
    from dropkit.study.saved_model import load_model

    if not isinstance(data, str | PathLike | np.ndarray) and not holds_tensors_alone(data):
        raise argument_type_error("predict", "data", "the path of a file, an array, or a network's inputs", data)
    model = load_model(Path(directory), network)
    inputs = _read(model, data)
    if samples is None:
        found = Predictions(model.target, model.class_names if model.is_classifier else (), model.predict(inputs))
    else:
        from dropkit.study.intervals import sampled

        found = sampled(Path(directory), model, inputs, samples, level, tolerance, seed)
    lost = ~np.isfinite(found.values).all(1)
    if lost.any():
        raise DataError(
            f"Row {int(lost.argmax()) + 1:,} of the new data lies so far outside the study's that the model gives no "
            "number for it. Correct it or leave it out."
        )
    return found


def _read(model: "SavedModel", data: Any) -> Any:
    """Return rows as the model takes them."""
    if not model.inputs:
        return _inputs(data)
    if isinstance(data, str | PathLike):
        return _table(model, Path(data))
    if isinstance(data, np.ndarray):
        return _array(model, data)
    raise argument_type_error("predict", "data", "the path of a file, or an array", data)


def load_models(directory: str | PathLike[str], *, network: "Factory | None" = None) -> "list[nn.Module]":
    """Return the trained networks of a study, whose mean is the saved model.

    They are the confirmation models of the recommended method, or of no regularisation where none is recommended.

    Args:
        directory: The run directory.
        network: The function that the run began with, if its network was one of your own. Default: the study's network.

    Returns:
        One network a confirmation seed, at its early-stopping epoch, in evaluation. It maps prepared rows to outputs:
        logits of shape (rows, classes), or standardised numbers of shape (rows, 1). One of the study's own is a
        `torch.nn.Sequential` of linear layers and ReLU; batch normalisation has become part of their weights.

    Raises:
        ArgumentError: If the network is not the one that the run began with.
        ArgumentTypeError: If an argument has a type that is not accepted.
        RunError: If the run holds no model.

    Examples:
        >>> from dropkit import study
        >>> study.load_models("runs/forgotten")
        Traceback (most recent call last):
            ...
        dropkit.errors.RunError: runs/forgotten holds no model. Name the directory of a study that has ended, ...
    """
    if not isinstance(directory, str | PathLike):
        raise argument_type_error("load_models", "directory", "a path", directory)
    require("safetensors", "study", "A saved model")
    from dropkit.study.own import OwnMember
    from dropkit.study.saved_model import load_model

    members = [member for _, member in load_model(Path(directory), network).members]
    return [member.module if isinstance(member, OwnMember) else member for member in members]


def _inputs(data: Any) -> Any:
    """Return what the network of a study of rows that a function loaded takes."""
    from dropkit.study.own.inputs import count_rows, fault, holds_tensors_alone

    if not holds_tensors_alone(data):
        what = "an array" if isinstance(data, np.ndarray) else str(data)
        raise DataError(
            "The study's rows were loaded by a function of your own: give study.predict inputs as the network takes "
            f"them, a tensor or tensors in a tuple, list or dictionary, not {what}."
        )
    wrong = fault(data, count_rows(data))
    if wrong:
        raise DataError(f"The new data are {wrong}.")
    return data


def _array(model: "SavedModel", data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if model.columns:
        raise DataError(f"The study's data are a table with named columns: give a file, not an array of {data.shape}.")
    if data.ndim != 2 or data.shape[1] != model.inputs or not np.issubdtype(data.dtype, np.number):
        raise DataError(f"The array must hold numbers in {model.inputs} columns, got {data.dtype} of {data.shape}.")
    if not np.isfinite(data).all():
        raise DataError("The array holds NaN or infinity; fill or leave out these rows first.")
    return data


def _table(model: "SavedModel", path: Path) -> npt.NDArray[np.float64]:
    if not model.columns:
        raise DataError(
            f"The study's data have no named columns, so that {path} cannot be matched with them. In Python, "
            f"dropkit.study.predict takes an array of shape (rows, {model.inputs})."
        )
    table: Table = read_table(path)
    missing = [column.name for column in model.columns if column.name not in table]
    if missing:
        raise DataError(f"{path} lacks the columns {listed(missing)}. It has {listed(table)}.")
    parts = []
    for column in model.columns:
        try:
            parts.append(encode(column, table[column.name]))
        except ValueError as error:
            example = " such as 2024-12-31" if column.kind == DATE else ""
            raise DataError(
                f"{path}: column {column.name!r} must hold {column.kind}s only{example}, as in the study's table, got "
                f"{str(error)!r}."
            ) from None
    return np.stack(parts, axis=1)
