"""The smallest effect that a test could have detected: it tells "no difference" from "cannot tell"."""

import math

import numpy as np

from dropkit._checks import Integer, Number

__all__ = ["smallest_effect"]

_ERROR = Number(0.0, math.inf, open_high=True)
_DEGREES = Integer(1, 10**9, "[1, 10**9]")
_POINTS = 4000
_SHARE = Number(0.0, 1.0, open_low=True, open_high=True)


def smallest_effect(standard_error: float, degrees: int, *, level: float = 0.05, power: float = 0.8) -> float:
    """Return the true difference that a two-sided t-test finds with the given power.

    Approximate: the standard error is itself an estimate, taken here as the truth.

    Args:
        standard_error: Of the mean difference, as the test uses it; 0 or more.
        degrees: Degrees of freedom of the test.
        level: Of the test, in (0, 1). For a family of m tests, give level / m. Default: 0.05.
        power: Chance of finding the difference, in (0, 1), above the level. Default: 0.8.

    Returns:
        The size of the difference, in the unit of the standard error.

    Raises:
        ArgumentError: If a number is out of range.
        ArgumentTypeError: If `degrees` is no integer.

    Examples:
        >>> round(smallest_effect(1.0, 7), 3)  # eight seeds: three standard errors, and a little more
        3.27
    """
    from scipy import optimize, stats

    where = "smallest_effect"
    error, degrees = _ERROR.check(where, "standard_error", standard_error), _DEGREES.check(where, "degrees", degrees)
    level, power = _SHARE.check(where, "level", level), _SHARE.check(where, "power", power)
    critical = float(stats.t.isf(level / 2, degrees))

    # The noncentral t as a mixture of normals over the estimated deviation: SciPy's own is NaN for few degrees.
    middles = (np.arange(_POINTS) + 0.5) / _POINTS
    bounds = critical * np.sqrt(stats.chi2.ppf(middles, degrees) / degrees)

    def excess(shift: float) -> float:
        return float(np.mean(stats.norm.sf(bounds - shift) + stats.norm.cdf(-bounds - shift))) - power

    if error == 0 or excess(1e-9) >= 0:
        return 0.0
    highest = 1.0
    while excess(highest) < 0:
        highest *= 2
    return error * float(optimize.brentq(excess, highest / 2 if highest > 1 else 1e-9, highest))
