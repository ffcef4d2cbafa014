"""Between which numbers a tensor lies that is computed from probabilities, and whether it still holds some."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

__all__ = ["ARITHMETIC", "FUNCTIONS", "Bounded", "joined"]

_SLACK = 0.01  # that numbers such as 1e-8 may add, which keep others away from 0
_PERCENT = 100.0


@dataclass(frozen=True)
class Bounded:
    """A tensor that is computed from what a sigmoid, a softmax or a tanh has returned, and from constants, alone.

    Args:
        maker: Which of them, of several the first; empty of a constant.
        low: What none of its numbers is below.
        high: What none is above.
    """

    maker: str
    low: float
    high: float

    @property
    def is_probability(self) -> bool:
        """Whether its numbers surely are probabilities, or percentages."""
        if self.maker == "tanh":  # which is a sigmoid from -1 to 1
            return self._fills(1) or self._fills(_PERCENT)
        return (self.low >= -_SLACK and self.high <= 1 + _SLACK) or self._fills(_PERCENT)

    @property
    def is_scaled(self) -> bool:
        """Whether they are other multiples or sums of probabilities, which nobody returns for logits but by mistake."""
        return self.maker != "tanh" and self.low >= -_SLACK and self.high < math.inf and not self.is_probability

    @property
    def is_logarithm(self) -> bool:
        """Whether they are logarithms of probabilities."""
        return self.maker != "tanh" and self.low == -math.inf and abs(self.high) <= _SLACK

    def _fills(self, scale: float) -> bool:
        return abs(self.low) <= _SLACK * scale and abs(self.high - scale) <= _SLACK * scale

    def between(self, low: float, high: float) -> "Bounded | None":
        """Return the same maker's numbers between others; None where these tell nothing."""
        is_known = low < high and (low > -math.inf or high < math.inf)  # which no comparison with NaN is
        return replace(self, low=low, high=high) if is_known else None

    def times(self, factor: float) -> "Bounded | None":
        """Return multiples of the numbers."""
        return self.between(*sorted((self.low * factor, self.high * factor)))


def joined(parts: Iterable[Bounded | None]) -> Bounded | None:
    """Return what holds of tensors of which one has numbers of several; None if one is not known."""
    known = list(parts)
    found = [each for each in known if each is not None]
    if not found or len(found) < len(known):
        return None
    return _made_of(found, min(each.low for each in found), max(each.high for each in found))


def _made_of(parts: Iterable[Bounded], low: float, high: float) -> Bounded | None:
    makers = [each.maker for each in parts if each.maker]
    maker = "tanh" if "tanh" in makers else makers[0] if makers else ""
    return Bounded(maker, low, high).between(low, high) if maker else None


def _sum(one: Bounded, other: Bounded) -> Bounded | None:
    return _made_of((one, other), one.low + other.low, one.high + other.high)


def _difference(one: Bounded, other: Bounded) -> Bounded | None:
    return _made_of((one, other), one.low - other.high, one.high - other.low)


def _product(one: Bounded, other: Bounded) -> Bounded | None:
    ends = [a * b for a in (one.low, one.high) for b in (other.low, other.high)]
    return None if any(map(math.isnan, ends)) else _made_of((one, other), min(ends), max(ends))


def _quotient(one: Bounded, other: Bounded) -> Bounded | None:
    """Divide by a constant."""
    return None if other.maker or not other.low else one.times(1 / other.low)


def _logarithm(one: Bounded) -> Bounded | None:
    """Take logarithms, of numbers near 0 as of 0 itself."""
    if one.high <= 0:
        return None
    return one.between(-math.inf if one.low <= _SLACK else math.log(one.low), math.log(one.high))


def _exponential(one: Bounded) -> Bounded | None:
    most = 700.0  # of which the exponential is finite
    return one.between(math.exp(min(one.low, most)), math.exp(one.high) if one.high <= most else math.inf)


_TWO: Mapping[str, Callable[[Bounded, Bounded], Bounded | None]] = {
    "add": _sum,
    "sub": _difference,
    "subtract": _difference,
    "rsub": lambda one, other: _difference(other, one),
    "mul": _product,
    "multiply": _product,
    "div": _quotient,
    "divide": _quotient,
    "truediv": _quotient,
    "true_divide": _quotient,
}
ARITHMETIC: Mapping[str, Callable[[Bounded, Bounded], Bounded | None]] = MappingProxyType(
    {
        **_TWO,
        **{f"__{name}__": _TWO[name] for name in ("add", "sub", "rsub", "mul", "div", "truediv")},
        **{f"__i{name}__": _TWO[name] for name in ("add", "sub", "mul", "div", "truediv")},
        "__radd__": _sum,
        "__rmul__": _product,
    }
)
"""What functions of two tensors, or of one and a number, make of them."""

FUNCTIONS: Mapping[str, Callable[[Bounded], Bounded | None]] = MappingProxyType(
    {
        "log": _logarithm,
        "exp": _exponential,
        **dict.fromkeys(("neg", "negative", "__neg__"), lambda one: one.times(-1)),
    }
)
"""What functions of one tensor make of it."""
