"""The test rows, used once: the leading method against none, over all confirmation models of each."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dropkit.random import call_key
from dropkit.study.dataset import Dataset
from dropkit.study.methods import METHODS
from dropkit.study.metrics import measured, metrics_of
from dropkit.study.network import row_scores
from dropkit.study.own import OwnNetwork, own_row_scores
from dropkit.study.packed import Model
from dropkit.study.records import CONFIRMATION
from dropkit.study.splits import outer_split, seed_key, seed_split
from dropkit.study.statistics import Interval, paired_bootstrap
from dropkit.study.storage import RunFolder
from dropkit.study.summary import Summary

__all__ = ["OnTestRows", "confirmed_parameters", "score_test_rows"]


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


def score_test_rows(
    folder: RunFolder, data: Dataset, summary: Summary, method: str, network: OwnNetwork | None = None
) -> OnTestRows:
    """Score the confirmation models of `method` and of none on the test rows.

    Losses are averaged over models row by row; predictions are not, which would make an ensemble of them.
    """
    plan = folder.plan
    rows, rest = outer_split(data, plan.budget, plan.seed)
    scores = {}
    for name in (method, "none"):
        models = confirmed_parameters(folder, summary, name)
        keys = [seed_key(plan.seed, seed) for seed in models]
        prepared = [data.prepared(seed_split(data, rest, plan.budget, key).train) for key in keys]
        targets = [torch.from_numpy(part.targets[rows]) for part in prepared]
        if network is None:
            inputs = [torch.from_numpy(part.inputs[rows]) for part in prepared]
            stacked = [torch.from_numpy(np.stack(parts)) for parts in zip(*models.values(), strict=True)]
            losses, outputs = row_scores(stacked, inputs, targets)
        else:
            recipe = METHODS[name].recipe(summary.arms[name].strength)
            trained = [(Model(key, recipe), state) for key, state in zip(keys, models.values(), strict=True)]
            losses, outputs = own_row_scores(network, trained, prepared, data, rows, plan.budget)
        found = measured(data.task, outputs, torch.stack(targets), [part.target_scale for part in prepared]).mean(0)
        names = [metric.name for metric in metrics_of(data.task)]
        scores[name] = losses.mean(0).numpy(), dict(zip(names, found.tolist(), strict=True))
    (own, metrics), (other, none_metrics) = scores[method], scores["none"]
    groups = None if data.groups is None else data.groups[rows]
    count = 0 if groups is None else len(np.unique(groups))
    if count < 2:
        groups, count = None, 0
    return OnTestRows(
        method=method,
        models=len(summary.arms[method].records),
        loss=float(own.mean()),
        none_loss=float(other.mean()),
        metrics=metrics,
        none_metrics=none_metrics,
        difference=paired_bootstrap(own - other, seed=call_key(plan.seed, "study bootstrap", 0), groups=groups),
        groups=count,
    )


def confirmed_parameters(folder: RunFolder, summary: Summary, method: str) -> dict[int, list[npt.NDArray[np.float32]]]:
    """Return the parameters of a method's confirmation models by seed."""
    wanted = {record.trial.name: record.trial.seed for record in summary.arms[method].records}
    packs = [pack for pack in folder.plan.packs() if pack.phase == CONFIRMATION]
    found = {name: arrays for pack in packs for name, arrays in folder.parameters(pack).items() if name in wanted}
    return {seed: found[name] for name, seed in wanted.items()}
