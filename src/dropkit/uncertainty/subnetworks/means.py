"""Means over subnetworks, and by how much rounding in the type that the model computes in may have changed them."""

import torch
from torch import Tensor
from torch.nn import Module

from dropkit._checks import argument_error
from dropkit.uncertainty.subnetworks.result import Subnetworks

__all__ = ["Means", "are_alike", "computing_type"]

_ROUNDINGS = 64  # of the largest value, to which those of a few layers and their sums add up
_ROUNDINGS_OF_HALVES = 16  # whose sums are those of float32, rounded once


def computing_type(model: Module, output: Tensor) -> torch.dtype:
    """Return the coarsest type that a model computes in, as far as parameters, output and autocast tell."""
    kinds = {output.dtype, *(each.dtype for each in model.parameters() if each.is_floating_point())}
    device = output.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        kinds.add(torch.get_autocast_dtype(device))
    return max(kinds, key=lambda kind: torch.finfo(kind).eps)


def _relative_rounding(kind: torch.dtype) -> float:
    """Return what rounding in a type may change of the outputs of a few layers, relative to their largest value."""
    info = torch.finfo(kind)
    return info.eps * (_ROUNDINGS_OF_HALVES if info.bits <= 16 else _ROUNDINGS)


def are_alike(alone: Tensor, together: Tensor, kind: torch.dtype) -> bool:
    """Tell whether subnetworks give alone what they give among others, but for rounding and what does not matter.

    Args:
        alone: What the first of them give, each alone, of shape (subnetworks, examples, ...).
        together: What all give, in one forward.
        kind: The type that the model computes in.
    """
    values, expected = together.double(), alone.double()
    found, finite = values[: len(alone)], values.nan_to_num(0.0, 0.0, 0.0)
    rounding = min(_relative_rounding(kind), 0.05) * finite.abs().amax(0)  # the same sums, in another order at most
    allowed = torch.maximum(rounding, 0.01 * finite.std(0, correction=0))
    is_same = (found == expected) | (found.isnan() & expected.isnan())
    return bool(((found - expected).abs() <= allowed).logical_or(is_same).all())


class Means:
    """Sums over subnetworks, in float64.

    Args:
        output: What the model's output is, as for `exact`.
        class_dim: The axis of classes.
        evaluated: What the model gives in evaluation mode.
        kind: The type that it computes in.
    """

    def __init__(self, output: str, class_dim: int, evaluated: Tensor, kind: torch.dtype) -> None:
        rank = evaluated.dim()
        if output == "softmax" and (not -rank <= class_dim < rank or class_dim % rank == 0):
            rule = f"an axis of the output {tuple(evaluated.shape)} but the first"
            raise argument_error("exact", "class_dim", rule, class_dim)
        if output == "softmax" and evaluated.shape[class_dim] == 1:
            rule, remedy = 'one for outputs of a single logit, "sigmoid" or "raw"', 'Give output="sigmoid".'
            raise argument_error("exact", "output", rule, output, remedy)
        self.output, self.kind = output, kind
        self.axis = class_dim % rank if output == "softmax" else class_dim
        logits = evaluated.double()
        self.weight_scaling = self._predictions(logits)
        self.weight = torch.zeros((), dtype=torch.float64)  # of the subnetworks so far: their probability
        self.mean, self.squares, self.logits = (torch.zeros_like(logits) for _ in range(3))
        self.largest = logits.nan_to_num(0.0, 0.0, 0.0).abs()  # logit of each element

    def _predictions(self, logits: Tensor, shift: int = 0) -> Tensor:
        if self.output == "softmax":
            return logits.softmax(self.axis + shift)
        return logits.sigmoid() if self.output == "sigmoid" else logits

    def add(self, probabilities: Tensor, logits: Tensor) -> None:
        """Add the outputs of some subnetworks, of shape (subnetworks, examples, ...).

        References:
            Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance".
        """
        logits, weights = logits.double(), probabilities.to(logits.device)
        self.largest = torch.maximum(self.largest, logits.nan_to_num(0.0, 0.0, 0.0).abs().amax(0))
        self.logits += torch.tensordot(weights, logits, 1)
        values, share = self._predictions(logits, 1), weights.sum()
        mean = torch.tensordot(weights / share, values, 1)
        whole = self.weight.to(share) + share
        shift = mean - self.mean
        self.squares += torch.tensordot(weights, (values - mean) ** 2, 1) + shift**2 * (whole - share) * share / whole
        self.mean += shift * share / whole
        self.weight = whole

    def result(self, units: int) -> Subnetworks:
        """Return the means; the renormalised geometric one is that of the mean logits."""
        return Subnetworks(
            units=units,
            output=self.output,
            arithmetic=self.mean,
            geometric=None if self.output == "raw" else self._predictions(self.logits),
            weight_scaling=self.weight_scaling,
            variance=self.squares,
            rounding=_relative_rounding(self.kind) * self.largest,
            class_dim=self.axis,
            dtype=self.kind,
        )
