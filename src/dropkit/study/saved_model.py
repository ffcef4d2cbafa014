"""The model that a study recommends, in two files of its run: weights as safetensors, everything else as JSON.

It is the mean of the confirmation models of the recommended method, or of no regularisation where none is recommended:
each trained on other rows, so together they have seen nearly all, and the loss of the mean is at most the mean loss.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import skip_init

from dropkit._checks import argument_error
from dropkit.errors import DropkitError, RunError
from dropkit.study._atomic import write_atomic
from dropkit.study.dataset import CLASSIFICATION, Dataset
from dropkit.study.findings import Findings
from dropkit.study.methods import METHODS, Recipe
from dropkit.study.own import Factory, OwnMember, OwnNetwork, own_members, rows_at_once, state_names
from dropkit.study.preparation import Column, Preparation, fit
from dropkit.study.sampling import Dropped
from dropkit.study.splits import outer_split, seed_key, seed_split
from dropkit.study.storage import RunFolder
from dropkit.study.test_rows import confirmed_parameters

__all__ = ["SavedModel", "load_model", "save_model"]

_WEIGHTS, _DESCRIPTION = "model.safetensors", "model.json"
_FORMAT = 1

Network = nn.Module | OwnMember


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A model that predicts.

    Args:
        label: Method and strength.
        task: ``"classification"`` or ``"regression"``.
        target: What is predicted.
        class_names: The name of each class.
        columns: The columns of a table that it needs; none where it takes an array of numbers.
        inputs: Numbers that a row has before preparation; 0 where a function of the user's loaded the rows.
        members: What prepares the rows for each network, and the network: from prepared rows to outputs.
        dropped: What the networks dropped in training; None where the model was saved before that was written down.
    """

    label: str
    task: str
    target: str
    class_names: tuple[str, ...]
    columns: tuple[Column, ...]
    inputs: int
    members: tuple[tuple[Preparation, Network], ...]
    dropped: Dropped | None = None

    @property
    def is_classifier(self) -> bool:
        """Whether it predicts classes."""
        return self.task == CLASSIFICATION

    @torch.no_grad()
    def predict(self, inputs: Any) -> npt.NDArray[np.float64]:
        """Return probabilities of shape (rows, classes), or numbers of shape (rows, 1)."""
        found = [self.scaled(each, network(self.rows(each, inputs))) for each, network in self.members]
        return torch.stack(found).mean(0).numpy()

    def rows(self, preparation: Preparation, inputs: Any) -> Any:
        """Return rows as a network takes them."""
        return torch.from_numpy(preparation.apply(inputs)) if self.inputs else inputs

    def scaled(self, preparation: Preparation, output: torch.Tensor) -> torch.Tensor:
        """Return the outputs of a network as float64 probabilities, or as numbers in their own units."""
        if self.is_classifier:
            return output.double().softmax(-1)
        return output.double() * preparation.target_scale + preparation.target_mean


