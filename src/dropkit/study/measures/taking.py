"""Taking every measure of the models that a run has confirmed."""

from collections.abc import Callable
from itertools import islice

import torch

from dropkit.study.dataset import Dataset
from dropkit.study.measures import MEASURES, Measured, Trained
from dropkit.study.methods import METHODS
from dropkit.study.splits import outer_split, seed_key, seed_split
from dropkit.study.storage import RunFolder
from dropkit.study.summary import Summary
from dropkit.study.test_rows import confirmed_parameters

__all__ = ["MODELS", "take_measures"]

MODELS = 8  # of each method, at most: more would cost more than they tell


def take_measures(
    folder: RunFolder, data: Dataset, summary: Summary, step: Callable[[], None] = lambda: None
) -> dict[str, dict[str, Measured]]:
    """Return measures by name and by method, of no regularisation and every confirmed method with hidden layers.

    All noise is addressed by the seeds' keys, so the same models give the same values. `step` is called after each
    method of the plan.
    """
    found: dict[str, dict[str, Measured]] = {measure.name: {} for measure in MEASURES}
    for method in summary.plan.strengths:
        models = [model for model in _models(folder, data, summary, method) if model.widths]
        for measure in MEASURES:
            if models and measure.fits(models[0].recipe):
                measured = Measured(tuple(measure.take(model) for model in models))
                if measured.mean:
                    found[measure.name][method] = measured
        step()
    return {name: methods for name, methods in found.items() if methods}


def _models(folder: RunFolder, data: Dataset, summary: Summary, method: str) -> list[Trained]:
    arm = summary.arms.get(method)
    if arm is None or not arm.records:
        return []
    plan, recipe = folder.plan, METHODS[arm.method].recipe(arm.strength)
    _, rest = outer_split(data, plan.budget, plan.seed)
    confirmed = confirmed_parameters(folder, summary, arm.method)
    models = []
    for seed, parameters in islice(confirmed.items(), MODELS):
        key = seed_key(plan.seed, seed)
        split = seed_split(data, rest, plan.budget, key)
        prepared = data.prepared(split.train)
        models.append(
            Trained(
                key=key,
                recipe=recipe,
                parameters=[torch.from_numpy(part[None]) for part in parameters],
                inputs=torch.from_numpy(prepared.inputs),
                targets=torch.from_numpy(prepared.targets),
                train=split.train,
                validation=split.validation,
                image_shape=data.image_shape,
            )
        )
    return models
