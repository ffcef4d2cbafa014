"""What passes of a classifier say: probabilities, and how the uncertainty of the label is made up."""

import torch
from torch import Tensor

from dropkit.uncertainty.results.elements import Found, fitted
from dropkit.uncertainty.results.moments import (
    Moments,
    Subsets,
    by_rows,
    cached,
    group_numbers,
    jackknife,
    leave_out,
    wide,
)

__all__ = ["Classes", "corrected_information", "probabilities"]

_OF_CLASSES = ("mean", "std")  # the others are statistics of an example


def probabilities(logits: Tensor, class_dim: int) -> Tensor:
    """Return the softmax in double precision; of a single logit, the probability of the second of two classes."""
    logits = wide(logits)
    return logits.sigmoid() if logits.shape[class_dim] == 1 else logits.softmax(class_dim)


class Classes:
    """Gathers what the passes of a classifier say.

    Args:
        like: Logits of one pass.
        groups: Number of groups of passes.
        class_dim: The axis of classes, not negative; one of length 1 holds the logits of the second of two classes.
    """

    def __init__(self, like: Tensor, groups: int, class_dim: int) -> None:
        self.like, self.class_dim = like, class_dim
        self.is_binary = like.shape[class_dim] == 1
        self.classes = 2 if self.is_binary else like.shape[class_dim]
        self.axes = like.shape[:class_dim] + like.shape[class_dim + 1 :]  # of statistics of an example
        self.probabilities, self.entropy = Moments(groups), Moments(groups)
        device = wide(like[:0] if like.dim() else like).device
        self.votes = torch.zeros(groups, self.axes.numel(), self.classes, dtype=torch.int32, device=device)

    def add(self, logits: Tensor) -> None:
        """Take logits of passes in, along the first axis."""
        rows, passes = self.axes.numel(), len(logits)
        logits = logits.detach().movedim(self.class_dim + 1, -1).reshape(passes, rows, self.like.shape[self.class_dim])
        for part in cached(logits):
            self._take(wide(logits[:, part]), part, rows)
        self.probabilities.took(passes)
        self.entropy.took(passes)

    def _take(self, logits: Tensor, part: slice, rows: int) -> None:
        """Take logits of some rows in, out of so many."""
        if self.is_binary:
            logits = torch.cat([torch.zeros_like(logits), logits], -1)
        which = group_numbers(self.probabilities.n, len(logits), self.probabilities.groups)
        group = torch.tensor(which, device=logits.device).unsqueeze(1)
        row = torch.arange(part.start, part.start + logits.shape[1], device=logits.device)
        place = (group * rows + row) * self.classes + logits.argmax(-1)
        self.votes.view(-1).scatter_add_(0, place.view(-1), self.votes.new_ones(place.numel()))
        found, entropy = _softmax_and_entropy(logits)
        self.entropy.take(entropy, part, rows)
        self.probabilities.take(found, part, rows)

    def mean(self) -> tuple[Tensor, Tensor]:
        """Return mean probabilities and their Monte Carlo errors, in double precision."""
        return self.probabilities.mean_and_error()

    def found(self) -> Found:
        """Return every statistic; the prediction is an index, and has no error."""
        found = by_rows(self.axes.numel(), 2 * self.classes * self.probabilities.groups, self._rows)
        prediction = found.pop("prediction").view(self.axes).to(self.like.device)
        shaped = {name: fitted(self._shaped(name, values), self.like) for name, values in found.items()}
        results = {name: (values, shaped[f"{name} error"]) for name, values in shaped.items() if "error" not in name}
        return results | {"prediction": (prediction, torch.zeros_like(prediction))}

    def _shaped(self, name: str, values: Tensor) -> Tensor:
        if name.split(maxsplit=1)[0] not in _OF_CLASSES:
            return values.view(self.axes)
        values = values[:, 1:] if self.is_binary else values
        return values.reshape(*self.axes, values.shape[-1]).movedim(-1, self.class_dim)

    def _rows(self, rows: slice) -> dict[str, Tensor]:
        passes, entropy = self.probabilities.subsets(rows), self.entropy.subsets(rows)
        sizes = self.probabilities.sizes
        found = _statistics(passes, entropy, leave_out(self.votes[: len(sizes), rows]))
        results = {name: values[0] for name, values in found.items()}
        results |= {f"{name} error": jackknife(values, sizes) for name, values in found.items() if name != "mean"}
        errors = {"mean error": passes.error[0], "expected_entropy error": entropy.error[0]}
        return results | errors | {"prediction": passes.mean[0].argmax(-1)}


def corrected_information(
    predictive: Tensor, expected: Tensor, mean: Tensor, variance: Tensor, n: Tensor | int
) -> Tensor:
    """Return the mutual information of labels and passes: predictive less expected entropy, corrected for few.

    The entropy of the mean of n passes is too low, to first order in 1 / n by half the sum over classes of their
    variance over n times the mean. With it the information is not let rise above the predictive entropy.

    Args:
        predictive: The entropy of the mean probabilities, in nats.
        expected: The mean entropy of the passes, in nats.
        mean: The mean probabilities, classes last.
        variance: The unbiased variance of the probabilities.
        n: Number of passes.
    """
    lacking = torch.where(mean > 0, variance / (2 * n * mean), 0).sum(-1)
    return torch.minimum(predictive - expected + lacking, predictive).clamp_min(0)


def _softmax_and_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities along the last axis and their entropy, without a logarithm for every class."""
    below = (logits - logits.amax(-1, keepdim=True)).clamp_min(-1000)  # of which the exponential is 0
    found = below.exp()
    total = found.sum(-1, keepdim=True)
    found /= total
    return found, total.squeeze(-1).log() - (found * below).sum(-1)  # no term is negative: no digits cancel


def _statistics(passes: Subsets, entropy: Subsets, votes: Tensor) -> dict[str, Tensor]:
    """Return the statistics of several sets of passes, along the first axis."""
    mean = passes.mean.clamp_min(0)  # rounding may leave less where a group is left out
    predictive = torch.special.entr(mean).sum(-1)
    modal = votes.amax(-1) / entropy.n
    return {
        "mean": passes.mean,
        "std": passes.std,
        "predictive_entropy": predictive,
        "expected_entropy": entropy.mean,
        "mutual_information": corrected_information(predictive, entropy.mean, mean, passes.variance, passes.n),
        "mutual_information_uncorrected": (predictive - entropy.mean).clamp_min(0),
        "variation_ratio": torch.where(predictive.isnan(), torch.nan, 1 - modal),
    }
