"""Ways to run many passes, of which the fastest is taken that gives what single passes give."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.uncertainty.bounded import Bounded
from dropkit.uncertainty.engine.batch import Batch
from dropkit.uncertainty.engine.comparing import difference, reordered_axes
from dropkit.uncertainty.engine.examples import Examples, Met, Said, SiteCall
from dropkit.uncertainty.engine.inputs import Output
from dropkit.uncertainty.engine.orders import joint_order
from dropkit.uncertainty.engine.placing import Placing
from dropkit.uncertainty.engine.tape import Tape
from dropkit.uncertainty.engine.traces import Trace, joint
from dropkit.uncertainty.shares import Shares

if TYPE_CHECKING:
    from dropkit.uncertainty.results.axes import Axis

__all__ = ["Way", "Ways", "found"]


_PATHS = 16  # that are remembered
Path = tuple[Any, ...]
"""What a forward calls, and what it is told of by yes or no, in order."""


@dataclass(frozen=True)
class Way:
    """How passes over inputs of one kind are run.

    Args:
        engine: ``"prefix"`` runs what comes before the first site once, ``"batched"`` whole passes together,
            ``"loop"`` one after another.
        examples: Where examples lie; None if masks belong to places and to no example.
        is_batched: Whether many passes run together.
        axes: Where passes lie in what is recorded before the first site.
        bytes: Size of the largest tensor of one pass that depends on a mask.
        reason: Why passes do not run together, or have nothing in common; empty if they do.
        leaves: For each leaf of the output the axis along which its examples lie; None if that is not known of any.
        path: What passes call that run together, and what they are told of by yes or no.
        is_vector: Whether the inputs are a single vector, one example without an axis.
        shares: For each leaf of the output what is known of one that is made of probabilities.
        met: What sites drop, as far as that has axes.
    """

    engine: str
    examples: Examples | None
    is_batched: bool
    axes: "list[tuple[int | None, ...]] | None" = None
    bytes: int = 0
    reason: str = ""
    leaves: "tuple[Axis, ...] | None" = None
    path: Path = ()
    is_vector: bool = False
    shares: tuple[Bounded | None, ...] = ()
    met: Mapping[SiteCall, Met] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The engine, as a result tells it."""
        return self.engine if self.is_batched else "loop"


class Ways:
    """Ways for inputs of one kind, by the paths that forwards take."""

    def __init__(self) -> None:
        self.last: Way | None = None
        self._known: dict[Path, Way] = {}

    def of(self, path: Path) -> Way | None:
        """Return the way for a path; None if none is known."""
        return self._known.get(path)

    def add(self, path: Path, way: Way) -> None:
        """Note the way for a path, which is tried first from now on; of many paths the oldest is forgotten."""
        self._known.pop(path, None)
        self._known[path], self.last = way, way
        if len(self._known) > _PATHS:
            del self._known[next(iter(self._known))]


_TRIAL = (1, 2)  # streams of the passes that ways are compared by
_MORE = (1, 2, 3)  # those of a few more


