"""Quantiles over passes: exact of few, and of many from a histogram of fixed size, with a bound on the error."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from dropkit.uncertainty.results.axes import joined_leaves
from dropkit.uncertainty.results.elements import fitted
from dropkit.uncertainty.results.moments import cached, wide

__all__ = ["JoinedQuantiles", "Quantiles", "Sketch", "exact"]

EXACT = 50  # passes that are kept as they are
_INNER = 44  # bins of equal width over the range of those, but for outliers
# Where wider and wider bins end on either side, in widths of an inner one.
_BEYOND = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 40.0)
# Whole numbers, for how many of an inner bin's widths a pass is away then tells its bin.
_EDGES = [*(-edge for edge in reversed(_BEYOND)), *map(float, range(_INNER + 1)), *(_INNER + edge for edge in _BEYOND)]


class Quantiles(Protocol):
    """Quantiles of the elements of a tensor over passes.

    Monte Carlo errors are half the distance between the quantiles a standard error of a share away on either side
    (Woodruff 1952, Confidence intervals for medians and other position measures). Near 0 and 1 they are too small.
    """

    def at(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return quantiles, with axes of `q` first, and a bound on how far each is from that of all passes."""

    def error(self, q: Tensor) -> Tensor:
        """Return the Monte Carlo errors of quantiles, with axes of `q` first."""

    def to(self, device: torch.device) -> "Quantiles":
        """Return the same on a device."""


