"""Along which axis of what each site drops the examples lie, which may be another than that of the inputs."""

from collections.abc import Mapping
from dataclasses import replace

from dropkit.errors import UnsupportedError
from dropkit.uncertainty.engine.batch import Batch
from dropkit.uncertainty.engine.examples import Examples, Met, SiteCall

__all__ = ["Placing"]

Shapes = Mapping[SiteCall, Met]


class Placing:
    """Finds where examples lie in what sites drop: along the axis that is twice as long for twice as many examples.

    Where the model does not run on twice as many, the lengths tell, if only one axis is as long as there are examples.

    Args:
        batch: The model, and the inputs.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._once = self._met(None)

    def __call__(self, examples: Examples) -> Examples:
        """Return examples along an axis of the inputs with where they lie at each site.

        Raises:
            UnsupportedError: If what a site drops has none, though it is as long as if it had.
        """
        if self._once is None:
            return replace(examples, unsure="the model")
        twice = self._met(examples)
        if twice is not None and twice.keys() != self._once.keys():
            twice = None
        axes: dict[SiteCall, int] = {}
        unsure = ""
        for call, met in self._once.items():
            axis, is_sure = _by_length(met, examples) if twice is None else _by_growth(call, met, twice[call], examples)
            if axis != examples.axis:
                axes[call] = axis
            unsure = unsure or ("" if is_sure else call[0])
        return replace(examples, axes=axes, unsure=unsure)

    @property
    def met(self) -> Shapes:
        """What sites drop of the inputs; nothing if the model does not run."""
        return self._once or {}

    def _met(self, examples: Examples | None) -> Shapes | None:
        """Return what sites drop of the inputs, or of twice as many examples; None if the model does not run."""
        try:
            return self._batch.met(examples)
        except Exception:  # noqa: BLE001  # whatever a model makes of inputs that are longer than they were
            return None


def _by_growth(call: SiteCall, one: Met, two: Met, examples: Examples) -> tuple[int, bool]:
    """Return the axis that grows with the number of examples, and whether each has one place along it."""
    axis, size = examples.axis, examples.size
    if len(one.shape) != len(two.shape):
        return axis, False
    longer = [each for each in range(len(one.shape)) if one.shape[each] != two.shape[each]]
    if not longer:
        length = one.shape[axis] if axis < len(one.shape) and axis not in one.shared else 1
        if size > 1 and length > 1 and not length % size:
            raise UnsupportedError(
                f"what {call[0]} drops has the same shape {one.shape} for twice as many along axis {axis}"
            )
        return axis, True
    [other, *more] = longer
    if more or one.shape[other] * 2 != two.shape[other]:
        return axis, False
    return other, one.shape[other] == size


def _by_length(met: Met, examples: Examples) -> tuple[int, bool]:
    """Return the axis that is as long as there are examples, and whether no other is.

    An axis may be some times as long, as that of windows is, but not the last, which is that of features.
    """
    axis, size, last = examples.axis, examples.size, len(met.shape) - 1
    fits = [each for each, length in enumerate(met.shape) if length == size]
    is_last = 0 < axis == last and axis not in fits
    if axis <= last and not is_last and not met.shape[axis] % size:
        return axis, fits == [axis]
    return (fits[0], True) if len(fits) == 1 and size > 1 else (axis, not fits)
