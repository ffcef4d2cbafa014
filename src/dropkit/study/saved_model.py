"""The model that a study recommends, as its run holds it, and those of its other methods.

It is the mean of the confirmation models of the recommended method, or of no regularisation where none is recommended:
each trained on other rows, so together they have seen nearly all, and the loss of the mean is at most the mean loss.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import skip_init

from dropkit._checks import argument_error
from dropkit.errors import DropkitError, RunError
from dropkit.study.calibration import Calibration
from dropkit.study.dataset import CLASSIFICATION, REGRESSION
from dropkit.study.new_rows import Ranges
from dropkit.study.own import Factory, OwnMember, own_members
from dropkit.study.preparation import Column, Preparation
from dropkit.study.sampling import Dropped
from dropkit.study.storage import described_methods, method_path, read_models

__all__ = ["DESCRIPTION", "WEIGHTS", "SavedModel", "load_model", "model_of"]

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"

Network = nn.Module | OwnMember

_UNFIT = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)
"""What reading a damaged description raises: JSON may hold any value at any place."""


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
        ranges: The least and the greatest number of each input among the study's rows; none where the model was saved
            before that was written down.
        calibration: How its samples did on test rows; None where that was not measured.
    """

    label: str
    task: str
    target: str
    class_names: tuple[str, ...]
    columns: tuple[Column, ...]
    inputs: int
    members: tuple[tuple[Preparation, Network], ...]
    dropped: Dropped | None = None
    ranges: Ranges = ()
    calibration: Calibration | None = None

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


def load_model(path: Path, network: Factory | None = None, method: str | None = None) -> SavedModel:
    """Read a model of a run.

    Args:
        path: The run directory.
        network: What builds the networks of a run that began with a network of one's own.
        method: The method whose networks it is the mean of. Default: the one that was saved as the study advised.

    Raises:
        ArgumentError: If the network is not the one that the run began with, or the run has no networks of the method.
        RunError: If the run has none, or it is damaged.
    """
    from safetensors import SafetensorError

    try:
        description = _described(path, method)
        weights = _weights(path, description)
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{path} holds no model. Name the directory of a study that has ended, such as runs/mnist."
        ) from None
    except DropkitError:
        raise
    except (OSError, SafetensorError, *_UNFIT) as error:
        raise RunError(f"{path}: the model cannot be read ({error}). {_anew(path)}") from None
    if "network" not in description and network is not None:
        raise argument_error("load_models", "network", f"left out for {path}, which has the study's network", network)
    try:
        return model_of(path, description, weights, network)
    except DropkitError:
        raise  # of a network of one's own; an ArgumentError is a ValueError too
    except _UNFIT:
        raise _damaged(path) from None


def _damaged(path: Path) -> RunError:
    return RunError(f"{path}: the model is damaged. {_anew(path)}")


def _anew(path: Path) -> str:
    return f"Write it anew: dropkit study --resume {path}"


