"""The statistics of a result, by name, and their Monte Carlo errors, which have the same names."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import Number, argument_error
from dropkit.errors import UnavailableError
from dropkit.uncertainty.results.quantiles import Quantiles

__all__ = ["Errors", "Statistics", "levels"]

_SHARE = Number(0.0, 1.0)
_CLASSIFICATION = (
    "predictive_entropy",
    "expected_entropy",
    "mutual_information",
    "mutual_information_uncorrected",
    "variation_ratio",
)
_REGRESSION = ("epistemic", "aleatoric", "variance", "quantile")
_NO_VARIANCE = (
    "The model gives no variance of its own. Let it return its prediction and the variance as a tuple of two tensors "
    "of one shape, under the names `mean` and `variance` or `log_variance`, or as a distribution."
)

_NOT_KEPT = "The passes themselves were not kept. Ask for them with `keep_samples=True`; it takes memory for each."


class Statistics:
    """Statistics over passes; which there are depends on the task.

    One that is missing raises `UnavailableError`, which is an `AttributeError` and says what to ask for.
    """

    def __init__(self, task: str | None, values: Mapping[str, Any], quantiles: Quantiles | None) -> None:
        self._task, self._values, self._quantiles = task, dict(values), quantiles

    def _value(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        raise self._unavailable(name)

    def _unavailable(self, name: str) -> UnavailableError:
        """Return the error that says what to ask for."""
        shown = f"{type(self).__name__}.{name}"
        wanted = [
            repr(task)
            for task, names in (("classification", _CLASSIFICATION), ("regression", _REGRESSION))
            if name in names or name == "prediction"
        ]
        if wanted and repr(self._task) not in wanted:
            return UnavailableError(f"{shown} needs task={' or '.join(wanted)}; this result has task={self._task!r}.")
        remedies = {"aleatoric": _NO_VARIANCE, "quantile": "Quantiles were not gathered.", "samples": _NOT_KEPT}
        return UnavailableError(f"{shown}: {remedies.get(name, 'this result does not have it.')}")

    @property
    def mean(self) -> Any:
        """The mean over passes, in the type of the model's output."""
        return self._value("mean")

    @property
    def std(self) -> Any:
        """The standard deviation over passes, in the output's type; of a regression's prediction the total one."""
        return self._value("std")

    @property
    def predictive_entropy(self) -> Tensor:
        """Of a classification: the entropy of the mean probabilities, in nats."""
        return self._value("predictive_entropy")

    @property
    def expected_entropy(self) -> Tensor:
        """Of a classification: the mean entropy of the passes, in nats: what the data leave open."""
        return self._value("expected_entropy")

    @property
    def mutual_information(self) -> Tensor:
        """Of a classification: predictive less expected entropy, in nats, corrected for few passes; 0 to predictive."""
        return self._value("mutual_information")

    @property
    def mutual_information_uncorrected(self) -> Tensor:
        """Of a classification: predictive less expected entropy, too small on average of few passes."""
        return self._value("mutual_information_uncorrected")

    @property
    def variation_ratio(self) -> Tensor:
        """Of a classification: the share of passes that predict another class than most passes do."""
        return self._value("variation_ratio")

    @property
    def epistemic(self) -> Tensor:
        """Of a regression: the variance of the prediction over passes."""
        return self._value("epistemic")

    @property
    def aleatoric(self) -> Tensor:
        """Of a regression: the mean over passes of the variance that the model gives."""
        return self._value("aleatoric")

    @property
    def variance(self) -> Tensor:
        """Of a regression: the total variance, epistemic and, where the model gives one, aleatoric."""
        return self._value("variance")

    def _known_quantiles(self) -> Quantiles:
        if self._quantiles is None:
            raise self._unavailable("quantile")
        return self._quantiles


class Errors(Statistics):
    """Monte Carlo standard errors: how far a statistic is from what infinitely many passes would give."""

    def quantile(self, q: float | Sequence[float] | Tensor) -> Tensor:
        """Return the Monte Carlo errors of quantiles.

        They come from the quantiles one standard error of a share away on either side, and are too small near 0 and 1.

        Args:
            q: One or more numbers in [0, 1].

        Returns:
            A tensor of shape ``(*prediction,)``, with an axis for several ``q`` first; NaN of a single pass.

        Raises:
            ArgumentError: If `q` has another number.
            UnavailableError: If there are no quantiles.

        References:
            Woodruff (1952), Confidence intervals for medians and other position measures.
        """
        return self._known_quantiles().error(levels("quantile", q))


def levels(where: str, q: Any) -> Tensor:
    """Return levels of quantiles as a tensor of as many axes as they were given with."""
    if isinstance(q, Tensor):
        q = q.tolist()
    if not isinstance(q, Sequence) or isinstance(q, str | bytes):
        return torch.tensor(_SHARE.check(where, "q", q), dtype=torch.float64, device="cpu")
    if not q:
        raise argument_error(where, "q", "one number or more", q)
    return torch.tensor(
        [_SHARE.check(where, f"q[{i}]", each) for i, each in enumerate(q)], dtype=torch.float64, device="cpu"
    )
