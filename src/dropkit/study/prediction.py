"""Predicting new rows with the model that a study recommends."""

import csv
import io
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dropkit._checks import argument_type_error, require
from dropkit.errors import DataError
from dropkit.study.inference import encode
from dropkit.study.preparation import DATE
from dropkit.study.reading import Table, listed, read_table

if TYPE_CHECKING:
    from torch import nn

    from dropkit.study.own import Factory
    from dropkit.study.saved_model import SavedModel

__all__ = ["Predictions", "load_models", "predict"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of new rows, in their order.

    Args:
        target: What is predicted.
        class_names: The name of each class; none where numbers are predicted.
        values: Probabilities of shape (rows, classes), or numbers of shape (rows, 1).
    """

    target: str
    class_names: tuple[str, ...]
    values: npt.NDArray[np.float64]

    @property
    def labels(self) -> list[str]:
        """The likeliest class of each row; for numbers the number as text."""
        if self.class_names:
            return [self.class_names[place] for place in self.values.argmax(1)]
        return [f"{value:.8g}" for value in self.values[:, 0]]

    def to_csv(self) -> str:
        """Return a line a row: the prediction, and for classes the probability of each."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([f"predicted {self.target}", *(f"probability {name}" for name in self.class_names)])
        for label, row in zip(self.labels, self.values, strict=True):
            writer.writerow([label, *(f"{value:.6g}" for value in row)] if self.class_names else [label])
        return text.getvalue()

    def __repr__(self) -> str:
        return f"Predictions of {self.target}, {len(self.values)} rows"


def predict(directory: str | PathLike[str], data: object, *, network: "Factory | None" = None) -> Predictions:
    """Predict new rows with the recommended model of a study that has ended.

    Args:
        directory: The run directory.
        data: The path of a CSV or Parquet file with the columns of the study's table, in any order; others are left
            alone. For a study of an array: an array of shape (rows, columns). For rows that a function of yours loaded:
            inputs as the network takes them, a tensor or tensors in a tuple, list or dictionary.
        network: The function that the run began with, if its network was one of your own. Default: the study's network.

    Returns:
        Probabilities of each class, or numbers.

    Raises:
        ArgumentError: If the network is not the one that the run began with.
        ArgumentTypeError: If an argument has a type that is not accepted.
        DataError: If columns are missing, or hold something else than in the study.
        RunError: If the run holds no model.

    Examples:
        >>> from dropkit import study
        >>> study.predict("runs/forgotten", "new.csv")
        Traceback (most recent call last):
            ...
        dropkit.errors.RunError: runs/forgotten holds no model. Name the directory of a study that has ended, ...
    """
    if not isinstance(directory, str | PathLike):
        raise argument_type_error("predict", "directory", "a path", directory)
    require("safetensors", "study", "A prediction")
    from dropkit.study.own.inputs import holds_tensors_alone
    from dropkit.study.saved_model import load_model

    if not isinstance(data, str | PathLike | np.ndarray) and not holds_tensors_alone(data):
        raise argument_type_error("predict", "data", "the path of a file, an array, or a network's inputs", data)
    model = load_model(Path(directory), network)
    if not model.inputs:
        inputs = _inputs(data)
    elif isinstance(data, str | PathLike):
        inputs = _table(model, Path(data))
    elif isinstance(data, np.ndarray):
        inputs = _array(model, data)
    else:
        raise argument_type_error("predict", "data", "the path of a file, or an array", data)
    names = model.class_names if model.task == "classification" else ()
    values = model.predict(inputs)
    lost = ~np.isfinite(values).all(1)
    if lost.any():
        raise DataError(
            f"Row {int(lost.argmax()) + 1:,} of the new data lies so far outside the study's that the model gives no "
            "number for it. Correct it or leave it out."
        )
    return Predictions(model.target, names, values)


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