def model_of(
    path: Path, description: Mapping[str, Any], weights: Mapping[str, torch.Tensor], network: Factory | None
) -> SavedModel:
    """Build a model of a run from what was written down of it.

    What does not fit raises one of `_UNFIT`.

    Args:
        path: The run directory, for messages.
        description: Everything but the weights.
        weights: Those of every network, under ``"member.part"``.
        network: What builds the networks of a run that began with a network of one's own.
    """
    own = description.get("network")
    preparations = [Preparation.from_json(one) for one in description["members"]]
    networks: Sequence[Network]
    if own is not None:
        networks = own_members(path, own, network, weights, len(description["class_names"]))
    else:
        networks = [_network(_parts(weights, member)) for member in range(len(preparations))]
    hidden = [len(one) // 2 for one in networks if isinstance(one, nn.Sequential)]
    calibration = description.get("calibration")
    ranges = tuple(None if one is None else (float(one[0]), float(one[1])) for one in description.get("ranges", ()))
    model = SavedModel(
        label=description["label"],
        task=description["task"],
        target=description["target"],
        class_names=tuple(description["class_names"]),
        columns=preparations[0].columns,
        inputs=description["inputs"],
        members=tuple(zip(preparations, networks, strict=True)),
        dropped=Dropped.from_json(description["dropped"], hidden) if "dropped" in description else None,
        ranges=ranges,
        calibration=None if calibration is None else Calibration.from_json(calibration),
    )
    if not _is_whole(model):
        raise ValueError(description)
    return model


def _is_whole(model: SavedModel) -> bool:
    """Whether all parts of a model are what they should be, and fit each other."""
    preparations, networks = zip(*model.members, strict=True)
    columns, inputs = model.columns, model.inputs
    names = (model.label, model.target, *model.class_names)
    width = sum(column.width for column in columns) if columns else inputs
    outputs = len(model.class_names) if model.is_classifier else 1
    return (
        model.task in (CLASSIFICATION, REGRESSION)
        and all(isinstance(name, str) for name in names)
        and isinstance(inputs, int)
        and inputs == (len(columns) or inputs)
        and all(one.columns == columns for one in preparations)
        and len(model.ranges) in (0, inputs)
        and all(one is None or one[0] <= one[1] for one in model.ranges)
        and all(_chain(one, width, outputs) for one in networks if isinstance(one, nn.Sequential))
    )


def _chain(network: nn.Sequential, inputs: int, outputs: int) -> bool:
    """Whether each linear layer of a network of the study takes what the one before it gives."""
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    taken = [layer.in_features for layer in layers]
    given = [layer.out_features for layer in layers]
    return [inputs, *given] == [*taken, outputs]


def _described(path: Path, method: str | None) -> dict[str, Any]:
    """Return what is written down of the model of a method; ValueError and the like if it cannot be read."""
    advised = _object(path / DESCRIPTION)
    if method is None or method == advised.get("method"):
        return advised
    if "method" not in advised:
        raise RunError(f"{path}: the model was saved before its method could be chosen. {_anew(path)}")
    known = [advised["method"], *described_methods(path)]
    if method not in known:
        rule = f"one of {', '.join(map(repr, known))}"
        raise argument_error("load_models", "method", rule, method, f"These are the methods that {path} confirmed.")
    found = _object(method_path(path, method))
    if found.get("method") != method or "kept" not in found:  # without it the weights would be the advised model's
        raise _damaged(path)
    return found


def _object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise TypeError(f"{path.name} holds no JSON object")
    return found


def _weights(path: Path, description: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights of the advised model, or of one that the study keeps among its confirmed ones."""
    from safetensors.torch import load

    if "kept" not in description:
        try:
            content = (path / WEIGHTS).read_bytes()
        except FileNotFoundError:
            raise RunError(f"{path / WEIGHTS} is missing. {_anew(path)}") from None
        return load(content)
    packs = {pack: read_models(path, pack) for pack in {kept["pack"] for kept in description["kept"]}}
    return {
        f"{member}.{name}": torch.tensor(part)
        for member, kept in enumerate(description["kept"])
        for name, part in zip(description["names"], packs[kept["pack"]][kept["trial"]], strict=True)
    }


def _network(parameters: Sequence[torch.Tensor]) -> nn.Sequential:
    """Return a network of the study, whose weights have the shape (inputs, outputs), as a module."""
    layers: list[nn.Module] = []
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        layer = skip_init(nn.Linear, *weight.shape)
        layer.load_state_dict({"weight": weight.T, "bias": bias.flatten()})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def _parts(weights: Mapping[str, torch.Tensor], member: int) -> tuple[torch.Tensor, ...]:
    own = [name for name in weights if name.startswith(f"{member}.")]
    names = sorted(own, key=lambda name: int(name.partition(".")[2]))
    if not names:
        raise KeyError(member)
    return tuple(weights[name] for name in names)
