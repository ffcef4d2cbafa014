"""Every subnetwork of a small model: what averaging over all masks gives, beside weight scaling."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_leaves, tree_map

from dropkit._checks import Choice, Integer, argument_error, argument_type_error
from dropkit.errors import UnsupportedError
from dropkit.random import threshold
from dropkit.sites.find import Sites
from dropkit.sites.inject import inject, record
from dropkit.sites.interception.names import runnable
from dropkit.sites.interception.restoring import set_mode
from dropkit.uncertainty.dropping import active_sites, dropping

__all__ = ["Difference", "Subnetworks", "exact"]

_OUTPUT = Choice(("softmax", "sigmoid", "raw"))
_LIMIT = Integer(1, 2**40, "[1, 2**40]")
_AXIS = Integer(-64, 63, "the range of a tensor's axes")
_ROWS = 2**13  # of one batch of subnetworks and examples


@dataclass(frozen=True)
class Difference:
    """How far one prediction is from another.

    Args:
        first: Name of one.
        second: Name of the other.
        largest: The largest absolute difference between any two elements.
        divergence: The Kullback-Leibler divergence of the second from the first in nats, averaged over examples; None
            for outputs that are no probabilities.
        coincide: Whether the largest difference is within rounding, which is ``eps ** 0.75`` of the output's type,
            relative to the largest value if that is above 1.
    """

    first: str
    second: str
    largest: float
    divergence: float | None
    coincide: bool


@dataclass(frozen=True)
class Subnetworks:
    """What all subnetworks of a model predict; printed, a table of how that differs from weight scaling.

    Args:
        units: How many units draw for one example, so that there are ``2 ** units`` subnetworks.
        output: What was averaged, as given to `exact`.
        arithmetic: The mean over the masks, in float64, weighted with their probabilities.
        geometric: The same with the geometric mean, renormalised; None for outputs that are no probabilities.
        weight_scaling: What the model gives in evaluation mode.
        variance: The variance over the masks.
        class_dim: The axis of classes.
        dtype: The type that the model computes in.
    """

    units: int
    output: str
    arithmetic: Tensor
    geometric: Tensor | None
    weight_scaling: Tensor
    variance: Tensor
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
        largest = float((one - other).abs().max())
        scale = max(1.0, float(one.abs().max()))
        coincide = largest <= scale * torch.finfo(self.dtype).eps ** 0.75
        return Difference(name, other_name, largest, self._divergence(one, other), coincide)

    def _divergence(self, p: Tensor, q: Tensor) -> float | None:
        if self.output == "raw":
            return None
        if self.output == "softmax":
            return float(_relative_entropy(p, q).sum(self.class_dim).mean())
        return float((_relative_entropy(p, q) + _relative_entropy(1 - p, 1 - q)).mean())

    def __str__(self) -> str:
        rows = [("", "largest difference", "divergence", "coincide")]
        for each in self.differences:
            divergence = "-" if each.divergence is None else f"{each.divergence:.2e}"
            names = f"{each.first} - {each.second}"
            rows.append((names, f"{each.largest:.2e}", divergence, "yes" if each.coincide else "no"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        deviation = f"standard deviation over masks: {float(self.std.mean()):.3g} on average"
        return "\n".join([f"2**{self.units} = {2**self.units} subnetworks; {deviation}", *lines])


def _relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    return torch.xlogy(p, p) - torch.xlogy(p, q)


def exact(model: Module, *inputs: Any, output: str = "softmax", class_dim: int = -1, limit: int = 2**20) -> Subnetworks:
    """Run every subnetwork of a small model, and compare the means of their predictions with weight scaling.

    A subnetwork is what one mask of all dropout leaves. Means are weighted with the masks' probabilities, which at
    ``p = 0.5`` are equal, and so is the variance: all are what `mc` tends to as its passes grow in number.

    What is known: the renormalised geometric mean of softmax outputs is the softmax of the mean logits. So it equals
    weight scaling exactly where the mean logits are those of evaluation: for a softmax layer after dropout of its
    inputs, at every rate and for survivors scaled by ``1 / (1 - p)``, and for deeper networks whose maps are all
    linear. In the literature masks count alike, which is the same mean at ``p = 0.5`` alone. Outputs of linear
    networks have the arithmetic mean of weight scaling, too; their softmax has not. Where dropout comes before an
    activation such as a ReLU neither holds, and the table says by how much.

    Args:
        model: The model, in either mode; it is left as it was. Its output is one tensor; rows do not depend on others.
        *inputs: What its forward takes. Axis 0 of tensors counts examples, and they are all run with all masks.
        output: What the model's output is: ``"softmax"`` for logits of classes, whose probabilities are averaged,
            ``"sigmoid"`` for logits of yes or no, ``"raw"`` for values as they are. Default: ``"softmax"``.
        class_dim: Axis of the classes. Default: -1.
        limit: Most subnetworks to run. Default: ``2 ** 20``.

    Returns:
        `Subnetworks`, which prints as a table.

    Raises:
        ArgumentError: If a value is out of range, no dropout is active, or there are more subnetworks than `limit`.
        ArgumentTypeError: If an argument has a wrong type.
        UnsupportedError: If noise of a site is no mask, or its rate is not one number.

    Examples:
        >>> import torch, dropkit
        >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 3)).double()
        >>> _ = torch.nn.init.eye_(model[1].weight), torch.nn.init.zeros_(model[1].bias)
        >>> found = dropkit.uncertainty.exact(model, torch.tensor([[1.0, 2.0, 3.0, 4.0]]).double())
        >>> print(found)
        2**4 = 16 subnetworks; standard deviation over masks: 0.346 on average
                                          largest difference  divergence  coincide
        arithmetic mean - weight scaling  1.41e-01            4.82e-02    no
        geometric mean - weight scaling   ...                 yes
        arithmetic mean - geometric mean  1.41e-01            4.82e-02    no

    References:
        Hinton, Srivastava, Krizhevsky, Sutskever and Salakhutdinov (2012), "Improving neural networks by preventing
        co-adaptation of feature detectors"; Baldi and Sadowski (2013), "Understanding dropout", for normalised
        geometric means; Goodfellow, Bengio and Courville (2016), "Deep Learning", section 7.12.
    """
    if not isinstance(model, Module):
        raise argument_type_error("exact", "model", "a torch.nn.Module", model)
    _OUTPUT.check("exact", "output", output)
    _AXIS.check("exact", "class_dim", class_dim)
    _LIMIT.check("exact", "limit", limit)
    examples = _examples(inputs)
    sites = active_sites("exact", model, inputs, {})
    inner = runnable(model)
    with dropping(inner, sites):
        draws = _draws(inner, sites, inputs)
        units = sum(draw.units for draw in draws)
        if units > math.log2(limit):
            remedy = "Give a smaller model, raise the limit, or sample: dropkit.uncertainty.mc."
            raise argument_error("exact", "model", f"one of at most {limit} subnetworks", f"2**{units}", remedy)
        total = _Total(output, class_dim, _evaluated(inner, sites, inputs))
        for probabilities, masks in _chunks(draws, examples):
            count = len(probabilities)
            with inject(inner, masks):
                found = inner(*_repeated(inputs, count))
            total.add(probabilities, found.unflatten(0, (count, examples)))
    return total.result(units)


@dataclass(frozen=True)
class _Draw:
    """A call that draws a mask.

    Args:
        name: Name of its site, and the number of the call.
        shape: Shape of the mask of one example.
        rate: The realised rate.
        device: Where it is drawn.
    """

    name: tuple[str, int]
    shape: tuple[int, ...]
    rate: float
    device: torch.device

    @property
    def units(self) -> int:
        """How many units draw: none where all are dropped, or none ever is."""
        return math.prod(self.shape) if 0 < self.rate < 1 else 0


def _examples(inputs: tuple[Any, ...]) -> int:
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    lengths = {len(tensor) for tensor in tensors}
    if len(lengths) != 1 or 0 in lengths:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise argument_error("exact", "inputs", "tensors with one number of examples, 1 or more, on axis 0", shapes)
    return lengths.pop()


def _repeated(inputs: tuple[Any, ...], count: int, examples: int | None = None) -> Any:
    """Return inputs with their first examples, all by default, so many times over."""

    def repeat(leaf: Any) -> Any:
        is_batch = isinstance(leaf, Tensor) and leaf.dim() > 0
        return leaf[:examples].repeat(count, *(1,) * (leaf.dim() - 1)) if is_batch else leaf

    return tree_map(repeat, inputs)


def _draws(model: Module, sites: Sites, inputs: tuple[Any, ...]) -> list[_Draw]:
    """Return every call that draws, and how much for one example."""
    rates = {site.name: site.p for site in sites}
    with record(model) as masks:
        found = model(*_repeated(inputs, 2, examples=1))
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() < 1 or len(found) != 2:
        rule = "one whose output is a floating tensor with as many examples as its input"
        raise argument_error("exact", "model", rule, tuple(found.shape) if isinstance(found, Tensor) else found)
    return [_draw(name, mask, rates.get(name[0])) for name, mask in masks.items()]


def _draw(name: tuple[str, int], mask: Any, rate: float | None) -> _Draw:
    is_mask = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.dim() > 0 and len(mask) <= 2
    if not is_mask or rate is None:
        raise UnsupportedError(
            f"exact: the noise of site {name[0]!r} is no mask with an axis of examples and one rate. "
            "Sample instead: dropkit.uncertainty.mc."
        )
    return _Draw(name, tuple(mask.shape[1:]), threshold(rate) / 2**32, mask.device)


def _evaluated(model: Module, sites: Sites, inputs: tuple[Any, ...]) -> Tensor:
    """Return what the model gives in evaluation mode."""
    flags = [(module, module.training) for module in model.modules()]
    set_mode(model, training=False)
    found: Tensor = model(*inputs)
    for module, training in flags:
        module.training = training
    return found


def _chunks(draws: list[_Draw], examples: int) -> Iterator[tuple[Tensor, dict[tuple[str, int], Tensor]]]:
    """Yield all masks, some at a time, with their probabilities; rows are masks, and examples within them."""
    units, size = sum(draw.units for draw in draws), max(1, _ROWS // examples)
    for first in range(0, 2**units, size):
        codes = torch.arange(first, min(first + size, 2**units))
        probabilities, masks, place = torch.ones(len(codes), dtype=torch.float64), {}, 0
        for draw in draws:
            kept = torch.full((len(codes), math.prod(draw.shape)), draw.rate == 0)
            if draw.units:
                kept = (codes[:, None] >> torch.arange(place, place + draw.units)) & 1 == 1
                place += draw.units
                of_units = torch.tensor([draw.rate, 1 - draw.rate], dtype=torch.float64)
                probabilities *= of_units[kept.long()].prod(1)
            masks[draw.name] = kept.to(draw.device).repeat_interleave(examples, 0).reshape(-1, *draw.shape)
        yield probabilities, masks


class _Total:
    """Sums over subnetworks, in float64."""

    def __init__(self, output: str, class_dim: int, evaluated: Tensor) -> None:
        if output == "softmax" and (
            not -evaluated.dim() <= class_dim < evaluated.dim() or class_dim % evaluated.dim() == 0
        ):
            raise argument_error(
                "exact", "class_dim", f"an axis of the output {tuple(evaluated.shape)} but the first", class_dim
            )
        self.output, self.dtype = output, evaluated.dtype
        self.axis = class_dim % evaluated.dim() if output == "softmax" else class_dim
        self.weight_scaling = self._probabilities(evaluated.double())
        self.weight = torch.zeros((), dtype=torch.float64)  # of the subnetworks so far: their probability
        self.mean, self.squares, self.logits = (torch.zeros_like(self.weight_scaling) for _ in range(3))

    def _probabilities(self, values: Tensor, shift: int = 0) -> Tensor:
        if self.output == "softmax":
            return values.softmax(self.axis + shift)
        return values.sigmoid() if self.output == "sigmoid" else values

    def add(self, probabilities: Tensor, values: Tensor) -> None:
        """Add the outputs of some subnetworks, of shape (masks, examples, ...).

        References:
            Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance".
        """
        values, weights = values.double(), probabilities.to(values.device)
        self.logits += torch.tensordot(weights, values, 1)
        values, share = self._probabilities(values, 1), weights.sum()
        mean = torch.tensordot(weights / share, values, 1)
        whole = self.weight.to(share) + share
        shift = mean - self.mean
        self.squares += torch.tensordot(weights, (values - mean) ** 2, 1) + shift**2 * (whole - share) * share / whole
        self.mean += shift * share / whole
        self.weight = whole

    def result(self, units: int) -> Subnetworks:
        """Return the means; the renormalised geometric one is that of the mean logits."""
        geometric = None if self.output == "raw" else self._probabilities(self.logits)
        return Subnetworks(
            units, self.output, self.mean, geometric, self.weight_scaling, self.squares, self.axis, self.dtype
        )
