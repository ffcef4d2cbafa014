"""Means and squared deviations over passes, group by group, and the jackknife over the groups.

Nothing here grows with the number of passes. Pass t belongs to group t modulo the number of groups, so that what is
gathered does not depend on how the passes were cut into chunks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments", "Subsets", "by_rows", "cached", "group_numbers", "jackknife", "leave_out", "wide"]

_CACHED = 2**17  # most numbers that are taken in at once: a megabyte, which stays in caches
_BLOCK = 2**20  # most numbers that a statistic is computed of at once


def wide(values: Tensor) -> Tensor:
    """Return numbers of any type in double precision, on the CPU where their device has none."""
    values = values.detach()
    device = "cpu" if values.device.type == "mps" else values.device
    return values.to(device, torch.complex128 if values.is_complex() else torch.float64)


def cached(values: Tensor) -> Iterator[slice]:
    """Yield slices of the rows of passes, of shape ``(passes, rows, ...)``, that are few enough to stay in caches."""
    length = max(1, _CACHED // max(values[:, :1].numel(), 1))
    for start in range(0, max(values.shape[1], 1), length):
        yield slice(start, start + length)


def group_numbers(first: int, passes: int, groups: int) -> list[int]:
    """Return the groups of some passes."""
    return [t % groups for t in range(first, first + passes)]


@dataclass(frozen=True)
class Subsets:
    """Moments of sets of passes along the first axis: of all, then of all but each group in turn.

    Args:
        n: Number of passes in each, with an axis of length 1 for each further axis of the mean.
        mean: Their means.
        squares: Sums of their squared absolute deviations from the mean.
    """

    n: Tensor
    mean: Tensor
    squares: Tensor

    @property
    def variance(self) -> Tensor:
        """The unbiased variance; NaN of a single pass."""
        return self.squares / (self.n - 1)

    @property
    def std(self) -> Tensor:
        """The square root of the unbiased variance."""
        return self.variance.sqrt()

    @property
    def error(self) -> Tensor:
        """The standard error of the mean."""
        return (self.variance / self.n).sqrt()


class Moments:
    """Sums and sums of squares of each group of passes, of distances from the first pass.

    That pass is one of them, so that no more digits are lost to its distance from the mean than their number has.

    Args:
        groups: Number of groups.

    References:
        Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, for sums of shifted data.
    """

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.n = 0
        self._shift = self._sums = self._squares = torch.empty(0)

    @property
    def sizes(self) -> list[int]:
        """How many passes each group has that has any."""
        return [len(range(group, self.n, self.groups)) for group in range(min(self.n, self.groups))]

    def add(self, values: Tensor) -> None:
        """Take passes in, of shape ``(passes, rows, ...)``."""
        for rows in cached(values):
            self.take(wide(values[:, rows]), rows, values.shape[1])
        self.took(len(values))

    def take(self, values: Tensor, rows: slice, length: int) -> None:
        """Take some rows of passes in, in double precision; `took` follows once all of them have been.

        Args:
            values: Their values.
            rows: Which rows these are.
            length: How many there are in all.
        """
        if not self.n and not rows.start:
            self._begin(values, length)
        if not self.n:
            self._shift[rows] = torch.where(values[0].isfinite(), values[0], 0)
        apart = values - self._shift[rows]
        for part, of in ((self._sums, apart), (self._squares, _squared(apart))):
            self._gather(part, of, rows)

    def took(self, passes: int) -> None:
        """Count passes whose rows have been taken in."""
        self.n += passes

    def _begin(self, values: Tensor, length: int) -> None:
        self._shift = values.new_zeros(length, *values.shape[2:])
        self._sums = self._shift.new_zeros(self.groups, *self._shift.shape)
        self._squares = torch.zeros_like(self._sums.real)

    def _gather(self, sums: Tensor, values: Tensor, rows: slice) -> None:
        """Add values of passes to the sums of their groups."""
        start, groups = self.n % self.groups, self.groups
        head = min(-self.n % groups, len(values))  # up to a pass of the first group
        rounds, rest = divmod(len(values) - head, groups)
        if head:
            sums[start : start + head, rows] += values[:head]
        if rounds:
            whole = values[head : head + rounds * groups]
            sums[:, rows] += whole if rounds == 1 else whole.unflatten(0, (rounds, groups)).sum(0)
        if rest:
            sums[:rest, rows] += values[len(values) - rest :]

    def mean_and_error(self) -> tuple[Tensor, Tensor]:
        """Return the mean over all passes and its standard error."""

        def compute(rows: slice) -> dict[str, Tensor]:
            whole = self._subsets(rows, is_whole=True)
            return {"mean": whole.mean[0], "error": whole.error[0]}

        found = by_rows(len(self._shift), self._sums[:, :1].numel(), compute)
        return found["mean"], found["error"]

    def subsets(self, rows: slice = slice(None)) -> Subsets:
        """Return the moments of all passes, and of all but each group, of some rows (the axis after the groups)."""
        return self._subsets(rows, is_whole=len(self.sizes) == 1)

    def _subsets(self, rows: slice, is_whole: bool) -> Subsets:
        shift, sums, squares = self._shift[rows], self._sums[: len(self.sizes), rows], self._squares[:, rows]
        sizes = shift.real.new_tensor(self.sizes).view(-1, *(1,) * shift.dim())
        n = torch.full_like(sizes[:1], self.n)
        means = sums / sizes
        squares = (squares[: len(sizes)] - _squared(sums) / sizes).clamp_min(0)
        mean = sums.sum(0, keepdim=True) / n
        apart = means - mean
        between = _squared(apart) * sizes
        total = (squares + between).sum(0, keepdim=True)
        if is_whole:
            return Subsets(n, shift + mean, total)
        others = n - sizes
        less = (total - squares - between * (n / others)).clamp_min(0)
        means = mean - apart * (sizes / others)
        return Subsets(torch.cat([n, others]), shift + torch.cat([mean, means]), torch.cat([total, less]))


def _squared(values: Tensor) -> Tensor:
    return (values * values.conj()).real if values.is_complex() else values.square()


def leave_out(counts: Tensor) -> Tensor:
    """Return the sum of counts of each group, and of all groups but each, along the first axis."""
    whole = counts.sum(0, keepdim=True)
    return torch.cat([whole, whole - counts]) if len(counts) > 1 else whole


def jackknife(subsets: Tensor, sizes: list[int]) -> Tensor:
    """Return the standard error of a statistic from its values without each group of passes.

    It is itself an estimate, from as many values as there are groups: its relative error is about
    ``1 / sqrt(2 * (groups - 1))``, about a quarter for 8 groups.

    Args:
        subsets: Along the first axis the statistic of all passes, then of all but each group.
        sizes: Number of passes in each group; groups need not be of one size.

    Returns:
        The standard error, NaN where there are fewer than two groups.

    References:
        Busing, Meijer and van der Leeden (1999), Delete-m jackknife for unequal m.
    """
    if len(sizes) < 2:
        return torch.full_like(subsets[0], torch.nan)
    share = subsets.new_tensor([sum(sizes) / size for size in sizes]).view(-1, *(1,) * (subsets.dim() - 1))
    apart = (share - 1) * (subsets[:1] - subsets[1:])  # pseudo-values less the statistic of all passes
    apart = apart - (apart / share).sum(0, keepdim=True)
    return (apart.square() / (share - 1)).mean(0).sqrt()


def by_rows(rows: int, width: int, compute: Callable[[slice], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Compute statistics of some rows at a time, so that what this takes beside them is bounded.

    Args:
        rows: How many there are.
        width: Numbers that a row takes.
        compute: Returns statistics of a slice of rows, with an axis of rows first.
    """
    length = max(1, _BLOCK // max(width, 1))
    found = []
    for first in range(0, max(rows, 1), length):
        part = compute(slice(first, first + length))
        found.append({name: values.clone() for name, values in part.items()})  # views would keep what they are of
    return found[0] if len(found) == 1 else {name: torch.cat([each[name] for each in found]) for name in found[0]}
