"""Lengths that masks of examples depend on: an example that is padded to another length has others."""

from dropkit.sites.interception.telling import warn
from dropkit.uncertainty.engine.examples import Examples, Met, SiteCall
from dropkit.uncertainty.engine.ways import Way

__all__ = ["Lengths"]


class Lengths:
    """Compares what sites drop in batches, and warns once where their masks depend on how examples are batched.

    Args:
        is_shared: Whether all examples have the same masks in a pass.
        told: What users were warned of before.
    """

    def __init__(self, is_shared: bool, told: set[str]) -> None:
        self._is_shared, self._told = is_shared, told
        self._first: dict[SiteCall, tuple[tuple[int, ...], Met]] = {}

    def add(self, way: Way) -> None:
        """Look at the way that the passes over another batch were run."""
        if way.examples is None or type(self).__name__ in self._told:  # masks of places are warned of anyway
            return
        for call, met in way.met.items():
            counted = _counted(call, met, way.examples, self._is_shared)
            if counted is None:
                continue
            first, shown = self._first.setdefault(call, (counted, met))
            if first != counted:
                self._warn(call[0], shown, met)
                return

    def _warn(self, name: str, one: Met, other: Met) -> None:
        self._told.add(type(self).__name__)
        warn(
            f"mc: {name} drops from a tensor of shape {one.shape} in one batch and {other.shape} in another. Masks "
            "depend on such a length, so that an example sees other networks in a batch of another length: what comes "
            "out depends on how examples are batched. Pad all batches to one length, as by tokenizer(..., "
            "padding='max_length'); of inputs that have a size of their own, each size has its networks."
        )


def _counted(call: SiteCall, met: Met, examples: Examples, is_shared: bool) -> tuple[int, ...] | None:
    """Return the lengths by which the rows of a mask are counted; None if it has no examples.

    A row counts all axes but the last, examples first. So the place of an example's rows depends on all lengths between
    these; that of the first example, whose masks all others share, not on the first of them.
    """
    axis, shape = examples.axes.get(call, examples.axis), met.shape
    if not met.heads or axis >= len(shape) or axis in met.shared or shape[axis] % examples.size:
        return None
    own = [1 if each in met.shared else length for each, length in enumerate(shape) if each != axis]
    rows = shape[axis] // examples.size  # of each example, such as the windows of an image
    lengths = [length for length in (rows, met.heads, *own[:-1]) if length != 1]
    return tuple(lengths[int(is_shared) :])