@dataclass(frozen=True, eq=False)
class _Histogram:
    """How many passes fell in each bin, of elements along the last axis.

    Args:
        counts: Of shape ``(bins, elements)``. The first and the last bin hold infinities, those beside them are open.
        low: Where the inner bins begin.
        width: How wide they are.
        least: The least of all passes that are finite.
        most: The largest.
        broken: Whether some pass was no number.
    """

    counts: Tensor
    low: Tensor
    width: Tensor
    least: Tensor
    most: Tensor
    broken: Tensor

    @property
    def parts(self) -> list[Tensor]:
        """Its tensors, in the order in which they are given."""
        return [self.counts, self.low, self.width, self.least, self.most, self.broken]

    @property
    def _edges(self) -> Tensor:
        """Where bins begin, in widths of an inner one."""
        return self.low.new_tensor(_EDGES)

    @property
    def _bins(self) -> Tensor:
        """The bin of every whole number of widths of an inner one, from that below the first edge on."""
        steps = torch.arange(_EDGES[0] - 1, _EDGES[-1] + 1, device=self.low.device)
        return torch.bucketize(steps, steps.new_tensor(_EDGES), right=True) + 1

    @staticmethod
    def of(values: Tensor) -> "_Histogram":
        """Return an empty histogram for passes such as the first ones, over whose range are the inner bins."""
        low, high = _range(values)
        spread = torch.where(high > low, high - low, high.abs().clamp_min(1) * 1e-3)
        counts = torch.zeros(len(_EDGES) + 3, values.shape[1], dtype=torch.int32, device=values.device)
        least, most = torch.full_like(low, torch.inf), torch.full_like(low, -torch.inf)
        return _Histogram(counts, low, spread / _INNER, least, most, torch.zeros_like(low, dtype=torch.bool))

    def with_passes(self, values: Tensor) -> "_Histogram":
        """Return it with more passes; all but the counts are new."""
        least, most, broken = self.least.clone(), self.most.clone(), self.broken.clone()
        one = self.counts.new_ones(1)
        for part in cached(values):
            taken, low = wide(values[:, part]), self.low[part]
            is_finite = taken.isfinite()
            known = taken
            if not is_finite.all():
                broken[part] |= taken.isnan().any(0)
                known = torch.where(is_finite, taken, low)
            torch.minimum(least[part], taken.where(is_finite, torch.inf).amin(0), out=least[part])
            torch.maximum(most[part], taken.where(is_finite, -torch.inf).amax(0), out=most[part])
            steps = ((known - low) / self.width[part]).floor_().clamp_(_EDGES[0] - 1, _EDGES[-1])
            bins = self._bins[steps.sub_(_EDGES[0] - 1).long()]
            if known is not taken:
                bins = bins.where(taken != -torch.inf, 0).where(taken != torch.inf, len(_EDGES) + 2)
            self.counts[:, part].scatter_add_(0, bins, one.expand_as(bins))
        return replace(self, least=least, most=most, broken=broken)

    def ordered(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return about where the pass is that so many are below, and how far from there it can be at most."""
        upto = self.counts.cumsum(0)
        at = (upto <= rank).sum(0).clamp_max(len(_EDGES) + 2)
        count = self.counts.gather(0, at.unsqueeze(0))[0]
        before = upto.gather(0, at.unsqueeze(0))[0] - count
        edges = self._edges
        last = len(edges) - 1
        left = torch.where(at <= 1, self.least, self.low + edges[(at - 2).clamp(0, last)] * self.width)
        right = torch.where(at > last + 1, self.most, self.low + edges[(at - 1).clamp(0, last)] * self.width)
        left, right = torch.maximum(left, self.least), torch.minimum(right, self.most)
        value = left + (right - left) * ((rank - before + 0.5) / count)
        bound = torch.maximum(value - left, right - value)
        infinite = torch.where(at == 0, -torch.inf, torch.inf)
        is_finite = (at > 0) & (at < last + 3)
        value, bound = value.where(is_finite, infinite), bound.where(is_finite, 0.0)
        return torch.where(self.broken, torch.nan, value), torch.where(self.broken, torch.nan, bound)


def _range(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the range of the finite values along axis 0, without those that are far from four fifths of them."""
    is_finite = values.isfinite()
    number = is_finite.sum(0)
    values = values.where(is_finite, torch.inf).sort(0).values

    def at(share: float) -> Tensor:
        place = (share * (number - 1)).round().clamp_min(0).long()
        return values.gather(0, place.unsqueeze(0))[0].where(number > 0, 0.0)

    lower, upper = at(0.1), at(0.9)
    reach = (upper - lower).where(upper > lower, torch.inf)  # where most are equal, none is far
    return torch.maximum(at(0.0), lower - reach), torch.minimum(at(1.0), upper + reach)


@dataclass(frozen=True, eq=False)
class _Found:
    """Quantiles of one batch.

    Args:
        n: Number of passes.
        shape: Shape of a pass.
        like: An empty tensor of the type and on the device that quantiles are to have.
        held: The passes, of shape ``(n, elements)``, or a histogram of them.
    """

    n: int
    shape: torch.Size
    like: Tensor
    held: Tensor | _Histogram

    def at(self, q: Tensor) -> tuple[Tensor, Tensor]:
        held = self.held
        if isinstance(held, Tensor):
            passes = wide(held).sort(0).values
            held = passes.masked_fill(passes[-1:].isnan(), torch.nan)  # they are last, where there are any
        found = [self._one(held, float(each)) for each in q.reshape(-1)]
        values = torch.stack([value for value, _ in found])
        bounds = torch.stack([bound for _, bound in found])
        shape = q.shape + self.shape
        return fitted(values, self.like).view(shape), fitted(bounds, self.like).view(shape)

    def error(self, q: Tensor) -> Tensor:
        away = (q * (1 - q) / self.n).sqrt()
        half = (self.at((q + away).clamp_max(1))[0] - self.at((q - away).clamp_min(0))[0]) / 2
        return half if self.n > 1 else torch.full_like(half, torch.nan)

    def to(self, device: torch.device) -> "_Found":
        held = self.held
        if isinstance(held, Tensor):
            return replace(self, like=self.like.to(device), held=held.to(device))
        return replace(self, like=self.like.to(device), held=_Histogram(*(each.to(device) for each in held.parts)))

    def _one(self, held: Tensor | _Histogram, q: float) -> tuple[Tensor, Tensor]:
        """Return a quantile between the two passes next to it, as `torch.quantile` does, and its bound."""
        rank = q * (self.n - 1)
        below = min(int(rank), self.n - 1)
        part = rank - below
        left, bound = _ordered(held, below)
        if not part:
            return left, bound
        right, other = _ordered(held, below + 1)
        between = left.where(left == right, left + (right - left) * part)  # equal infinities stay
        return between, bound + (other - bound) * part


def _ordered(held: Tensor | _Histogram, rank: int) -> tuple[Tensor, Tensor]:
    """Return the pass that so many are below, and a bound on how far it is from there."""
    return held.ordered(rank) if isinstance(held, _Histogram) else (held[rank], torch.zeros_like(held[rank]))


def exact(passes: Tensor) -> Quantiles:
    """Return the quantiles of passes along the first axis, which are kept as they are."""
    flat = passes.reshape(len(passes), passes.shape[1:].numel())
    return _Found(len(passes), passes.shape[1:], passes.new_empty(0), flat)


class Sketch:
    """Gathers what quantiles take: the first passes as they are, and a histogram of all once there are more.

    Args:
        keeps_all: Whether to keep every pass instead, for exact quantiles.
    """

    def __init__(self, keeps_all: bool) -> None:
        self.n = 0
        self._keeps_all = keeps_all
        self._kept: list[Tensor] = []
        self._histogram: _Histogram | None = None

    def add(self, values: Tensor) -> None:
        """Take passes in, of shape ``(passes, elements)``."""
        room = len(values) if self._keeps_all else max(EXACT - self.n, 0)
        self.n += len(values)
        if room:
            first = values[:room]
            self._kept.append(first if room >= len(values) else first.clone())
        rest = values[room:]
        if not len(rest):
            return
        if self._histogram is None:
            kept, self._kept = wide(torch.cat(self._kept)), []
            self._histogram = _Histogram.of(kept).with_passes(kept)
        self._histogram = self._histogram.with_passes(rest)

    def quantiles(self, like: Tensor) -> Quantiles:
        """Return the quantiles of the passes so far, each with the shape and type of a tensor."""
        if self._histogram is None:
            return exact(torch.cat(self._kept).view(self.n, *like.shape))
        histogram = replace(self._histogram, counts=self._histogram.counts.clone())
        return _Found(self.n, like.shape, like.new_empty(0), histogram)


@dataclass(frozen=True, eq=False)
class JoinedQuantiles:
    """Quantiles of several batches, joined along their axis of examples, which a batch of one may lack."""

    parts: tuple[Quantiles, ...]
    axis: int

    def at(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return quantiles, with axes of `q` first, and bounds on their errors."""
        found = [part.at(q) for part in self.parts]
        return self._joined([value for value, _ in found], q), self._joined([bound for _, bound in found], q)

    def error(self, q: Tensor) -> Tensor:
        """Return the Monte Carlo errors of quantiles, with axes of `q` first."""
        return self._joined([part.error(q) for part in self.parts], q)

    def to(self, device: torch.device) -> "JoinedQuantiles":
        """Return the same on a device."""
        return JoinedQuantiles(tuple(part.to(device) for part in self.parts), self.axis)

    def _joined(self, found: list[Tensor], q: Tensor) -> Tensor:
        return joined_leaves(found, self.axis, q.dim())