class Trial:
    """Passes that show whether examples lie where they may.

    Args:
        batch: The model, and the inputs.
        examples: Where they may lie; None if masks belong to places.
    """

    def __init__(self, batch: Batch, examples: Examples | None) -> None:
        self.batch, self.examples = batch, examples
        self.plain = [batch.plain(examples, stream, Shares()) for stream in _TRIAL]
        self.bytes, self.has_parted = batch.handler.largest, batch.handler.has_parted
        self.tape: Tape | None = None  # of passes that ran together
        self.leaves: tuple[Axis, ...] | None = None
        self.reason = ""  # why passes cannot run together
        self.unrecorded = ""  # why what they have in common cannot be recorded
        self.unless_shared = ""  # why they cannot, unless they share what comes before the first site
        self.path: Path = ()  # of passes that ran together

    def run_together(self, examples: Examples) -> bool:
        """Run passes together, note why they have to run alone, and tell whether their values are those of single ones.

        Where the model runs on them, note along which axes of its outputs they lie, whatever the values.
        """
        try:
            self.tape, output = self.batch.record_together(examples, _TRIAL)
            why = self._difference(output)
        except Exception as error:  # noqa: BLE001  # whatever a model makes of tensors that stand for others
            why = shortened(error)
        if why:
            self.tape, self.unrecorded = None, f"what comes before its first site cannot be shared ({why})"
            try:
                output = self.batch.together(examples, _TRIAL)
                why = self._difference(output)
            except (ArgumentError, UnsupportedError) as error:
                why = shortened(error, is_ours=True)
            except Exception as error:  # noqa: BLE001  # whatever it makes of inputs that are longer than they were
                axis = examples.axis
                self.reason = f"the model does not run on inputs that are longer along axis {axis} ({shortened(error)})"
                return False
        self.reason = self._joint(examples) or (why and (self.unless_shared or why))
        return not why

    def _joint(self, examples: Examples) -> str:
        """Return why passes would depend on one another in other cases; empty if they cannot."""
        try:
            (few, self.path), (many, path) = self._traced(examples, _TRIAL), self._traced(examples, _MORE)
        except Exception as error:  # noqa: BLE001  # as above
            return shortened(error)
        self.unless_shared = joint_order(few.orders, many.orders, is_late=False)
        return joint(few, many) or ("" if path == self.path else "more passes together call other functions")

    def _traced(self, examples: Examples, streams: tuple[int, ...]) -> tuple[Trace, Path]:
        """Run passes together, and trace what depends on masks."""
        trace = Trace()
        if self.tape is None:
            return trace, self.batch.together(examples, streams, trace).path
        return trace, self.batch.record_together(examples, streams, trace)[1].path

    def _difference(self, output: Output) -> str:
        self.leaves = output.axes(self.plain[0], len(_TRIAL))
        return difference(output, self.plain)

    def can_be_reordered(self, examples: Examples) -> bool:
        """Tell whether a pass over examples in another order, each with its masks, gives the same in that order.

        Where the model does not run on any order, as of lengths that have to be sorted, some stand twice in their own.
        """
        if examples.size == 1:
            return examples.is_alone
        is_right = self._is_right_in(_other_order(examples.size), examples)
        return bool(self._is_right_in(_own_order(examples.size), examples) if is_right is None else is_right)

    def _is_right_in(self, order: tuple[int, ...], examples: Examples) -> bool | None:
        """Tell whether a pass gives the same for examples in an order; None if the model does not run on it."""
        batch = replace(self.batch, is_shared=False)  # with masks that tell examples apart
        leaves = self.leaves
        for stream in _TRIAL:
            try:
                output = batch.reordered(examples, stream, order)
            except Exception:  # noqa: BLE001  # whatever a model makes of it
                return None
            leaves = reordered_axes(output, batch.plain(examples, stream), order, leaves)
            if leaves is None:
                return False
        self.leaves = leaves
        return True

    def way(self, engine: str, reason: str = "") -> Way:
        """Return the fastest way that is right.

        Args:
            engine: The engine that is asked for, or ``"auto"``.
            reason: Why passes have to run alone, if that is known.
        """
        reason = reason or self.reason
        if engine == "loop":
            return self._way("loop", reason=reason)
        if not reason and self.examples is not None:
            tape, why = (None, "") if engine == "batched" else self._tried_prefix(self.examples)
            if tape is not None and not tape.is_empty:
                return self._way("prefix", is_batched=True, axes=tape.axes)
            if not self.unless_shared:
                return self._batched(self.examples, why)
            reason = self.unless_shared
        tape, why = (None, "") if engine == "batched" else self._tried_single()
        if tape is not None and not tape.is_empty:
            return self._way("prefix", reason=reason)
        return self._way("loop", reason=reason or why)

    def _batched(self, examples: Examples, why: str) -> Way:
        """Return the way that runs whole passes together, unless what is not recorded differs from what was."""
        if self.tape is not None:  # what passes call that are not recorded
            output = self.batch.together(examples, _TRIAL)
            other, self.path = difference(output, self.plain), output.path
            if other:
                return self._way("loop", reason=other)
        return self._way("batched", is_batched=True, reason=why)

    def _way(self, engine: str, is_batched: bool = False, **known: Any) -> Way:
        return Way(
            engine,
            self.examples,
            is_batched,
            bytes=self.bytes,
            leaves=self.leaves,
            path=self.path,
            is_vector=self.examples is None and self.batch.inputs.is_vector,
            shares=self.plain[0].shares,
            **known,
        )

    def _tried_prefix(self, examples: Examples) -> tuple[Tape | None, str]:
        """Return the tape of a pass that the others can play, or why there is none."""
        if self.tape is None:
            return None, self.unrecorded
        try:
            tape, output = self.batch.record(examples, _TRIAL[0])
            tape.compare(self.tape, len(_TRIAL))
            played = self.batch.play(examples, _TRIAL, tape)
            why = difference(output, self.plain[:1]) or difference(played, self.plain)
            self.path = played.path if not why else self.path
        except Exception as error:  # noqa: BLE001  # whatever a model makes of tensors that stand for others
            return None, shortened(error)
        return (None, why) if why else (tape, "")

    def _tried_single(self) -> tuple[Tape | None, str]:
        """Return the tape of a pass that others can play one at a time, or why there is none."""
        try:
            tape, output = self.batch.record(self.examples, _TRIAL[0])
            why = difference(output, self.plain[:1])
            for stream, single in zip(_TRIAL, self.plain, strict=True):
                why = why or difference(self.batch.play(self.examples, (stream,), tape), [single])
        except Exception as error:  # noqa: BLE001  # as above
            return None, shortened(error)
        return (None, why) if why else (tape, "")


