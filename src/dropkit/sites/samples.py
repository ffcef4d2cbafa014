"""Numbered examples: masks that belong to an example, wherever it stands in whatever batch."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from dropkit._checks import Integer, argument_error, argument_type_error
from dropkit.errors import UnsupportedError
from dropkit.functional.examples import NumberedKey
from dropkit.sites.interception.checkpoints import carry, watched
from dropkit.sites.interception.counts import apart
from dropkit.sites.interception.interceptor import Interceptor

__all__ = ["Numbers", "current", "is_numbering", "samples", "set_current"]

_NUMBER = Integer(0, 2**63 - 1, "[0, 2**63)")
_AXIS = Integer(-64, 63, "the range of a tensor's axes")


@dataclass(frozen=True)
class Numbers:
    """The numbers of a batch's examples, or those of several passes over them, one pass after another.

    Args:
        runs: First number and length of each run of consecutive numbers, in the order of the batch.
        axis: The axis of tensors along which the examples lie.
        shards: Where tensors are parts of whole ones along other axes: first index, and length of the whole.
        origin: What told how many there are, if nobody has numbered them.
        streams: Numbers of the passes. The axis has the examples for each of them in turn.
    """

    runs: tuple[tuple[int, int], ...]
    axis: int
    shards: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    origin: str = ""
    streams: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return len(self.streams) * sum(length for _, length in self.runs)

    def __iter__(self) -> Iterator[int]:
        return (first + i for _ in self.streams for first, length in self.runs for i in range(length))

    def key(self, key: int) -> NumberedKey:
        """Return a key with these numbers, for what has the examples along axis 0."""
        return NumberedKey(key, self.runs, self.streams)

    def shared_key(self, key: int, what: str) -> int:
        """Return a key for noise that all examples of a pass share; raise if there are several passes.

        Args:
            key: The key.
            what: Who draws it, and what it is, for messages.
        """
        if len(self.streams) > 1:
            raise UnsupportedError(
                f"{what} is noise that all examples of a pass share: several passes cannot lie along one axis. Run "
                "them one after another."
            )
        return key if self.streams == (0,) else NumberedKey(key, (), self.streams)

    def moved(self, order: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Return the shards of tensors whose axes have been put into another order."""
        return {order.index(axis): shard for axis, shard in self.shards.items()}

    def part(self, first: int, length: int) -> "Numbers":
        """Return the numbers of some of the examples, which follow one another in the batch."""
        return self.those(list(self)[first : first + length])

    def those(self, numbers: list[int]) -> "Numbers":
        """Return other numbers of examples along the same axis, of one pass."""
        if len(self.streams) > 1:
            raise UnsupportedError(
                "dropkit.sites: a part of the examples of several passes has other examples in each. Run the passes "
                "one after another."
            )
        return replace(self, runs=_runs(numbers))


_current: ContextVar[Numbers | None] = ContextVar("samples", default=None)


carry(_current)


class _Open:
    """Whether anybody numbers examples, which compiled code can ask for: not where this thread or task is."""

    def __init__(self) -> None:
        self.is_any, self._count, self._lock = False, 0, threading.Lock()

    def add(self, count: int) -> None:
        """Note that numbers are given, or no more."""
        with self._lock:
            self._count += count
            self.is_any = self._count > 0


_open = _Open()


def current() -> Numbers | None:
    """Return the numbers of the examples that forwards have now, if they are numbered."""
    return _current.get()


def is_numbering() -> bool:
    """Tell whether examples are numbered now; while code is compiled, whether they are so anywhere."""
    return _open.is_any if torch.compiler.is_compiling() else current() is not None


@contextmanager
def set_current(numbers: Numbers | None) -> Iterator[None]:
    """Let examples have numbers, or none, meanwhile."""
    token, count = _current.set(numbers), int(numbers is not None)
    _open.add(count)
    try:
        yield
    finally:
        _open.add(-count)
        _current.reset(token)


@contextmanager
def samples(ids: Sequence[int] | Tensor, dim: int = 0) -> Iterator[None]:
    """Give the examples of a batch numbers: each has the masks of its number, wherever it stands in whatever batch.

    Inside it, addressed models draw for an example what they would draw for it in one large batch in the order of the
    numbers: micro-batches, other splits and other orders of the same examples have the same masks, as long as the
    other axes keep their lengths; sequences that are packed or nested may be of any. The calls of a step are counted
    from 0 in each such block, and go on after it as if it had not been. It holds for forwards of the thread, or the
    task of asyncio, that has opened it, and for no others.

    Numbers are along axis `dim` of every tensor that noise is drawn for. Those of attention weights are along axis 0 of
    queries, and those of recurrent networks, attention and encoders where the module has its batch, whatever `dim` is.
    Noise that all examples share is the same for all numbers: of weights, of word types in a whole batch, of axes that
    share a draw, and of random numbers without an axis. DropBlock scales each example by what is kept of it alone. A
    model that brings the batch's axis elsewhere has no noise of examples, and is refused where the lengths tell.

    Args:
        ids: The examples' numbers, in ``[0, 2**63)``: a range, a sequence, an array or a tensor of integers. Runs of
            consecutive numbers take one draw each.
        dim: The axis along which the examples lie. Default: 0.

    Raises:
        ArgumentError: If a number is negative, or there are none; and by the forward, if a tensor that noise is
            drawn for has not as many examples, or its masks have no row for a number so large.
        ArgumentTypeError: If a number is no integer.

    Examples:
        >>> import torch, dropkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5))
        >>> handle = dropkit.sites.address(model, seed=7)
        >>> batch = torch.randn(6, 4)
        >>> with dropkit.sites.samples(range(6)):
        ...     whole = model(batch)
        >>> with dropkit.sites.samples([5, 2]):
        ...     part = model(batch[[5, 2]])
        >>> torch.equal(part == 0, whole[[5, 2]] == 0)
        True
    """
    numbers = Numbers(_runs(_checked(ids)), _AXIS.check("samples", "dim", dim))
    for each in watched():
        if isinstance(each, Interceptor) and each.counts is not None and each.is_running():
            raise UnsupportedError("samples: an addressed model's forward is running. Number its examples around it.")
    with apart(), set_current(numbers):
        yield


def _checked(ids: object) -> list[int]:
    if isinstance(ids, Tensor):
        has_values = ids.layout is torch.strided and not ids.is_meta
        is_other = ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool
        if ids.dim() != 1 or is_other or not has_values:
            rule = "of one axis and of an integer type, with values"
            raise argument_type_error("samples", "ids", rule, f"{ids.dtype} of shape {tuple(ids.shape)}")
        ids = ids.tolist()
    elif hasattr(ids, "__array__"):
        ids = np.asarray(ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            rule = "of one axis and of an integer type"
            raise argument_type_error("samples", "ids", rule, f"{ids.dtype} of shape {ids.shape}")
        ids = ids.tolist()
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence):  # a set or a dict has another order than a batch
        raise argument_type_error("samples", "ids", "a range, a sequence or a tensor of integers", ids)
    numbers = [_NUMBER.check("samples", f"ids[{i}]", number) for i, number in enumerate(ids)]
    if not numbers:
        raise argument_error("samples", "ids", "one number or more", numbers)
    return numbers


def _runs(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == sum(runs[-1]):
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((number, 1))
    return tuple(runs)
