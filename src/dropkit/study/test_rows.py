"""The test rows, used once: the leading method against none, and the saved model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dropkit.random import call_key
from dropkit.study.dataset import Dataset
from dropkit.study.methods import METHODS
from dropkit.study.metrics import measured, metrics_of
from dropkit.study.network import row_losses, row_scores
from dropkit.study.own import OwnNetwork, own_row_scores
from dropkit.study.packed import Model
from dropkit.study.preparation import Prepared
from dropkit.study.records import CONFIRMATION
from dropkit.study.splits import outer_split, seed_key, seed_split
from dropkit.study.statistics import Interval, paired_bootstrap
from dropkit.study.storage import RunFolder
from dropkit.study.summary import Summary

__all__ = ["OnTestRows", "SavedOnTestRows", "confirmed_parameters", "score_test_rows"]


@dataclass(frozen=True)
class OnTestRows:
    """How a method and none do on the test rows, each averaged over its confirmation models, early-stopped.

    Args:
        method: The method's name.
        models: Models of each side.
        loss, none_loss: Mean loss.
        metrics, none_metrics: Each metric of the task by name.
        difference: Loss of the method minus loss of none, with a 95 % paired bootstrap interval.
        groups: How many groups the bootstrap drew whole; 0 where it drew rows.
    """

    method: str
    models: int
    loss: float
    none_loss: float
    metrics: Mapping[str, float]
    none_metrics: Mapping[str, float]
    difference: Interval
    groups: int = 0


@dataclass(frozen=True)
class SavedOnTestRows:
    """How the saved model, the mean of the confirmation models of a method, does on the test rows.

    Args:
        method: The method's name.
        models: Models of which it is the mean.
        loss: Mean loss; squared errors as each model's numbers are standardised, on average.
        metrics: Each metric of the task by name.
    """

    method: str
    models: int
    loss: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class _Scored:
    """What the confirmation models of a method, with the preparation of each, say of the test rows."""

    prepared: Sequence[Prepared]
    losses: Tensor
    outputs: Tensor
    targets: Tensor


def score_test_rows(
    folder: RunFolder,
    data: Dataset,
    summary: Summary,
    methods: Sequence[str],
    saved: str,
    network: OwnNetwork | None = None,
) -> tuple[tuple[OnTestRows, ...], SavedOnTestRows | None]:
    """Score confirmation models on the test rows.

    Args:
        folder: The run.
        data: The rows.
        summary: What was measured.
        methods: Those to compare with none.
        saved: The method whose models are saved.
        network: A network of the user's own. Default: the study's.

    Returns:
        Each method against none, and the saved model; None where it has no models.
    """
    rows, rest = outer_split(data, folder.plan.budget, folder.plan.seed)
    compared = (*methods, "none") if methods else ()
    wanted = {*compared, saved} & {name for name, arm in summary.arms.items() if arm.records}
    scored = {name: _scored(folder, data, summary, name, rows, rest, network) for name in sorted(wanted)}
    found = tuple(_against_none(folder, data, name, scored[name], scored["none"], rows) for name in methods)
    return found, _saved(data, saved, scored[saved], rows) if saved in scored else None


def _scored(
    folder: RunFolder,
    data: Dataset,
    summary: Summary,
    method: str,
    rows: npt.NDArray[np.int64],
    rest: npt.NDArray[np.int64],
    network: OwnNetwork | None,
) -> _Scored:
    plan = folder.plan
    models = confirmed_parameters(folder, summary, method)
    keys = [seed_key(plan.seed, seed) for seed in models]
    prepared = [data.prepared(seed_split(data, rest, plan.budget, key).train) for key in keys]
    targets = [torch.from_numpy(part.targets[rows]) for part in prepared]
    if network is None:
        inputs = [torch.from_numpy(part.inputs[rows]) for part in prepared]
        stacked = [torch.from_numpy(np.stack(parts)) for parts in zip(*models.values(), strict=True)]
        losses, outputs = row_scores(stacked, inputs, targets)
    else:
        recipe = METHODS[method].recipe(summary.arms[method].strength)
        trained = [(Model(key, recipe), state) for key, state in zip(keys, models.values(), strict=True)]
        losses, outputs = own_row_scores(network, trained, prepared, data, rows, plan.budget)
    return _Scored(prepared, losses, outputs, torch.stack(targets))


def _metrics(data: Dataset, outputs: Tensor, targets: Tensor, scales: Sequence[float]) -> dict[str, float]:
    """Return the metrics by name, means over the models."""
    names = [metric.name for metric in metrics_of(data.task)]
    return dict(zip(names, measured(data.task, outputs, targets, scales).mean(0).tolist(), strict=True))


def _against_none(
    folder: RunFolder, data: Dataset, method: str, scored: _Scored, none: _Scored, rows: npt.NDArray[np.int64]
) -> OnTestRows:
    """Average losses over models row by row; predictions are not, which would make an ensemble of them."""
    own, other = scored.losses.mean(0).numpy(), none.losses.mean(0).numpy()
    metrics, none_metrics = (
        _metrics(data, side.outputs, side.targets, [part.target_scale for part in side.prepared])
        for side in (scored, none)
    )
    groups = None if data.groups is None else data.groups[rows]
    count = 0 if groups is None else len(np.unique(groups))
    if count < 2:
        groups, count = None, 0
    return OnTestRows(
        method=method,
        models=len(scored.prepared),
        loss=float(own.mean()),
        none_loss=float(other.mean()),
        metrics=metrics,
        none_metrics=none_metrics,
        difference=paired_bootstrap(own - other, seed=call_key(folder.plan.seed, "study bootstrap", 0), groups=groups),
        groups=count,
    )


def _saved(data: Dataset, method: str, scored: _Scored, rows: npt.NDArray[np.int64]) -> SavedOnTestRows:
    """Score the mean of the predicted probabilities, or of the numbers in their own units."""
    outputs, models = scored.outputs.double(), len(scored.prepared)
    if data.is_classification:
        mean, targets = outputs.log_softmax(-1).logsumexp(0) - log(models), scored.targets[0]
        loss = row_losses(mean[None], targets[None]).mean()
    else:
        means, scales = (
            torch.tensor([getattr(part, name) for part in scored.prepared], dtype=torch.float64)
            for name in ("target_mean", "target_scale")
        )
        mean = (outputs * scales[:, None, None] + means[:, None, None]).mean(0)
        targets = torch.from_numpy(data.targets[rows].astype(np.float64))
        loss = ((mean[:, 0] - targets) / scales[:, None]).square().mean()
    return SavedOnTestRows(method, models, float(loss), _metrics(data, mean[None], targets[None], [1.0]))


def confirmed_parameters(folder: RunFolder, summary: Summary, method: str) -> dict[int, list[npt.NDArray[np.float32]]]:
    """Return the parameters of a method's confirmation models by seed."""
    wanted = {record.trial.name: record.trial.seed for record in summary.arms[method].records}
    packs = [pack for pack in folder.plan.packs() if pack.phase == CONFIRMATION]
    found = {name: arrays for pack in packs for name, arrays in folder.parameters(pack).items() if name in wanted}
    return {seed: found[name] for name, seed in wanted.items()}
