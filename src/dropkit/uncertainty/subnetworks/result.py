"""What all subnetworks of a model tell together."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["Difference", "Subnetworks"]

_MATTERS = 0.01  # of a standard deviation
_EPS = 2.0**-44  # rounding of sums over many masks, in float64


@dataclass(frozen=True)
class Difference:
    """How far one prediction is from another.

    Args:
        first: Name of one.
        second: Name of the other.
        largest: The largest absolute difference between any two elements, of examples whose outputs are all numbers;
            NaN if there are none.
        divergence: The Kullback-Leibler divergence of the second from the first in nats, averaged over these examples;
            None for outputs that are no probabilities.
        coincide: Whether they differ in no element by more than rounding may make of it there; None where they do not,
            and rounding may hide what matters beside the standard deviation over masks, a hundredth of it, or where
            an element is no number.
    """

    first: str
    second: str
    largest: float
    divergence: float | None
    coincide: bool | None


@dataclass(frozen=True, eq=False)
class Subnetworks:
    """What all subnetworks of a model predict; printed, a table of how that differs from weight scaling.

    Args:
        units: How many units draw for one example, so that there are ``2 ** units`` subnetworks.
        output: What was averaged, as given to `exact`.
        arithmetic: The mean over the masks, in float64, weighted with their probabilities.
        geometric: The same with the geometric mean, renormalised; None for outputs that are no probabilities.
        weight_scaling: What the model gives with nothing dropped, in evaluation mode.
        variance: The variance over the masks.
        rounding: By how much rounding in the type that the model computes in may change its output.
        weight: The largest probability of each class in any subnetwork or mean; None for outputs that are no classes.
        class_dim: The axis of classes.
        dtype: The type that the model computes in, of several the coarsest.
    """

    units: int
    output: str
    arithmetic: Tensor
    geometric: Tensor | None
    weight_scaling: Tensor
    variance: Tensor
    rounding: Tensor
    weight: Tensor | None
    class_dim: int
    dtype: torch.dtype

    @property
    def std(self) -> Tensor:
        """The standard deviation over the masks."""
        return self.variance.sqrt()

    @property
    def differences(self) -> list[Difference]:
        """How far the means are from weight scaling and from each other."""
        named = {"arithmetic mean": self.arithmetic, "geometric mean": self.geometric}
        means = [(name, mean) for name, mean in named.items() if mean is not None]
        pairs = [*((mean, ("weight scaling", self.weight_scaling)) for mean in means), *pairwise(means)]
        return [self._difference(first, second) for first, second in pairs]

    def _difference(self, first: tuple[str, Tensor], second: tuple[str, Tensor]) -> Difference:
        (name, one), (other_name, other) = first, second
        apart = torch.where(one == other, 0.0, (one - other).abs())  # of infinities, too
        coincide = self._coincide(apart, one, other)
        divergence = self._divergence(one[self._rows], other[self._rows])
        return Difference(name, other_name, float(apart[self._rows].max()), divergence, coincide)

    @cached_property
    def _are_numbers(self) -> Tensor:
        """Whether all outputs of an example are numbers."""
        means = [mean for mean in (self.arithmetic, self.geometric, self.weight_scaling) if mean is not None]
        return ~torch.stack(means, 1).isnan().flatten(1).any(1)

    @property
    def _rows(self) -> Tensor:
        """The examples that are measured: those of numbers, or all if there are none."""
        return self._are_numbers if bool(self._are_numbers.any()) else ~self._are_numbers

    def _coincide(self, apart: Tensor, one: Tensor, other: Tensor) -> bool | None:
        rounding = torch.maximum(self._rounded(one), self._rounded(other))
        of_sums = _EPS * torch.maximum(one.abs(), other.abs())
        if bool((apart > rounding + of_sums).any()):
            return False
        if bool(apart.isnan().any()):
            return None
        is_hidden = (rounding > _MATTERS * self.std) & (self.std > of_sums)
        return None if bool(is_hidden.any()) else True

    def _rounded(self, mean: Tensor) -> Tensor:
        """Return what rounding may change of a mean: of a probability p by ``p (1 - p)`` times that of its logit.

        It depends on the other logits, too, which together weigh 1 - p, and each no more than its own probability: one
        that is never likely, as of a class that is masked out by a large number, changes nothing.
        """
        if self.output == "raw":
            return self.rounding
        own = mean * (1 - mean) * self.rounding
        if self.weight is None:
            return own
        weighted = self.weight * self.rounding
        by_weight = weighted.sum(self.class_dim, keepdim=True) - weighted
        by_largest = (1 - mean) * self.rounding.amax(self.class_dim, keepdim=True)
        return own + mean * torch.minimum(by_weight, by_largest)

    def _divergence(self, p: Tensor, q: Tensor) -> float | None:
        if self.output == "raw":
            return None
        if self.output == "softmax":
            return float(_divergence(p, q).sum(self.class_dim).mean())
        return float((_divergence(p, q) + _divergence(1 - p, 1 - q)).mean())

    def __str__(self) -> str:
        rows = [("", "largest difference", "divergence", "coincide")]
        differences = self.differences
        for each in differences:
            divergence = "-" if each.divergence is None else f"{each.divergence:.2e}"
            rows.append((f"{each.first} - {each.second}", f"{each.largest:.2e}", divergence, _SAID[each.coincide]))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        deviation = f"standard deviation over masks: {float(self.std[self._rows].mean()):.3g} on average"
        lines = [f"2**{self.units} = {2**self.units} subnetworks; {deviation}", *lines]
        wrong, examples = int((~self._are_numbers).sum()), len(self._are_numbers)
        if wrong:
            what = "unclear: some outputs are no numbers"
            if wrong < examples:
                what = f"left out: {wrong} of {examples} examples, whose outputs are not all numbers"
            lines.append(f"{what}; see whether inputs and weights are finite")
        elif any(each.coincide is None for each in differences):
            remedy = "give the model in torch.float64"
            if self.dtype == torch.float64:
                remedy = "outputs are too large beside what masks change in them for any type to tell"
            lines.append(f"unclear: rounding in {self.dtype} may hide a difference; {remedy}")
        return "\n".join(lines)


_SAID = {True: "yes", False: "no", None: "unclear"}


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return ``p log(p / q) - p + q``, which is never negative, and sums to the divergence as p and q have one sum."""
    relative = (q - p) / p
    near = p * (relative - relative.log1p())  # where the logarithms would cancel
    far = torch.xlogy(p, p) - torch.xlogy(p, q) - p + q
    return torch.where(relative.abs() < 0.5, near, far).clamp(min=0)