def save_model(folder: RunFolder, data: Dataset, findings: Findings, network: OwnNetwork | None = None) -> None:
    """Write the recommended model into the run; nothing where every run without regularisation diverged."""
    from safetensors.torch import save

    summary, method = findings.summary, findings.verdict.saved
    if method not in summary.arms or not summary.arms[method].records:
        return
    plan = folder.plan
    _, rest = outer_split(data, plan.budget, plan.seed)
    recipe = METHODS[method].recipe(summary.arms[method].strength)
    weights: dict[str, torch.Tensor] = {}
    preparations, keys = [], []
    for member, (seed, parameters) in enumerate(confirmed_parameters(folder, summary, method).items()):
        keys.append(seed_key(plan.seed, seed))
        train = seed_split(data, rest, plan.budget, keys[-1]).train
        targets = None if data.is_classification else data.targets
        preparations.append(fit(data.schema, data.inputs, targets, train).to_json())
        names = state_names(network.build(recipe.dropout, keys[-1])) if network else range(len(parameters))
        weights |= {f"{member}.{name}": torch.tensor(part) for name, part in zip(names, parameters, strict=True)}
    # A network of the user's own has its dropout in itself.
    inserted = recipe if network is None else Recipe()
    description = {
        "format": _FORMAT,
        "label": summary.arms[method].label,
        "task": data.task,
        "target": data.target_name,
        "class_names": list(data.class_names or (str(number) for number in range(data.classes))),
        "inputs": data.inputs.shape[1],
        "members": preparations,
        "dropped": _dropped(findings, inserted, len(inserted.hidden(plan.budget.hidden))).to_json(),
    }
    if network is not None:
        shape = data.image_shape
        described = {"p": recipe.dropout, "keys": keys, "image_shape": shape}
        description["network"] = {**plan.network, **described, "rows_at_once": rows_at_once(data, plan.budget)}
    write_atomic(folder.path / _WEIGHTS, save(weights))
    write_atomic(folder.path / _DESCRIPTION, json.dumps(description, indent=1, ensure_ascii=False) + "\n")


def _dropped(findings: Findings, recipe: Recipe, hidden: int) -> Dropped:
    """Return what the saved networks dropped, in so many hidden layers."""
    error = findings.saved.metrics.get("rmse") if findings.saved is not None else None
    records = findings.summary.arms[findings.verdict.saved].records
    rates = [record.learned_rates or (recipe.dropout,) * hidden for record in records]
    return Dropped.of(recipe, rates, error if error is not None and isfinite(error) else None)


def load_model(path: Path, network: Factory | None = None) -> SavedModel:
    """Read the model of a run.

    Args:
        path: The run directory.
        network: What builds the networks of a run that began with a network of one's own.

    Raises:
        ArgumentError: If the network is not the one that the run began with.
        RunError: If the run has none, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        weights = load((path / _WEIGHTS).read_bytes())
        description = json.loads((path / _DESCRIPTION).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{path} holds no model. Name the directory of a study that has ended, such as runs/mnist."
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"{path}: the model cannot be read ({error}). Write it anew: dropkit study --resume {path}"
        ) from None
    own = description.get("network") if isinstance(description, dict) else None
    if own is None and network is not None:
        raise argument_error("load_models", "network", f"left out for {path}, which has the study's network", network)
    try:
        preparations = [Preparation.from_json(one) for one in description["members"]]
        networks: Sequence[Network]
        if own is not None:
            networks = own_members(path, own, network, weights, len(description["class_names"]))
        else:
            networks = [_network(_parts(weights, member)) for member in range(len(preparations))]
        hidden = [len(one) // 2 for one in networks if isinstance(one, nn.Sequential)]
        return SavedModel(
            label=description["label"],
            task=description["task"],
            target=description["target"],
            class_names=tuple(description["class_names"]),
            columns=preparations[0].columns,
            inputs=int(description["inputs"]),
            members=tuple(zip(preparations, networks, strict=True)),
            dropped=Dropped.from_json(description["dropped"], hidden) if "dropped" in description else None,
        )
    except DropkitError:
        raise  # of a network of one's own; an ArgumentError is a ValueError too
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError):
        raise RunError(f"{path}: the model is damaged. Write it anew: dropkit study --resume {path}") from None


def _network(parameters: Sequence[torch.Tensor]) -> nn.Sequential:
    """Return a network of the study, whose weights have the shape (inputs, outputs), as a module."""
    layers: list[nn.Module] = []
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        layer = skip_init(nn.Linear, *weight.shape)
        layer.load_state_dict({"weight": weight.T, "bias": bias.flatten()})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def _parts(weights: dict[str, torch.Tensor], member: int) -> tuple[torch.Tensor, ...]:
    own = [name for name in weights if name.startswith(f"{member}.")]
    names = sorted(own, key=lambda name: int(name.partition(".")[2]))
    if not names:
        raise KeyError(member)
    return tuple(weights[name] for name in names)
