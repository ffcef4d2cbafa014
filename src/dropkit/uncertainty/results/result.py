"""What Monte Carlo dropout returns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from dropkit._checks import Number, argument_type_error
from dropkit.sites.interception.telling import warn
from dropkit.uncertainty.results.joining import Parts, joined
from dropkit.uncertainty.results.outputs import flatten
from dropkit.uncertainty.results.statistics import Errors, Statistics, levels
from dropkit.uncertainty.results.table import named_tensors, table

__all__ = ["Result"]

_LEVEL = Number(0.0, 1.0, open_low=True, open_high=True, remedy="It is the share of cases that the interval holds.")


class Result(Statistics):
    """Statistics over the passes of a model with dropout, each with its Monte Carlo error.

    `mean` and `std` have the type of the model's output, and a statistic of every tensor in it in the tensor's place:
    ``result.mean.logits`` where the output has ``logits``. Standard deviations are those of single passes, with n - 1
    in the denominator. Integers and booleans have the mean of numbers; a complex number's standard deviation is that of
    its distance from the mean; what is no tensor is that of the first pass. Tensors of integers that are the same in
    all passes stay as they are. The standard deviation of a distribution is a namespace of those of its parameters.
    Statistics have the precision of the output, but single precision at least.

    Of ``task="classification"``, `mean`, `std` and `samples` are of probabilities in the place of the logits: softmax
    is averaged, not logits. An axis of one class holds the logit of the second of two classes, and then the probability
    of it. Of ``task="regression"``, the standard deviation of the prediction is the total one, with the variance that
    the model gives. Of an output that is a distribution, both tasks have tensors, of what it describes.

    What takes two passes is NaN after one, and its error after two.

    `error` has the Monte Carlo standard error of each statistic under its name: of means ``std / sqrt(n)``, of
    quantiles by Woodruff's method, of all others by the jackknife over groups of passes. The jackknife's is rough: with
    8 groups, its own relative error is about a quarter.

    Examples:
        >>> import torch, dropkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 3))
        >>> result = dropkit.uncertainty.mc(model, n=100, task="classification", seed=0)(torch.randn(5, 4))
        >>> result
        Result of 100 passes, classification, seed 0, engine prefix, 1 site
        statistic                       shape    average  Monte Carlo error
        mean                            (5, 3)...
        >>> result.mean.shape, result.error.mean.shape, result.predictive_entropy.shape
        (torch.Size([5, 3]), torch.Size([5, 3]), torch.Size([5]))
        >>> bool((result.error.predictive_entropy > 0).all())
        True

    References:
        Gal and Ghahramani (2016), Dropout as a Bayesian approximation. Depeweg et al. (2018), Decomposition of
        uncertainty, section 3. Miller (1955), Note on the bias of information estimates. Busing, Meijer and van der
        Leeden (1999), Delete-m jackknife for unequal m.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.task, parts.values, parts.quantiles)
        self._parts = parts

    @property
    def n(self) -> int:
        """Number of passes; of several batches the least of any."""
        return self._parts.n

    @property
    def task(self) -> str | None:
        """What the statistics are of: ``"classification"``, ``"regression"``, or None for outputs as they are."""
        return self._task

    @property
    def facts(self) -> dict[str, Any]:
        """What else is known: ``seed``, ``engine``, ``sites`` that dropped, and ``reached`` for n="auto"."""
        return dict(self._parts.facts)

    @property
    def error(self) -> Errors:
        """The Monte Carlo standard error of each statistic, under the same name."""
        return Errors(self._task, self._parts.errors, self._quantiles)

    @property
    def samples(self) -> Any:
        """Every pass, in the type of the model's output; its tensors have shape ``(n, *shape)``."""
        return self._value("samples")

    @property
    def prediction(self) -> Tensor:
        """Of a classification: the class whose mean probability is largest; of a regression: the mean, as a tensor."""
        return self._value("prediction")

    def quantile(self, q: float | Sequence[float] | Tensor) -> Tensor:
        """Return quantiles of a regression's prediction over passes; of the mean, not of the noise of the data.

        They are those of `torch.quantile` if there are at most 50 passes or samples were kept. Otherwise they come from
        a histogram for each number: 44 bins over the range of the first 50 passes but for outliers, 10 of growing
        width on either side, and two open ones; `quantile_error` bounds how far they can be from those.

        Args:
            q: One or more numbers in [0, 1].

        Returns:
            A tensor of shape ``(*prediction,)``, with an axis for several ``q`` first. A number that was NaN in some
            pass has NaN.

        Raises:
            ArgumentError: If `q` has another number.
            UnavailableError: If there are no quantiles.

        Examples:
            >>> import torch, dropkit
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 1))
            >>> result = dropkit.uncertainty.mc(model, n=200, task="regression", seed=0)(torch.randn(5, 4))
            >>> result.quantile([0.05, 0.5, 0.95]).shape
            torch.Size([3, 5, 1])
            >>> bool((result.quantile_error(0.5) < result.std).all())
            True
            >>> low, high = result.interval(0.9)
            >>> bool((low < result.mean).all() and (result.mean < high).all())
            True
        """
        return self._known_quantiles().at(levels("quantile", q))[0]

    def quantile_error(self, q: float | Sequence[float] | Tensor) -> Tensor:
        """Return the most that quantiles can be away from those of all passes; their Monte Carlo error is apart.

        Args:
            q: One or more numbers in [0, 1].

        Returns:
            A tensor of the shape of the quantiles: 0 where they are exact, else the distance to the farther edge of
            the bin, or to the extreme of all passes in an open bin.

        Raises:
            ArgumentError: If `q` has another number.
            UnavailableError: If there are no quantiles.
        """
        return self._known_quantiles().at(levels("quantile_error", q))[1]

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the central interval of a regression's prediction over passes, from quantiles.

        It says where the mean lies, not the data: see `gaussian_interval` for those. It warns where an end may be off
        by more than half the interval, as `quantile_error` tells.

        Args:
            level: Share of the passes in it, in (0, 1). Default: 0.95.

        Returns:
            Its ends, each with the shape of the prediction.

        Raises:
            ArgumentError: If `level` is no such number.
            UnavailableError: If there are no quantiles.
        """
        level = _LEVEL.check("interval", "level", level)
        (low, high), bounds = self._known_quantiles().at(levels("interval", [(1 - level) / 2, (1 + level) / 2]))
        rough = bounds.amax(0) > (high - low) / 2
        if rough.any():
            warn(
                f"interval: of {int(rough.sum())} of {rough.numel()} numbers an end may be off by more than half the "
                "interval, as few passes lie far from the others (quantile_error says how much). Use "
                "keep_samples=True, which makes quantiles exact."
            )
        return low, high

    def gaussian_interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the mean plus and minus as many total standard deviations as a normal distribution has.

        Args:
            level: Share of the data in it if they are normal, in (0, 1). Default: 0.95.

        Returns:
            Its ends, each with the shape of the prediction.

        Raises:
            ArgumentError: If `level` is no such number.
            UnavailableError: If the task is no regression.
        """
        level = _LEVEL.check("gaussian_interval", "level", level)
        half = self.variance.sqrt() * NormalDist().inv_cdf((1 + level) / 2)
        return self.prediction - half, self.prediction + half

    @staticmethod
    def concatenate(results: Iterable["Result"], dim: int | None = None) -> "Result":
        """Join the results of several batches to one, as if they had been one batch.

        Each tensor of the output is joined along its own axis of examples, as `mc` has found it. One without such an
        axis has to be the same in all batches. A batch of one example may lack the axis, as `squeeze` removes it.
        Tensors of one number become an axis of a number for each batch; what is no tensor is the first batch's.

        Args:
            results: Results of one task and one model.
            dim: The axis of examples in every tensor of the output. Default: what is known of each.

        Returns:
            A result whose `n` is the least of any batch; statistics and errors are each batch's own.

        Raises:
            ArgumentError: If the results do not fit one another, it cannot be told along which axis the examples of a
                tensor lie, or they lie along that of classes.
            ArgumentTypeError: If one is no result.

        Examples:
            >>> import torch, dropkit
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5))
            >>> predict = dropkit.uncertainty.mc(model, n=10, seed=0)
            >>> parts = [predict(torch.randn(5, 4)), predict(torch.randn(3, 4))]
            >>> dropkit.uncertainty.Result.concatenate(parts).mean.shape
            torch.Size([8, 8])
        """
        given = list(results) if isinstance(results, Iterable) else [None]
        if not all(isinstance(each, Result) for each in given):
            raise argument_type_error("Result.concatenate", "results", "a sequence of results", results)
        return Result(joined([each._parts for each in given], dim))

    def to(self, device: torch.device | str) -> "Result":
        """Return the result with all its tensors on a device.

        Args:
            device: The device.
        """
        device = torch.device(device)
        quantiles = None if self._quantiles is None else self._quantiles.to(device)
        values, errors = (_moved(each, device) for each in (self._parts.values, self._parts.errors))
        return Result(replace(self._parts, values=values, errors=errors, quantiles=quantiles))

    def numpy(self) -> dict[str, npt.NDArray[Any]]:
        """Return every statistic as an array, and errors with ``error.`` before their name.

        Of an output with several tensors the names go on as in the output: ``"mean.logits"``.

        Examples:
            >>> import torch, dropkit
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5))
            >>> list(dropkit.uncertainty.mc(model, n=10, seed=0)(torch.randn(5, 4)).numpy())
            ['mean', 'std', 'error.mean', 'error.std']
        """
        found = {name: tensor for key in self._values for name, tensor in named_tensors(key, self._values[key])}
        errors = [pair for key in self._parts.errors for pair in named_tensors(f"error.{key}", self._parts.errors[key])]
        return {name: tensor.detach().cpu().numpy() for name, tensor in (*found.items(), *errors)}

    def __repr__(self) -> str:
        return table(self._parts)


def _moved(values: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return statistics with every tensor on a device."""
    found = {}
    for name, value in values.items():
        leaves, rebuild = flatten(value)
        found[name] = rebuild([leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves])
    return found
