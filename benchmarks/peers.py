"""Other libraries' dropout and models, where they are installed: to be timed and to be tested against."""

import importlib
import importlib.util
import os
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

__all__ = ["keras_layers", "timm_drop", "timm_models", "transformers_library"]

_named: list[torch.library.Library] = []  # which lose their operators once they are forgotten


def _name_vision_operators() -> None:
    """Give the operators of torchvision their names.

    Its wheel for CUDA cannot load them beside a PyTorch without it, and its import ends there. With the names alone
    nothing of it runs, but what imports it can be imported.
    """
    if _named:
        return
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    text = Path(found.origin).with_name("_meta_registrations.py").read_text()
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in sorted(set(re.findall(r'"torchvision::(\w+)"', text))):
        library.define(f"{operator}(Tensor input) -> Tensor")
    _named.append(library)


def _beside_torchvision(name: str, package: str) -> ModuleType | None:
    """Import a module of a package that imports torchvision, or return None where the package is not installed."""
    if importlib.util.find_spec(package) is None:
        return None
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except RuntimeError:  # operator torchvision::nms does not exist
            _name_vision_operators()
    return importlib.import_module(name)


@cache
def timm_drop() -> ModuleType | None:
    """Return timm's module of dropout, or None where timm is not installed."""
    return _beside_torchvision("timm.layers.drop", "timm")


@cache
def timm_models() -> ModuleType | None:
    """Return timm's module of models, or None where timm is not installed."""
    return _beside_torchvision("timm.models", "timm")


@cache
def transformers_library() -> ModuleType | None:
    """Return transformers, or None where it is not installed."""
    return _beside_torchvision("transformers", "transformers")


@cache
def baal_dropout() -> ModuleType | None:
    """Return baal's module of Monte Carlo dropout, or None where baal is not installed."""
    return _beside_torchvision("baal.bayesian.dropout", "baal")


@cache
def torch_uncertainty_methods() -> ModuleType | None:
    """Return the methods of torch-uncertainty, or None where that is not installed."""
    return _beside_torchvision("torch_uncertainty.methods", "torch_uncertainty")


@cache
def keras_layers() -> ModuleType | None:
    """Return the layers of Keras on PyTorch, or None where Keras is not installed."""
    if importlib.util.find_spec("keras") is None:
        return None
    os.environ["KERAS_BACKEND"] = "torch"  # read at import
    return importlib.import_module("keras.layers")
