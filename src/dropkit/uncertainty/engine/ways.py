"""Ways to run many passes, of which the fastest is taken that gives what single passes give."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.sites.samples import Numbers
from dropkit.uncertainty.engine.inputs import Inputs, Output
from dropkit.uncertainty.engine.passes import Drawing, Passes
from dropkit.uncertainty.engine.tape import MismatchError, Player, Recorder, Reel, Tape
from dropkit.uncertainty.results.axes import Axis

__all__ = ["Batch", "Way", "found"]


@dataclass(frozen=True)
class Way:
    """How passes over inputs of one kind are run.

    Args:
        engine: ``"prefix"`` runs what comes before the first site once, ``"batched"`` whole passes together,
            ``"loop"`` one after another.
        axis: The axis along which examples lie; None if masks belong to places and to no example.
        is_batched: Whether many passes run together.
        axes: Where passes lie in what is recorded before the first site.
        bytes: Size of the largest tensor of one pass that depends on a mask.
        reason: Why passes do not run together, or have nothing in common; empty if they do.
        leaves: For each leaf of the output the axis along which its examples lie; None if that is not known of any.
    """

    engine: str
    axis: int | None
    is_batched: bool
    axes: "list[tuple[int | None, ...]] | None"
    bytes: int
    reason: str = ""
    leaves: "tuple[Axis, ...] | None" = None

    @property
    def name(self) -> str:
        """The engine, as a result tells it."""
        return self.engine if self.is_batched else "loop"


@dataclass(frozen=True)
class Batch:
    """A model, and inputs that it is run on.

    Args:
        model: The model.
        handler: What gives its sites their masks.
        inputs: The inputs.
        is_shared: Whether all examples have the same masks in a pass.
        first: Number of the first example.
        step: Number of the batch.
    """

    model: Module
    handler: Passes
    inputs: Inputs
    is_shared: bool
    first: int
    step: int

    def drawing(self, axis: int | None, streams: tuple[int, ...], reel: Reel | None = None) -> Drawing:
        """Return the masks of passes."""
        if axis is None:
            return Drawing(self.step, streams, None, reel)
        size = self.inputs.size(axis) or 0
        runs = ((0, 1),) * size if self.is_shared else ((self.first, size),)
        return Drawing(0, streams, Numbers(runs, axis, streams=streams), reel)

    def run(self, drawing: Drawing, given: Any) -> Output:
        """Run the model."""
        args, kwargs = given
        self.handler.start(drawing)
        return Output.of(self.model(*args, **kwargs))

    def plain(self, axis: int | None, stream: int) -> Output:
        """Run one pass as the model is written."""
        return self.run(self.drawing(axis, (stream,)), self.inputs.plain())

    def record(self, axis: int | None, stream: int) -> tuple[Tape, Output]:
        """Run one pass, and record what comes before the first site."""
        tape = Tape()
        recorder = Recorder(tape)
        return tape, self.run(self.drawing(axis, (stream,), recorder), self.inputs.recorded(recorder))

    def record_together(self, axis: int, streams: tuple[int, ...]) -> tuple[Tape, Output]:
        """Run passes together, and record what comes before the first site."""
        tape = Tape()
        recorder = Recorder(tape)
        given = self.inputs.recorded(recorder, axis, len(streams))
        return tape, self.run(self.drawing(axis, streams, recorder), given).filled()

    def play(self, axis: int | None, streams: tuple[int, ...], tape: Tape) -> Output:
        """Run passes together, with what comes before the first site from a tape."""
        player = Player(tape, len(streams))
        given = self.inputs.played(player, axis if len(streams) > 1 else None)
        return self.run(self.drawing(axis, streams, player), given)

    def together(self, axis: int, streams: tuple[int, ...]) -> Output:
        """Run passes together."""
        return self.run(self.drawing(axis, streams), self.inputs.repeated(axis, len(streams)))


_TRIAL = (1, 2)  # streams of the passes that ways are compared by


def found(batch: Batch, engine: str) -> Way:
    """Find the fastest way that gives what single passes give.

    Args:
        batch: The model, and the inputs.
        engine: The engine that is asked for, or ``"auto"``.

    Returns:
        The way; one that loops, with the reason, if no other is right.
    """
    if batch.inputs.size(0) == 0:  # of which nothing can be told
        return Way("loop", None, False, None, 0)
    return _found(batch, engine)


def _found(batch: Batch, engine: str) -> Way:
    plain: dict[int | None, list[Output]] = {}
    leaves: dict[int | None, tuple[Axis, ...]] = {}
    reason, size = "" if batch.inputs.size(0) else "no input has an axis of examples", 0
    for axis in _axes(batch):
        try:
            plain[axis] = [batch.plain(axis, stream) for stream in _TRIAL]
        except (ArgumentError, UnsupportedError) as error:
            if axis is None:
                raise
            reason = reason or _shortened(str(error))
            continue
        size = size or batch.handler.largest
        if axis is None or engine == "loop":
            break
        if not batch.handler.has_parted:  # nothing drops: whoever asked raises
            break
        wide, why = _tried_together(batch, axis, plain[axis], leaves)
        if why:
            reason = reason or why
            continue
        tape, why = (None, "") if wide is None or engine == "batched" else _tried_prefix(batch, axis, wide, plain[axis])
        if tape is not None and not tape.is_empty:
            return Way("prefix", axis, True, tape.axes, size, leaves=leaves[axis])
        return Way("batched", axis, True, None, size, why, leaves[axis])
    axis = next(iter(plain))
    known = leaves[axis] if list(leaves) == [axis] else None  # of no axis but one does the model take more examples
    if engine in ("auto", "prefix"):
        tape, why = _tried_single(batch, axis, plain[axis])
        if tape is not None and not tape.is_empty:
            return Way("prefix", axis, False, None, size, reason, known)
        reason = reason or why
    return Way("loop", axis, False, None, size, reason, known)


def _shortened(message: str) -> str:
    """Return what a message of something that is used here says, without what that would advise."""
    for prefix in ("UnsupportedError: ", "ArgumentError: ", "samples: ", "address: ", "dropkit.sites: "):
        message = message.removeprefix(prefix)
    first, _, _ = message.partition(". ")
    return first.rstrip(".")


def _axes(batch: Batch) -> Iterator[int | None]:
    """Yield where examples may lie: along axis 0, along axis 1 as in sequences, or nowhere that can be told."""
    yield from (axis for axis in (0, 1) if batch.inputs.size(axis))
    yield None


def _tried_together(
    batch: Batch, axis: int, plain: list[Output], leaves: dict[int | None, tuple[Axis, ...]]
) -> tuple[Tape | None, str]:
    """Return what passes record that run together, if they can, and why they cannot run together; empty if they can.

    Where the model runs on them, note along which axes of its outputs they lie, whatever the values.
    """
    try:
        tape, output = batch.record_together(axis, _TRIAL)
        leaves[axis] = output.axes(plain[0], len(_TRIAL))
        if not _difference(output, plain):
            return tape, ""
    except Exception:  # noqa: BLE001, S110  # whatever a model makes of tensors that stand for others
        pass
    try:
        output = batch.together(axis, _TRIAL)
        leaves[axis] = output.axes(plain[0], len(_TRIAL))
        return None, _difference(output, plain)
    except Exception as error:  # noqa: BLE001  # whatever it makes of inputs that are longer than they were
        return None, _shortened(f"{type(error).__name__}: {error}")


def _tried_prefix(batch: Batch, axis: int, wide: Tape, plain: list[Output]) -> tuple[Tape | None, str]:
    """Return the tape of a pass that the others can play, or why there is none."""
    try:
        tape, output = batch.record(axis, _TRIAL[0])
        tape.compare(wide, len(_TRIAL))
        why = _difference(output, plain[:1]) or _difference(batch.play(axis, _TRIAL, tape), plain)
    except Exception as error:  # noqa: BLE001  # as above
        return None, _shortened(f"{type(error).__name__}: {error}")
    return (None, why) if why else (tape, "")


def _tried_single(batch: Batch, axis: int | None, plain: list[Output]) -> tuple[Tape | None, str]:
    """Return the tape of a pass that others can play one at a time, or why there is none."""
    try:
        tape, output = batch.record(axis, _TRIAL[0])
        why = _difference(output, plain[:1])
        for stream, single in zip(_TRIAL, plain, strict=True):
            why = why or _difference(batch.play(axis, (stream,), tape), [single])
    except Exception as error:  # noqa: BLE001  # as above
        return None, _shortened(f"{type(error).__name__}: {error}")
    return (None, why) if why else (tape, "")


def _difference(output: Output, plain: list[Output]) -> str:
    """Return in what passes that ran together differ from single ones; empty if in nothing but rounding."""
    try:
        passes = output.passes(plain[0], len(plain))
    except MismatchError as error:
        return str(error)
    for position, values in enumerate(passes):
        expected = [single.leaves[position] for single in plain]
        if not all(isinstance(each, Tensor) for each in expected):
            continue
        shared = output.leaves[position]
        found = [getattr(shared, "base", shared)] * len(plain) if values is None else list(values)
        if not _are_close(found, expected):
            return f"{plain[0].names[position]} has other values where passes run together"
    return ""


def _are_close(found: list[Any], expected: list[Tensor]) -> bool:
    """Tell whether values are those of single passes but for rounding, which sums in another order change."""
    for value, single in zip(found, expected, strict=True):
        if not isinstance(value, Tensor) or value.shape != single.shape or value.dtype != single.dtype:
            return False
    one = expected[0]
    if one.is_nested or not one.numel():
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return all(map(torch.equal, found, expected))
    wide = torch.stack(found), torch.stack(expected)
    finite = wide[1].isfinite()
    if not torch.equal(finite, wide[0].isfinite()):
        return False
    value, single = (each.where(finite, 0.0) for each in wide)
    scale, error = single.abs().max(), (value - single).abs().max()
    eps = torch.finfo(one.dtype).eps
    # Less than what passes differ by, or another pass would do as well, and yet more than rounding.
    between = 0.05 * (single - single[:1]).abs().max() if len(expected) > 1 else scale
    return bool(error <= torch.maximum(256 * eps * scale, torch.minimum(eps**0.5 * scale, between)))
