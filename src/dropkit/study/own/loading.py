"""Rows that a user's own function loads: asked for by number, and checked as they come.

The function has random numbers of its own, from a key: what it draws moves no first weight and no mask of dropout, and
all methods of a seed train on the same rows, augmented alike.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dropkit.errors import DataError
from dropkit.study.own.inputs import Inputs, fault, same, tensors
from dropkit.study.own.randomness import Stream

if TYPE_CHECKING:
    from dropkit.study.dataset import Dataset

__all__ = ["checked_batches", "digest_of_rows", "loaded"]

_ROWS_IN_DIGEST = 32
_CALL = "It is called as load(batches, training), with a list of lists of row numbers and True or False."
_BEGIN = "Every call must give one pair for each list of `batches`, such as DataLoader(data, batch_sampler=batches)."
_PAIR = "Every batch must be a pair (inputs, targets) with a row for each number of its list, all of it finite."
_ORDER = "It must load the rows of every list of `batches` in their order, with their targets as they are."
_GLOBAL = (
    "Draw random numbers from the global generators of PyTorch, NumPy or Python, which the study seeds: a run that is "
    "resumed must do the same."
)
_PLAIN = "Leave augmentation out where `training` is False: chance must not move the scores."
_MISSING = object()


def loaded(data: "Dataset", batches: Sequence[Tensor], *, training: bool, key: int = 0) -> Iterator[Inputs]:
    """Load batches of rows.

    Args:
        data: With the function.
        batches: The rows of each batch.
        training: Whether augmentation may act.
        key: Of the function's random numbers.

    Yields:
        The inputs of each batch, in order.

    Raises:
        DataError: If the function fails, or gives something else than was asked for.
    """
    load = data.load
    assert load is not None  # noqa: S101  # asked only of data with a function
    stream, of = Stream(key), f"of {len(batches)}, training={training}"
    try:
        with stream.turn():
            found = load([rows.tolist() for rows in batches], training)
    except Exception as error:
        raise _error(data, f"fails with training={training}: {_shown(error)}", _CALL) from error
    if not isinstance(found, Iterable):
        raise _error(data, f"gives {_brief(found)}, which holds no batches", _BEGIN)
    iterator = _taken(data, found, stream, of)
    for number, rows in enumerate(batches, 1):
        batch = next(iterator, _MISSING)
        if batch is _MISSING:
            raise _error(data, f"ends before batch {number} {of}", _BEGIN)
        yield _checked(data, batch, rows, f"batch {number} {of}")
    if next(iterator, _MISSING) is not _MISSING:
        raise _error(data, f"goes on after the last batch {of}", _BEGIN)


def checked_batches(data: "Dataset", batches: Sequence[Tensor]) -> tuple[Inputs, Inputs]:
    """Load batches more than once, so that a mistake is found before a run begins.

    Returns:
        The inputs of the first batch as they are in training, and in evaluation.

    Raises:
        DataError: If the function fails, gives something else than was asked for, or what it gives does not follow from
            the seed alone; in evaluation it must follow from the rows alone.
    """
    found = []
    for training, keys, remedy in ((True, (0, 0), _GLOBAL), (False, (0, 1), _PLAIN)):
        one, other = (list(loaded(data, batches, training=training, key=key)) for key in keys)
        if not all(same(*pair) for pair in zip(one, other, strict=True)):
            raise _error(data, f"gives other inputs when it is called again with training={training}", remedy)
        found.append(one[0])
    return found[0], found[1]


def digest_of_rows(data: "Dataset") -> bytes:
    """Return the SHA-256 of what the function gives for rows from the first to the last, in evaluation."""
    rows = np.unique(np.linspace(0, data.rows - 1, _ROWS_IN_DIGEST).astype(np.int64))
    found = hashlib.sha256()
    for inputs in loaded(data, [torch.from_numpy(rows)], training=False):
        for place, value in tensors(inputs):
            found.update(f"{place} {value.dtype} {tuple(value.shape)}\n".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.digest()


def _taken(data: "Dataset", found: Iterable[Any], stream: Stream, of: str) -> Iterator[Any]:
    """Return the batches as they come; the function draws random numbers while it is asked for the next alone."""
    number, iterator = 0, None
    while True:
        number += 1
        try:
            with stream.turn():
                iterator = iter(found) if iterator is None else iterator
                batch = next(iterator, _MISSING)
        except Exception as error:
            raise _error(data, f"fails at batch {number} {of}: {_shown(error)}", _CALL) from error
        if batch is _MISSING:
            return
        yield batch


def _checked(data: "Dataset", batch: Any, rows: Tensor, which: str) -> Inputs:
    """Return the inputs of a batch that is what was asked for."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise _error(data, f"gives {_brief(batch)} as {which}", _PAIR)
    inputs, targets = batch
    wrong = fault(inputs, len(rows))
    if wrong:
        raise _error(data, f"gives, in {which}, {wrong}", _PAIR)
    _check_targets(data, targets, rows, which)
    return inputs


def _check_targets(data: "Dataset", targets: Any, rows: Tensor, which: str) -> None:
    try:
        found = torch.as_tensor(targets).detach().cpu()
        exact = found.double()
    except (TypeError, ValueError, RuntimeError):
        raise _error(data, f"gives, in {which}, targets of type {type(targets).__name__}", _ORDER) from None
    if exact.shape not in ((len(rows),), (len(rows), 1)):
        raise _error(data, f"gives, in {which}, targets of shape {tuple(exact.shape)}, not ({len(rows)},)", _ORDER)
    wanted = torch.from_numpy(data.targets[rows.numpy()]).double()
    rounding = max(torch.finfo(found.dtype if found.is_floating_point() else torch.float32).eps, 2**-23)
    differs = ~((exact.flatten() - wanted).abs() <= rounding * wanted.abs() + torch.finfo(torch.float32).tiny)
    if differs.any():
        place = int(differs.nonzero()[0])
        pair = f"{exact.flatten()[place]:g}, and `targets` says {wanted[place]:g}"
        raise _error(data, f"gives, in {which}, another target for row {int(rows[place])}: {pair}", _ORDER)


def _error(data: "Dataset", what: str, remedy: str) -> DataError:
    return DataError(f"Data set {data.name!r}: the function `load` {what}. {remedy}")


def _brief(value: object) -> str:
    shown = " ".join(repr(value).split())
    return f"{shown[:77]}..." if len(shown) > 80 else shown


def _shown(error: Exception) -> str:
    """Return an error as one line; a worker's holds its whole traceback, whose last line says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' ... '.join(dict.fromkeys([*lines[:1], *lines[-1:]]))}"
