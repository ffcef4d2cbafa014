"""The trained networks of a run, built anew by the user's function and filled with the saved weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dropkit.errors import ArgumentError, RunError
from dropkit.study.own.factory import Factory, arranged, describe_network
from dropkit.study.own.inputs import Inputs, split
from dropkit.study.own.training import module_rows

__all__ = ["OwnMember", "own_members", "state_names"]


@dataclass(frozen=True, eq=False)
class OwnMember:
    """One trained network, which maps prepared rows, or what a function loads, to outputs of shape (rows, outputs)."""

    module: nn.Module
    image_shape: tuple[int, int] | None
    classes: int
    rows_at_once: int

    def __call__(self, rows: Inputs) -> Tensor:
        """Return the outputs."""
        parts = split(arranged(rows, self.image_shape), self.rows_at_once)
        return module_rows(self.module, parts, self.classes)


def state_names(module: nn.Module) -> list[str]:
    """Return the names of a network's state, in the order of its saved tensors."""
    return list(module.state_dict())


def own_members(
    path: Path, described: Mapping[str, Any], factory: Factory | None, weights: Mapping[str, Tensor], classes: int
) -> list[OwnMember]:
    """Build the networks of a run and fill them with their weights.

    Args:
        path: The run directory.
        described: What model.json says of the network.
        factory: What the user gave.
        weights: Each member's state, under ``"member.name"``.
        classes: Number of classes; 0 for numbers.

    Raises:
        RunError: If no function is given.
        ArgumentTypeError: If it is no function.
        ArgumentError: If it builds other networks.
        KeyError: If a weight is missing.
        ValueError: If what is said of the rows does not fit.
    """
    name = described["class"]
    if factory is None:
        raise RunError(
            f"{path} holds weights of a network of your own, {name}: call dropkit.study.load_models({str(path)!r}, "
            "network=...) or dropkit.study.predict(..., network=...) in Python, with the function that builds it."
        )
    network = describe_network("load_models", factory)
    if network.sha256 != described["sha256"]:
        raise ArgumentError(
            f"load_models: {path} holds weights of {name} with {described['parameters']:,} parameters; the function "
            f"`network` builds another network, {network.class_name} of {network.parameters:,}. Give the one it began "
            "with."
        )
    shape = tuple(described["image_shape"]) if described["image_shape"] else None
    rows_at_once = described["rows_at_once"]
    are_rows = isinstance(rows_at_once, int) and rows_at_once > 0
    are_images = shape is None or (len(shape) == 2 and all(isinstance(one, int) and one > 0 for one in shape))
    if not (are_rows and are_images):
        raise ValueError(described)
    members = []
    for member, key in enumerate(described["keys"]):
        module = network.build(described["p"], key)
        module.load_state_dict({part: weights[f"{member}.{part}"] for part in state_names(module)})
        members.append(OwnMember(module.eval(), shape, classes, rows_at_once))
    return members
