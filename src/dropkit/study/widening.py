"""Widening: the strengths that a method gets beside its grid, once the selection has shown where its best one lies."""

import math
from collections.abc import Sequence

from dropkit.study.methods import Method

__all__ = ["EXTRA", "extra_strengths"]

EXTRA = 2  # strengths that every method gets beside its grid


def extra_strengths(method: Method, tried: Sequence[float], best: float) -> tuple[float, ...]:
    """Return up to two strengths that were not tried yet, beside the best one.

    Where the best is at an end of the grid they lie beyond that end, in steps as long as the last one; where a step
    would reach a bound that strengths come near but never touch, half-way to it. Otherwise one lies between the best
    and each of its neighbours. Steps and halves are geometric for methods whose pictures have a logarithmic axis.

    Args:
        method: Whose strengths they are.
        tried: The grid, rising, of two strengths or more; a shorter one has no step and gets nothing.
        best: The strength of the grid that did best.

    Returns:
        The strengths, rising, to two digits; whole where the method's are. Fewer than two where the domain ends or
        nothing lies between.

    Examples:
        >>> from dropkit.study import METHODS
        >>> extra_strengths(METHODS["dropout"], (0.1, 0.3, 0.5), best=0.3)
        (0.2, 0.4)
        >>> extra_strengths(METHODS["weight_decay"], (0.1, 1.0, 10.0), best=10.0)
        (100.0, 1000.0)
        >>> extra_strengths(METHODS["shift"], (1.0, 2.0, 3.0), best=1.0)
        ()
    """
    if len(tried) < EXTRA:
        return ()
    place = tried.index(best)
    if 0 < place < len(tried) - 1:
        found = [_between(method, tried[place - 1], best), _between(method, best, tried[place + 1])]
    else:
        found = _beyond(method, best, tried[1] if place == 0 else tried[-2])
    return tuple(sorted({strength for strength in found if strength not in tried and method.domain.contains(strength)}))


def _between(method: Method, low: float, high: float) -> float:
    return _rounded(method, math.sqrt(low * high) if method.log_axis else (low + high) / 2)


def _beyond(method: Method, end: float, neighbour: float) -> list[float]:
    """Continue from the end, away from its neighbour."""
    domain, found = method.domain, [end]
    bound, is_open = (domain.high, domain.open_high) if end > neighbour else (domain.low, domain.open_low)
    for _ in range(EXTRA):
        last = found[-1]
        step = _rounded(method, last * end / neighbour if method.log_axis else last + end - neighbour)
        if is_open and math.isfinite(bound) and not domain.contains(step):
            step = _rounded(method, (last + bound) / 2)
        found.append(step)
    return found[1:]


def _rounded(method: Method, strength: float) -> float:
    return float(round(strength)) if method.whole else float(f"{strength:.2g}")
