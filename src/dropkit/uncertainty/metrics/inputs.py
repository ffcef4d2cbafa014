"""What metrics, figures and scores take: tensors or arrays, checked and turned into float64."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dropkit._checks import argument_error, argument_type_error
from dropkit.uncertainty.results.result import Result

__all__ = [
    "SAMPLES",
    "Array",
    "LabelArray",
    "both",
    "column",
    "labels_of",
    "numbers",
    "plain",
    "probabilities_of",
    "rows_of",
    "same_shape",
    "simplex",
]

Array = npt.NDArray[np.float64]
LabelArray = npt.NDArray[np.int64]

_PRECISION = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # coarser than what sums are checked to
_ROUNDING = 8 * 2.0**-7  # how far sums of probabilities may be off that once were of the coarsest type
_LOGITS = "Take the softmax of logits."
_LOGIT = "Take the sigmoid of a single logit."
_ROUNDED = "Divide them by their sum."
_JOIN = "Join tensors by torch.cat or torch.stack; in a list they are taken only of one shape and without gradients."
_AVERAGE = "Average the passes first: samples.mean(0)."
SAMPLES = "Give result.samples of mc(..., keep_samples=True)."
_STATISTIC = "Give one of its statistics, such as result.mean or result.std."
_WHOLE = "labels.long(), or labels.astype(int) of an array"
_SECOND = "The probability of the second of two classes is one column: p.unsqueeze(-1)."


def _as_array(where: str, name: str, value: Any) -> npt.NDArray[Any]:
    """Return a tensor, an array or nested sequences of real numbers as an array of their own type."""
    rule = "a dense tensor or an array of real numbers"
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_complex() or value.is_quantized:
            raise argument_type_error(where, name, rule, f"{value.layout} of {value.dtype}")
        whole = value.detach().cpu()
        return (whole.double() if whole.is_floating_point() else whole).numpy()
    if isinstance(value, Result):
        raise argument_type_error(where, name, rule, "a Result", SAMPLES if name == "samples" else _STATISTIC)
    if isinstance(value, str | bytes | dict | set) or value is None:
        raise argument_type_error(where, name, rule, value)
    if np.ma.is_masked(value):
        raise argument_error(where, name, "without masked numbers", value, "Leave their rows out, or fill them.")
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # rows of different lengths, or what only looks like a sequence
        remedy = _JOIN if isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value) else ""
        raise argument_type_error(where, name, rule, value, remedy) from None
    if found.dtype.kind not in "biuf":
        raise argument_type_error(where, name, rule, value)
    return found


def numbers(where: str, name: str, value: Any, rank: int | None = None, remedy: str = "") -> Array:
    """Return finite numbers of one row or more, as float64; of `rank` axes, if that is given.

    Where one is not finite, the error ends with the remedy.
    """
    found = _as_array(where, name, value).astype(np.float64)
    if rank is not None and found.ndim != rank:
        axes = "one axis" if rank == 1 else f"{rank} axes"
        squeezed = f"Take the last axis off: {name}.squeeze(-1)." if found.ndim == 2 and found.shape[1] == 1 else ""
        raise argument_error(where, name, f"of {axes}", found.shape, squeezed)
    if found.size == 0 or found.ndim == 0:
        raise argument_error(where, name, "one row or more", found.shape)
    is_finite = np.isfinite(found)
    if not is_finite.all():
        raise argument_error(where, name, "finite numbers", float(found[~is_finite][0]), remedy)
    return found


def plain(value: Any) -> Any:
    """Return the number of a tensor without axes, and anything else as it is."""
    is_number = isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex()
    return value.item() if is_number else value


def same_shape(where: str, name: str, value: Any, other: str, shape: tuple[int, ...]) -> Array:
    """Return finite numbers of the shape that the argument `other` asks for."""
    found = numbers(where, name, value)
    if found.shape != shape:
        rule = f"of shape {shape}, as `{other}` is"
        raise argument_error(where, name, rule, found.shape, column(shape, other, found.shape, name))
    return found


def column(shape: tuple[int, ...], name: str, other_shape: tuple[int, ...], other: str) -> str:
    """Return the remedy where of two arguments one has a last axis of length 1, and the other none."""
    for one, two, called in ((shape, other_shape, name), (other_shape, shape, other)):
        if one == (*two, 1):
            return f"Take the last axis off: {called}.squeeze(-1)."
    return ""


def simplex(where: str, name: str, found: Any, given: Any) -> None:
    """Check that numbers, in an array or a tensor, are probabilities that sum to 1 over the last axis.

    The sum may be off by 0.0001, or by more where the numbers are given in a type that cannot say better. One number is
    the probability of the second of two classes.
    """
    is_one = found.shape[-1] == 1
    for wrong in (found < 0, found > 1 + 1e-6):
        if wrong.any():
            raise argument_error(where, name, "in [0, 1]", float(found[wrong][0]), _LOGIT if is_one else _LOGITS)
    if is_one:
        return
    sums = found.sum(-1)
    wrong = abs(sums - 1) > max(1e-4, 8 * _PRECISION.get(str(getattr(given, "dtype", "")).removeprefix("torch."), 0.0))
    if wrong.any():
        off = float(sums[wrong][0])
        remedy = _ROUNDED if abs(off - 1) < _ROUNDING else _LOGITS
        raise argument_error(where, name, "probabilities that sum to 1 over the classes", off, remedy)


def probabilities_of(where: str, value: Any) -> Array:
    """Return probabilities of shape (rows, classes), of two classes where the second's alone are given."""
    found = numbers(where, "probabilities", value)
    if found.ndim != 2:
        remedy = {1: _SECOND, 3: _AVERAGE}.get(found.ndim, "")
        raise argument_error(where, "probabilities", "of shape (rows, classes)", found.shape, remedy)
    simplex(where, "probabilities", found, value)
    return both(found)


def both(found: Array) -> Array:
    """Return the probabilities of both of two classes where the last axis has but the second's."""
    if found.shape[-1] > 1:
        return found
    second = np.minimum(found, 1)  # rounding may leave more
    return np.concatenate([1 - second, second], -1)


def labels_of(where: str, value: Any, rows: int, classes: int) -> LabelArray:
    """Return the classes of rows, whole numbers from 0; what is true is 1."""
    found = _as_array(where, "labels", value)
    rule = f"of shape ({rows},), one a row of `probabilities`"
    if found.shape == (rows, classes) and bool((abs(found.sum(1) - 1) < _ROUNDING).all()):
        raise argument_error(where, "labels", rule, found.shape, "Of one-hot labels give labels.argmax(1).")
    if found.dtype.kind not in "iub":
        is_whole = found.dtype.kind == "f" and bool((found == np.floor(found)).all())
        remedy = f"Give {_WHOLE}." if is_whole else "Give each row the number of its class."
        raise argument_type_error(where, "labels", "of an integer type", found.dtype, remedy)
    if found.shape != (rows,):
        remedy = column(found.shape, "labels", (rows,), "")
        raise argument_error(where, "labels", rule, found.shape, remedy)
    wrong = (found < 0) | (found >= classes)
    if wrong.any():
        raise argument_error(where, "labels", f"classes from 0 to {classes - 1}", int(found[wrong][0]))
    return found.astype(np.int64)


def rows_of(where: str, probabilities: Any, labels: Any) -> tuple[Array, LabelArray]:
    """Return probabilities of shape (rows, classes) and the classes that rows have."""
    found = probabilities_of(where, probabilities)
    return found, labels_of(where, labels, *found.shape)
