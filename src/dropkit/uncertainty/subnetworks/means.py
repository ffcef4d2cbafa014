"""Means over subnetworks, and whether those that run together give what they give alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dropkit._checks import argument_error
from dropkit.uncertainty.subnetworks.probabilities import Values
from dropkit.uncertainty.subnetworks.result import Subnetworks
from dropkit.uncertainty.subnetworks.rounding import Rounding

__all__ = ["Means", "are_alike"]


def are_alike(alone: Tensor, together: Tensor, positions: Sequence[int], rounding: Rounding) -> bool:
    """Tell whether subnetworks give alone what they give among others, but for rounding and what does not matter.

    Args:
        alone: What some of them give, each alone, of shape (subnetworks, examples, ...).
        together: What all give, in one forward.
        positions: Which of all the first are.
        rounding: What rounding changes.
    """
    values, expected = together.double(), alone.double()
    found, finite = values[list(positions)], values.nan_to_num(0.0, 0.0, 0.0)
    of_sums = min(rounding.relative, 0.05) * finite.abs().amax(0)  # the same sums, in another order at most
    allowed = torch.stack([of_sums, rounding.measured, 0.01 * finite.std(0, correction=0)]).amax(0)
    is_same = (found == expected) | (found.isnan() & expected.isnan())
    return bool(((found - expected).abs() <= allowed).logical_or(is_same).all())


class Means:
    """Sums over subnetworks, in float64.

    Args:
        output: What the model's output is, as for `exact`.
        class_dim: The axis of classes.
        evaluated: What the model gives in evaluation mode.
        rounding: What rounding changes of its output.
    """

    def __init__(self, output: str, class_dim: int, evaluated: Tensor, rounding: Rounding) -> None:
        rank = evaluated.dim()
        if output == "softmax" and (not -rank <= class_dim < rank or class_dim % rank == 0):
            rule = f"an axis of the output {tuple(evaluated.shape)} but the first"
            raise argument_error("exact", "class_dim", rule, class_dim)
        if output == "softmax" and evaluated.shape[class_dim] == 1:
            rule, remedy = 'one for outputs of a single logit, "sigmoid" or "raw"', 'Give output="sigmoid".'
            raise argument_error("exact", "output", rule, output, remedy)
        self.output, self.rounding = output, rounding
        self.axis = class_dim % rank if output == "softmax" else class_dim
        self.values = Values(output, self.axis, evaluated)
        logits = evaluated.double()
        self.weight_scaling = self._predictions(logits)
        self.weight = torch.zeros((), dtype=torch.float64)  # of the subnetworks so far: their probability
        self.mean, self.squares, self.logits = (torch.zeros_like(logits) for _ in range(3))
        self.largest = logits.nan_to_num(0.0, 0.0, 0.0).abs()  # logit of each element
        self.likeliest = self.weight_scaling  # of each element, its largest prediction

    def _predictions(self, logits: Tensor, shift: int = 0) -> Tensor:
        if self.output == "softmax":
            return logits.softmax(self.axis + shift)
        return logits.sigmoid() if self.output == "sigmoid" else logits

    def add(self, probabilities: Tensor, logits: Tensor) -> None:
        """Add the outputs of some subnetworks, of shape (subnetworks, examples, ...).

        References:
            Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance".
        """
        self.values.add(logits)
        logits, weights = logits.double(), probabilities.to(logits.device)
        self.largest = torch.maximum(self.largest, logits.nan_to_num(0.0, 0.0, 0.0).abs().amax(0))
        self.logits += torch.tensordot(weights, logits, 1)
        values, share = self._predictions(logits, 1), weights.sum()
        self.likeliest = torch.maximum(self.likeliest, values.amax(0))
        whole = self.weight.to(share) + share
        base = values[0].nan_to_num(0.0, 0.0, 0.0)  # so that the mean of a constant is exact
        mean = base + torch.tensordot(weights / share, values - base, 1)
        shift = _difference(mean, self.mean) if self.weight > 0 else torch.zeros_like(mean)
        self.squares += torch.tensordot(weights, _difference(values, mean) ** 2, 1)
        self.squares += shift**2 * (whole - share) * share / whole
        self.mean = self.mean + shift * share / whole if self.weight > 0 else mean
        self.weight = whole

    def result(self, units: int) -> Subnetworks:
        """Return the means; the renormalised geometric one is that of the mean logits."""
        self.values.tell()
        geometric = self._predictions(self.logits)
        return Subnetworks(
            units=units,
            output=self.output,
            arithmetic=self.mean,
            geometric=None if self.output == "raw" else geometric,
            weight_scaling=self.weight_scaling,
            variance=self.squares,
            rounding=self.rounding.of(self.largest),
            weight=torch.maximum(self.likeliest, geometric) if self.output == "softmax" else None,
            class_dim=self.axis,
            dtype=self.rounding.kind,
        )


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Return a difference, 0 of infinities that are equal."""
    return torch.where(a == b, 0.0, a - b)
