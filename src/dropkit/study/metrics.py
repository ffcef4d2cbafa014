"""What is measured beside the loss after every epoch: one registry, in the order of result files and tables.

A metric describes; no choice and no test rests on it. It costs little, because it is taken of every model after every
epoch on all its validation rows, and it is NaN where the rows leave it undefined.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dropkit.study.dataset import CLASSIFICATION, REGRESSION

__all__ = ["METRICS", "Metric", "area_under_roc", "calibration_error", "measured", "metrics_of"]

_BINS = 15  # of the confidence, as Guo et al. choose


@dataclass(frozen=True)
class Metric:
    """A metric of a task.

    Args:
        name: In result files, such as ``"auc"``.
        title: In tables and sentences, such as ``"AUC"``.
        task: ``"classification"`` or ``"regression"``.
        of: From outputs of shape (models, rows, outputs) and targets (models, rows) to one number a model.
        in_target_units: Whether `of` gives standard deviations of the target, which are to be multiplied by its scale.
    """

    name: str
    title: str
    task: str
    of: Callable[[Tensor, Tensor], Tensor]
    in_target_units: bool = False

    def written(self, value: float) -> str:
        """Write a value: three decimals, or at least four figures in the target's units; a dash where undefined."""
        if math.isnan(value):
            return "\N{EN DASH}"
        figures = f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
        return (figures if self.in_target_units else f"{value:.3f}").replace("-", "\N{MINUS SIGN}")


def metrics_of(task: str) -> tuple[Metric, ...]:
    """Return the metrics of a task; the first one stands where there is room for one."""
    return tuple(metric for metric in METRICS if metric.task == task)


@torch.no_grad()
def measured(task: str, outputs: Tensor, targets: Tensor, scales: Sequence[float]) -> Tensor:
    """Return the metrics of a task.

    Args:
        task: ``"classification"`` or ``"regression"``.
        outputs: Logits, or standardised numbers, of shape (models, rows, outputs).
        targets: Classes (int64), or standardised numbers, of shape (models, rows).
        scales: By what each model's numbers were divided; 1 for classes.

    Returns:
        Float64 of shape (models, metrics), in the order of `metrics_of`.
    """
    units = torch.tensor(scales, dtype=torch.float64)
    found = [(metric, metric.of(outputs, targets).double()) for metric in metrics_of(task)]
    return torch.stack([value * units if metric.in_target_units else value for metric, value in found], dim=1)


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets).double().mean(-1)


def area_under_roc(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the area under the ROC curve: of class 1 where there are two, else the mean of each against the rest.

    It is the probability that a row of the class gets a higher probability of it than another row, where equal
    probabilities count half; NaN where a class has no row, or all rows.

    Args:
        outputs: Logits, of shape (models, rows, classes).
        targets: Classes, int64 of shape (models, rows).

    Returns:
        One number a model.

    References:
        Hanley and McNeil (1982), "The meaning and use of the area under a receiver operating characteristic curve".
    """
    classes = outputs.shape[-1]
    probabilities = outputs.double().softmax(-1).mT
    members = targets[:, None] == torch.arange(classes)[:, None]
    if classes == 2:
        probabilities, members = probabilities[:, 1:], members[:, 1:]
    ordered, order = probabilities.sort(dim=-1)
    is_member = members.gather(-1, order).double()
    inside, rows = is_member.sum(-1), is_member.shape[-1]
    # Rows of one probability share the middle of their ranks.
    tie = torch.nn.functional.pad((ordered[..., 1:] != ordered[..., :-1]).long(), (1, 0)).cumsum(-1)
    size = torch.zeros_like(ordered).scatter_add_(-1, tie, torch.ones_like(ordered))
    rank = (size.cumsum(-1) - (size - 1) / 2).gather(-1, tie)
    wins = (rank * is_member).sum(-1) - inside * (inside + 1) / 2
    return (wins / (inside * (rows - inside))).mean(-1)


def calibration_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return how far confidence and accuracy are apart: the expected calibration error of the likeliest class.

    Rows are put into 15 bins of equal width by the probability of their likeliest class. The error is the mean over
    rows of the difference between mean probability and accuracy of their bin.

    Args:
        outputs: Logits, of shape (models, rows, classes).
        targets: Classes, int64 of shape (models, rows).

    Returns:
        One number a model.

    References:
        Guo, Pleiss, Sun and Weinberger (2017), "On calibration of modern neural networks", equation 3.
    """
    confidence, predicted = outputs.double().softmax(-1).max(-1)
    bins = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1
    excess = torch.zeros(len(outputs), _BINS, dtype=torch.float64)
    excess.scatter_add_(-1, bins, (predicted == targets).double() - confidence)
    return excess.abs().sum(-1) / outputs.shape[1]


def _root_mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[..., 0].double() - targets).square().mean(-1).sqrt()


def _r_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of the rows' variance explained; NaN where they do not differ."""
    exact = targets.double()
    spread = (exact - exact.mean(-1, keepdim=True)).square().mean(-1)
    share = 1 - (outputs[..., 0] - exact).square().mean(-1) / spread
    return share.where(spread > 0, torch.nan)


METRICS = (
    Metric("accuracy", "accuracy", CLASSIFICATION, _accuracy),
    Metric("auc", "AUC", CLASSIFICATION, area_under_roc),
    Metric("calibration_error", "calibration error", CLASSIFICATION, calibration_error),
    Metric("rmse", "RMSE", REGRESSION, _root_mean_squared_error, in_target_units=True),
    Metric("r_squared", "R\N{SUPERSCRIPT TWO}", REGRESSION, _r_squared),
)
