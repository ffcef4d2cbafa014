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
from dropkit.study.new_rows import read_rows

if TYPE_CHECKING:
    from torch import nn

    from dropkit.study.own import Factory

__all__ = ["Predictions", "load_models", "predict"]

_SAMPLES = Integer(2, 100_000, "[2, 100,000]")
_OF_SAMPLES: dict[str, Number | Integer] = {
    "level": Number(0.0, 1.0, open_low=True, open_high=True, remedy="It is the share of the samples in an interval."),
    "tolerance": Number(0.0, float("inf"), open_high=True),
    "seed": KEY,
}


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
        notes: Sentences on what the intervals are worth, and on rows that are not like those of the study.
    """

    target: str
    class_names: tuple[str, ...]
    values: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64] | None = None
    high: npt.NDArray[np.float64] | None = None
    unsure: npt.NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()

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
    method: str | None = None,
    samples: int | None = None,
    level: float | None = None,
    tolerance: float | None = None,
    seed: int | None = None,
) -> Predictions:
    """Predict new rows with the recommended model of a study that has ended.

    With `samples` its networks drop as they did in training: that many passes over each are the samples. Their mean
    is the prediction, and how they differ is what dropout and the split of the rows leave open, not the noise of the
    data: an interval is one of the prediction and not of the target. Where nothing was dropped, which is warned of,
    each network is a sample as it is. Rates that a layer learned unit by unit are taken at their mean.

    Args:
        directory: The run directory.
        data: The path of a CSV or Parquet file with the columns of the study's table, in any order; others are left
            alone. For a study of an array: an array of shape (rows, columns). For rows that a function of yours loaded:
            inputs as the network takes them, a tensor or tensors in a tuple, list or dictionary.
        network: The function that the run began with, if its network was one of your own. Default: the study's network.
        method: A method of the study, such as ``"dropout"``, whose confirmed networks predict in place of the
            recommended ones. Default: the recommended method, or none where none is recommended.
        samples: Passes with dropout over each network, from 2 to 100,000. Default: none, and no interval.
        level: Of samples, the share in the central interval, in (0, 1). A class is unsure where it is the likeliest in
            a smaller share of them. Default: 0.9.
        tolerance: Of samples of numbers, in their units: a prediction is unsure where half its interval is wider.
            Default: the root mean squared error on the study's test rows.
        seed: Of samples, what the masks are drawn from, in ``[0, 2**64)``. Default: 0.

    Returns:
        Probabilities of each class, or numbers; with `samples`, their intervals and which rows are unsure. A row with
        no value that the study knows, or with one further beyond its range than that is wide, is always unsure.

    Raises:
        ArgumentError: If the network is not the one that the run began with, the run has no networks of the method, or
            another value is not accepted.
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
    if method is not None and not isinstance(method, str):
        raise argument_type_error("predict", "method", "the name of a method", method)
    if samples is not None:
        samples = _SAMPLES.check("predict", "samples", samples)
    chosen: dict[str, Any] = {"level": 0.9, "tolerance": None, "seed": 0}
    for name, value in {"level": level, "tolerance": tolerance, "seed": seed}.items():
        if value is not None:
            chosen[name] = _OF_SAMPLES[name].check("predict", name, value)
            if samples is None:
                raise argument_error("predict", name, "left out without `samples`", value)
    require("safetensors", "study", "A prediction")
    from dropkit.study.own.inputs import holds_tensors_alone
    from dropkit.study.saved_model import load_model

    if not isinstance(data, str | PathLike | np.ndarray) and not holds_tensors_alone(data):
        raise argument_type_error("predict", "data", "the path of a file, an array, or a network's inputs", data)
    model = load_model(Path(directory), network, method)
    rows = read_rows(model, data)
    if samples is None:
        names = model.class_names if model.is_classifier else ()
        notes = (rows.note,) if rows.note else ()
        found = Predictions(model.target, names, model.predict(rows.inputs), notes=notes)
    else:
        from dropkit.study.intervals import sampled

        found = sampled(Path(directory), model, rows, samples, **chosen)
    lost = ~np.isfinite(found.values).all(1)
    if lost.any():
        raise DataError(
            f"Row {int(lost.argmax()) + 1:,} of the new data lies so far outside the study's that the model gives no "
            "number for it. Correct it or leave it out."
        )
    return found


def load_models(
    directory: str | PathLike[str], *, network: "Factory | None" = None, method: str | None = None
) -> "list[nn.Module]":
    """Return the trained networks of a study, whose mean is the saved model.

    They are the confirmation models of the recommended method, or of no regularisation where none is recommended.

    Args:
        directory: The run directory.
        network: The function that the run began with, if its network was one of your own. Default: the study's network.
        method: A method of the study whose confirmed networks are wanted instead, such as ``"dropout"``.

    Returns:
        One network a confirmation seed, at its early-stopping epoch, in evaluation. It maps prepared rows to outputs:
        logits of shape (rows, classes), or standardised numbers of shape (rows, 1). One of the study's own is a
        `torch.nn.Sequential` of linear layers and ReLU; batch normalisation has become part of their weights.

    Raises:
        ArgumentError: If the network is not the one that the run began with, or the run has none of the method.
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
    if method is not None and not isinstance(method, str):
        raise argument_type_error("load_models", "method", "the name of a method", method)
    require("safetensors", "study", "A saved model")
    from dropkit.study.own import OwnMember
    from dropkit.study.saved_model import load_model

    members = [member for _, member in load_model(Path(directory), network, method).members]
    return [member.module if isinstance(member, OwnMember) else member for member in members]
