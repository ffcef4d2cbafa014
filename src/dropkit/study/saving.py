"""Writing the models of a run: the advised one in two files, and of every other method what its networks need.

Weights are safetensors, everything else is JSON. Those of other methods stay where the confirmation has put them.
"""

import json
from collections.abc import Mapping
from functools import cache
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dropkit.study._atomic import write_atomic
from dropkit.study.calibration import calibrate
from dropkit.study.dataset import Dataset
from dropkit.study.findings import Findings
from dropkit.study.methods import METHODS, Recipe
from dropkit.study.new_rows import ranges_of
from dropkit.study.own import OwnNetwork, rows_at_once, state_names
from dropkit.study.preparation import fit
from dropkit.study.records import CONFIRMATION
from dropkit.study.sampling import Dropped
from dropkit.study.saved_model import DESCRIPTION, WEIGHTS, SavedModel, model_of
from dropkit.study.splits import outer_split, seed_key, seed_split
from dropkit.study.storage import RunFolder, method_path
from dropkit.study.test_rows import confirmed_parameters

__all__ = ["save_models"]

_FORMAT = 1

Weights = dict[str, torch.Tensor]


def save_models(folder: RunFolder, data: Dataset, findings: Findings, network: OwnNetwork | None = None) -> None:
    """Write the recommended model into the run; nothing where every run without regularisation diverged.

    Of every other method that was confirmed, what `dropkit.study.saved_model.load_model` needs is written too.
    """
    from safetensors.torch import save

    arms, saved = findings.summary.arms, findings.verdict.saved
    if saved not in arms or not arms[saved].records:
        return
    describe = _Describing(folder, data, findings, network)
    for method, arm in arms.items():
        is_fitted = network is not None and METHODS[method].recipe(arm.strength).is_linear  # no network of the user's
        if method == saved or not arm.records or is_fitted:
            continue
        description, _ = describe(method)
        described = {**description, "kept": describe.kept(method)}
        write_atomic(method_path(folder.path, method), _text(described))
    method_path(folder.path, saved).unlink(missing_ok=True)  # of a version that advised another
    description, weights = describe(saved)
    write_atomic(folder.path / WEIGHTS, save(weights))
    write_atomic(folder.path / DESCRIPTION, _text(description))


def _text(description: Mapping[str, Any]) -> str:
    return json.dumps(description, indent=1, ensure_ascii=False) + "\n"


class _Describing:
    """Tells of a method's confirmed models all that predictions need."""

    def __init__(self, folder: RunFolder, data: Dataset, findings: Findings, network: OwnNetwork | None) -> None:
        self.folder, self.data, self.findings, self.network = folder, data, findings, network
        self.test, self.rest = outer_split(data, folder.plan.budget, folder.plan.seed)
        self.preparation = cache(self._preparation)  # all methods of a seed share it
        self.ranges = ranges_of(data.schema, data.inputs[self.rest])

    def __call__(self, method: str) -> tuple[dict[str, Any], Weights]:
        """Return the description of a method's models, and their weights."""
        plan, data = self.folder.plan, self.data
        arm = self.findings.summary.arms[method]
        recipe = METHODS[method].recipe(arm.strength)
        parameters = confirmed_parameters(self.folder, self.findings.summary, method)
        keys = [seed_key(plan.seed, seed) for seed in parameters]
        names = self._names(recipe, keys[0], len(next(iter(parameters.values()))))
        weights = {
            f"{member}.{name}": torch.tensor(part)
            for member, parts in enumerate(parameters.values())
            for name, part in zip(names, parts, strict=True)
        }
        description = {
            "format": _FORMAT,
            "method": method,
            "label": arm.label,
            "task": data.task,
            "target": data.target_name,
            "class_names": list(data.class_names or (str(number) for number in range(data.classes))),
            "inputs": data.inputs.shape[1],
            "names": names,
            "members": [self.preparation(key) for key in keys],
            "ranges": self.ranges,
        }
        if self.network is not None:
            described = {"p": recipe.dropout, "keys": keys, "image_shape": data.image_shape}
            at_once = rows_at_once(data, plan.budget)
            description["network"] = {**plan.network, **described, "rows_at_once": at_once}
        return description | self._dropped(method, recipe, description, weights), weights

    def kept(self, method: str) -> list[dict[str, str]]:
        """Return the pack and the trial of each of a method's confirmed models."""
        wanted = [record.trial.name for record in self.findings.summary.arms[method].records]
        packs = [pack for pack in self.folder.plan.packs() if pack.phase == CONFIRMATION]
        places = {trial.name: pack.name for pack in packs for trial in pack.trials}
        return [{"pack": places[name], "trial": name} for name in wanted]

    def _preparation(self, key: int) -> dict[str, Any]:
        data, budget = self.data, self.folder.plan.budget
        train = seed_split(data, self.rest, budget, key).train
        targets = None if data.is_classification else data.targets
        return fit(data.schema, data.inputs, targets, train).to_json()

    def _names(self, recipe: Recipe, key: int, count: int) -> list[str]:
        """Return the names of the parts of one network's weights."""
        if self.network is None:
            return [str(part) for part in range(count)]
        return state_names(self.network.build(recipe.dropout, key))

    def _dropped(self, method: str, recipe: Recipe, description: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
        """Return what a method's models dropped, and of the study's own networks how their samples do on test rows."""
        records, saved = self.findings.summary.arms[method].records, self.findings.saved
        error = saved.metrics.get("rmse") if saved is not None and saved.method == method else None
        if self.network is not None:  # it has its dropout in itself
            return {"dropped": Dropped.of(Recipe(), [], _finite(error)).to_json()}
        hidden = len(recipe.hidden(self.folder.plan.budget.hidden))
        rates = [record.learned_rates or (recipe.dropout,) * hidden for record in records]
        inputs, targets = self.data.inputs[self.test], self.data.targets[self.test]
        dropped = Dropped.of(recipe, rates, None).to_json()
        model = model_of(self.folder.path, {**description, "dropped": dropped}, weights, None)
        if error is None and not model.is_classifier:
            error = _error(model, inputs, targets)
        found = calibrate(model, inputs, targets, self.folder.plan.seed)
        return {
            "dropped": {**dropped, "error": _finite(error)},
            "calibration": None if found is None else found.to_json(),
        }


def _error(model: SavedModel, inputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
    """Return the root mean squared error."""
    return float(np.sqrt(np.square(model.predict(inputs)[:, 0] - targets).mean()))


def _finite(error: float | None) -> float | None:
    return error if error is not None and isfinite(error) else None
