"""The way that passes over inputs are run, and what users are told of it: warnings, and errors where it is refused."""

from dropkit._checks import argument_error
from dropkit.errors import UnsupportedError
from dropkit.sites.interception.telling import warn
from dropkit.uncertainty.engine.batch import Batch
from dropkit.uncertainty.engine.examples import Said
from dropkit.uncertainty.engine.ways import Way, found

__all__ = ["chosen_way", "tell"]

_SAY = "Say along which axis examples lie, or along which of each tensor, by `batch_dim`"


def chosen_way(batch: Batch, engine: str, said: Said, told: set[str], *, reason: str = "") -> Way:
    """Find the way that is right for inputs, and tell of it.

    Args:
        batch: The model, and the inputs.
        engine: The engine that is asked for, or ``"auto"``.
        said: Along which axis examples lie, if anybody has said so.
        told: What users were warned of before.
        reason: Why examples cannot be told apart, if that is known.

    Raises:
        ArgumentError: If they do not lie there.
        UnsupportedError: If they cannot share masks, or the engine is not right.
    """
    way = found(batch, engine, said, reason)
    if batch.handler.unknown:  # of which more is learned first
        return way
    if said is not None and way.examples is None and not batch.inputs.is_empty:
        rule = "an axis of the inputs along which examples lie"
        raise argument_error("mc", "batch_dim", rule, said, f"It is none, for {way.reason}.")
    if batch.is_shared and way.examples is None and not (batch.inputs.is_vector or batch.inputs.is_empty):
        raise UnsupportedError(
            f"mc: examples cannot be told apart, so that they cannot share masks: {way.reason}. {_SAY}, give a single "
            'example an axis of its own, or ask for masks="per_example".'
        )
    tell(way, engine, told)
    if said is not None and "by their order" in way.reason and not batch.is_shared:
        text = (
            "mc: examples lie along the axis that `batch_dim` says, but masks may follow the order in which the "
            f"forward puts them, so that other batches see other networks, for {way.reason}."
        )
        if text not in told:
            told.add(text)
            warn(text)
    return way


def tell(way: Way, engine: str, told: set[str]) -> None:
    """Say where passes have to run one after another, each reason once.

    Args:
        way: The way.
        engine: The engine that is asked for, or ``"auto"``.
        told: What users were warned of before.

    Raises:
        UnsupportedError: If the engine that is asked for is not right.
    """
    if engine not in ("auto", way.engine) or (engine == "prefix" and not way.is_batched):
        reason = way.reason or "it has nothing before its first site that passes could share"
        raise UnsupportedError(f'mc: engine={engine!r} is not right for this model: {reason}. Ask for engine="auto".')
    if way.is_batched or not way.reason or way.is_vector:
        return
    text = ""
    if way.examples is None:
        also = "run one after another, and " if engine == "auto" else ""
        text = (
            f"mc: passes over this model {also}have masks that belong to places in tensors and to no example, so that "
            f"other batches see other networks, for {way.reason}. {_SAY}, or give a single example an axis of its own."
        )
    elif engine == "auto":
        text = f"mc: passes over this model run one after another, for {way.reason}. That is right, but takes longer."
        if "enforce_sorted" in way.reason:
            text += (
                " Your lengths are right, but those of passes beside one another are not sorted: pack with "
                "enforce_sorted=False, with which passes over dropout after packing run together."
            )
    if text and text not in told:
        told.add(text)
        warn(text)
