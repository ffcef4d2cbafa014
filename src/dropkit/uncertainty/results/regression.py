"""What passes of a regression say: the mean, and which part of the variance is the model's and which the data's."""

from torch import Tensor

from dropkit.uncertainty.results.elements import Found, fitted
from dropkit.uncertainty.results.moments import Moments, by_rows, jackknife
from dropkit.uncertainty.results.quantiles import Quantiles, Sketch

__all__ = ["Predictions"]


class Predictions:
    """Gathers what the passes of a regression say.

    Args:
        like: Prediction of one pass.
        groups: Number of groups of passes.
        has_variance: Whether the model gives a variance, too.
        sketch: What quantiles are kept in, if any.
    """

    def __init__(self, like: Tensor, groups: int, has_variance: bool, sketch: Sketch | None) -> None:
        self.like, self.sketch = like, sketch
        self.predictions = Moments(groups)
        self.variances = Moments(groups) if has_variance else None

    def add(self, predictions: Tensor, variances: Tensor | None) -> None:
        """Take predictions of passes in, along the first axis, and the variances that the model gives with them."""
        flat = len(predictions), self.like.numel()
        self.predictions.add(predictions.detach().reshape(flat))
        if self.variances is not None and variances is not None:
            self.variances.add(variances.detach().reshape(flat))
        if self.sketch is not None:
            self.sketch.add(predictions.detach().reshape(flat))

    def mean(self) -> tuple[Tensor, Tensor]:
        """Return the mean prediction and its Monte Carlo error, in double precision and without the axes."""
        return self.predictions.mean_and_error()

    def found(self) -> Found:
        """Return every statistic but quantiles."""
        found = by_rows(self.like.numel(), 4 * self.predictions.groups, self._rows)
        shaped = {name: fitted(values, self.like).view(self.like.shape) for name, values in found.items()}
        return {name: (values, shaped[f"{name} error"]) for name, values in shaped.items() if "error" not in name}

    def quantiles(self) -> Quantiles | None:
        """Return the quantiles of the predictions, where they were kept."""
        return None if self.sketch is None else self.sketch.quantiles(self.like)

    def _rows(self, rows: slice) -> dict[str, Tensor]:
        passes, sizes = self.predictions.subsets(rows), self.predictions.sizes
        variance, errors = passes.variance, {"mean error": passes.error[0]}
        found = {"epistemic": variance}
        if self.variances is not None:
            given = self.variances.subsets(rows)
            variance = variance + given.mean
            found["aleatoric"], errors["aleatoric error"] = given.mean, given.error[0]
        found = {"mean": passes.mean, "std": variance.sqrt(), **found, "variance": variance}
        jackknifed = {f"{name} error": jackknife(values, sizes) for name, values in found.items()}
        return {name: values[0] for name, values in found.items()} | jackknifed | errors
