"""Means and squared deviations over passes, group by group, and the jackknife over the groups.

Nothing here grows with the number of passes. Pass t belongs to group t modulo the number of groups, so that what is
gathered does not depend on how the passes were cut into chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Moments", "Subsets", "by_rows", "group_numbers", "jackknife", "leave_out", "wide"]

_CACHED = 2**17  # most numbers that are taken in at once: a megabyte, which stays in caches
_BLOCK = 2**20  # most numbers that a statistic is computed of at once


def wide(values: Tensor) -> Tensor:
    """Return numbers of any type in double precision, on the CPU where their device has none."""
    values = values.detach()
    device = "cpu" if values.device.type == "mps" else values.device
    return values.to(device, torch.complex128 if values.is_complex() else torch.float64)


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
    """Means and sums of squared deviations of each group of passes by pairwise updates.

    Args:
        groups: Number of groups.

    References:
        Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance.
    """

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.n = 0
        self.mean = self.squares = torch.empty(0)

    @property
    def sizes(self) -> list[int]:
        """How many passes each group has that has any."""
        return [len(range(group, self.n, self.groups)) for group in range(min(self.n, self.groups))]

    def add(self, values: Tensor) -> None:
        """Take passes in, of shape ``(passes, rows, ...)``."""
        if not self.n:
            first = wide(values[:1])
            self.mean = first.new_zeros(self.groups, *values.shape[1:])
            self.squares = torch.zeros_like(self.mean.real)
        rounds = len(values) // self.groups
        length = max(1, _CACHED // max(values[:, :1].numel(), 1))
        for start in range(0, values.shape[1], length):
            rows = slice(start, start + length)
            block = wide(values[:, rows])
            whole, rest = block[: rounds * self.groups], block[rounds * self.groups :]
            if rounds:
                self._merge(whole.unflatten(0, (rounds, self.groups)), rows, self.n)
            if len(rest):
                self._merge(rest.unsqueeze(0), rows, self.n + len(whole))
        self.n += len(values)

    def _merge(self, values: Tensor, rows: slice, n: int) -> None:
        """Take in rounds of passes that stand for as many groups, after n others, all with as many passes each."""
        rounds, groups = values.shape[:2]
        which = group_numbers(n, groups, self.groups)
        at: Any = (slice(which[0], which[-1] + 1) if which == sorted(which) else which, rows)
        old, old_squares = self.mean[at], self.squares[at]
        mean = values.mean(0)
        squares = _squared(values - mean).sum(0) if rounds > 1 else torch.zeros_like(old_squares)
        before = old_squares.new_tensor([len(range(group, n, self.groups)) for group in which])
        before = before.view(-1, *(1,) * (values.dim() - 2))
        step = mean - old
        share = rounds / (before + rounds)
        # Where one is infinite, so is the mean, and its deviations are no numbers.
        self.mean[at] = torch.where(step.isfinite(), old + step * share, old + mean)
        self.squares[at] = old_squares + squares + _squared(step) * (before * share)

    def mean_and_error(self) -> tuple[Tensor, Tensor]:
        """Return the mean over all passes and its standard error."""

        def compute(rows: slice) -> dict[str, Tensor]:
            whole = self._subsets(rows, is_whole=True)
            return {"mean": whole.mean[0], "error": whole.error[0]}

        found = by_rows(self.mean.shape[1], self.mean[:, :1].numel(), compute)
        return found["mean"], found["error"]

    def subsets(self, rows: slice = slice(None)) -> Subsets:
        """Return the moments of all passes, and of all but each group, of some rows (the axis after the groups)."""
        return self._subsets(rows, is_whole=len(self.sizes) == 1)

    def _subsets(self, rows: slice, is_whole: bool) -> Subsets:
        sizes = self.mean.real.new_tensor(self.sizes).view(-1, *(1,) * (self.mean.dim() - 1))
        means, squares = self.mean[: len(sizes), rows], self.squares[: len(sizes), rows]
        n = torch.full_like(sizes[:1], self.n)
        mean = (means * sizes).sum(0, keepdim=True) / n
        apart = means - mean
        between = _squared(apart) * sizes
        total = (squares + between).sum(0, keepdim=True)
        if is_whole:
            return Subsets(n, mean, total)
        others = n - sizes
        less = (total - squares - between * (n / others)).clamp_min(0)
        means = mean - apart * (sizes / others)
        return Subsets(torch.cat([n, others]), torch.cat([mean, means]), torch.cat([total, less]))


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