def found(batch: Batch, engine: str, said: Said = None, reason: str = "") -> Way:
    """Find the fastest way that gives what single passes give.

    Examples lie where passes can be put beside one another like more examples; else where they can be put in another
    order. Whatever the engine, they lie in the same place.

    Args:
        batch: The model, and the inputs.
        engine: The engine that is asked for, or ``"auto"``.
        said: Along which axis examples lie, if anybody has said so.
        reason: Why they cannot be told apart, if that is known.

    Returns:
        The way; one that loops, with the reason, if no other is right.
    """
    if batch.inputs.is_empty:
        return Way("loop", None, False)
    placed, handler = Placing(batch), batch.handler
    handler.is_still = bool(handler.noise)  # or passes would differ by it, however they run
    try:
        way = Trial(batch, None).way(engine, reason) if reason else _found(batch, engine, said, placed)
        return replace(way, met=placed.met)
    finally:
        handler.is_still = False


def _found(batch: Batch, engine: str, said: Said, placed: Placing) -> Way:
    """Find the way of inputs that are there."""
    trials: list[tuple[Trial, Examples]] = []
    reason = ""
    for candidate in batch.inputs.candidates(said):
        try:
            examples = placed(candidate)
            trial = Trial(batch, examples)
        except (ArgumentError, UnsupportedError) as error:
            reason = reason or shortened(error, is_ours=True)
            continue
        if not trial.has_parted:  # nothing drops: whoever asked raises
            return Way("loop", examples, False)
        if trial.run_together(examples):
            return trial.way(engine)
        reason = reason or trial.reason
        trials.append((trial, examples))
    for trial, examples in trials:
        if trial.can_be_reordered(examples):
            return trial.way(engine)
    wild = [name for name, is_still in batch.handler.noise.items() if not is_still]
    if wild:
        reason = f"the model draws {', '.join(wild)} in evaluation, too, so that no two passes can be compared"
    for trial, examples in trials if said is not None else ():
        if not examples.unsure:
            return trial.way(engine, reason)
        reason = f"it cannot be told where the examples lie in what {examples.unsure} drops"
    return Trial(batch, None).way(engine, reason or _none(said))


def _none(said: Said) -> str:
    """Return that no input has any examples."""
    return f"no input has an axis {said}" if isinstance(said, int) else "no input has an axis of examples"


_PREFIXES = ("UnsupportedError: ", "ArgumentError: ", "MismatchError: ", "samples: ", "address: ", "dropkit.sites: ")


def shortened(error: Exception, is_ours: bool = False) -> str:
    """Return what an error says, without what it would advise.

    Args:
        error: The error.
        is_ours: Whether it is of something that is used here.
    """
    message = str(error) if is_ours else f"{type(error).__name__}: {error}"
    for prefix in _PREFIXES:
        message = message.removeprefix(prefix)
    first, _, _ = message.partition(". ")
    return first.rstrip(".")


def _other_order(size: int) -> tuple[int, ...]:
    """Return another order: the odd places, and then the even ones."""
    return *range(1, size, 2), *range(0, size, 2)


def _own_order(size: int) -> tuple[int, ...]:
    """Return an order that stays sorted where the examples are: the first half, each twice."""
    return tuple(place // 2 for place in range(size))
