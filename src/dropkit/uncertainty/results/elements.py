"""Mean and standard deviation of every element of a tensor over passes."""

import torch
from torch import Tensor

from dropkit.uncertainty.results.moments import Moments, by_rows, jackknife

__all__ = ["Elements", "Found", "fitted"]

Found = dict[str, tuple[Tensor, Tensor]]  # a statistic and its Monte Carlo error, by name


def fitted(statistic: Tensor, like: Tensor) -> Tensor:
    """Return a statistic of a tensor on its device and in its precision, though no less than single."""
    is_double = like.dtype in (torch.float64, torch.complex128) or not (like.is_floating_point() or like.is_complex())
    if not is_double or like.device.type == "mps":
        statistic = statistic.to(torch.complex64 if statistic.is_complex() else torch.float32)
    return statistic.to(like.device)


class Elements:
    """Gathers mean and standard deviation of a tensor's elements, whatever they are.

    Of integers and booleans the mean is that of numbers, of booleans the share of passes that are true. The standard
    deviation of complex numbers is that of their distance from the mean.

    Args:
        like: The tensor in one pass.
        groups: Number of groups of passes.
    """

    def __init__(self, like: Tensor, groups: int) -> None:
        self.like = like
        self.moments = Moments(groups)

    def add(self, values: Tensor) -> None:
        """Take passes in, along the first axis."""
        self.moments.add(values.detach().reshape(len(values), self.like.numel()))

    def mean(self) -> tuple[Tensor, Tensor]:
        """Return the mean and its Monte Carlo error, in double precision and without the tensor's axes."""
        return self.moments.mean_and_error()

    def found(self) -> Found:
        """Return mean and standard deviation."""
        found = by_rows(self.like.numel(), 2 * self.moments.groups, self._rows)
        shaped = {name: fitted(values, self.like).view(self.like.shape) for name, values in found.items()}
        return {name: (shaped[name], shaped[f"{name} error"]) for name in ("mean", "std")}

    def _rows(self, rows: slice) -> dict[str, Tensor]:
        subsets = self.moments.subsets(rows)
        return {
            "mean": subsets.mean[0],
            "mean error": subsets.error[0],
            "std": subsets.std[0],
            "std error": jackknife(subsets.std, self.moments.sizes),
        }
