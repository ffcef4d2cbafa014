"""Finding every site of a model by running it."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from dropkit._checks import argument_type_error
from dropkit.sites.functions import Call
from dropkit.sites.interceptor import Handler, Place, attached
from dropkit.sites.names import unwrapped
from dropkit.sites.restoring import cloned, restored

__all__ = ["Site", "Sites", "find"]


@dataclass(frozen=True)
class Site:
    """One place of a model that draws dropout.

    Args:
        name: Its name, as the mask definition spells it.
        path: Name of the module whose forward draws.
        kind: What draws: a function, such as ``"dropout"``, ``"lstm"`` or ``"scaled_dot_product_attention"``.
        p: Probability of dropping, at the first call; None where it is learned or not known.
        in_train: Whether it drops when the model is in training mode.
        in_eval: Whether it drops when the model is in evaluation mode, as it should not.
        file: File of the code that draws; of the model's own, not of PyTorch's.
        line: Line in that file.
        shape: Shape of the tensor that it drops from, at the first call.
        shared: Axes of that tensor along which one draw is shared.
        calls: How often it was called in one forward.
        is_rewritable: Whether it can be switched and replaced.
    """

    name: str
    path: str
    kind: str
    p: float | None
    in_train: bool
    in_eval: bool
    file: str
    line: int
    shape: tuple[int, ...]
    shared: tuple[int, ...]
    calls: int
    is_rewritable: bool = True


class Sites(list[Site]):
    """Sites in the order in which a forward meets them; printed, a table."""

    def __str__(self) -> str:
        heads = ("site", "kind", "p", "train", "eval", "calls", "shape", "shared", "where")
        rows = [heads, *map(_cells, self)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines) if self else "no site: nothing in this model draws dropout"


def _cells(site: Site) -> tuple[str, ...]:
    return (
        site.name,
        site.kind,
        "?" if site.p is None else f"{site.p:g}",
        "on" if site.in_train else "off",
        "ON" if site.in_eval else "off",
        str(site.calls),
        "x".join(map(str, site.shape)),
        ",".join(map(str, site.shared)) or "-",
        f"{Path(site.file).name}:{site.line}",
    )


def find(model: Module, *args: Any, **kwargs: Any) -> Sites:
    """Find every site of a model, by one forward in training mode and one in evaluation mode.

    Whatever draws dropout is seen: layers, functions, the rates inside attention and recurrent networks, and those of
    other libraries' models. The model, the arguments and all random generators are left as they were, also where a
    forward raises. Fused ways through attention and encoders are not taken meanwhile.

    Args:
        model: The model, in either mode, wrapped or not.
        *args: What its forward takes.
        **kwargs: The same, by name.

    Returns:
        A list of `Site`, which prints as a table; a rate of 0 is no site.

    Raises:
        ArgumentTypeError: If `model` is no module.

    Examples:
        >>> import torch, dropkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2))
        >>> [site] = dropkit.sites.find(model, torch.ones(5, 4))
        >>> site.name, site.kind, site.p, site.in_train, site.in_eval
        ('1', 'dropout', 0.3, True, False)
    """
    if not isinstance(model, Module):
        raise argument_type_error("find", "model", "a torch.nn.Module", model)
    model = unwrapped(model)
    found: list[dict[str, Site]] = []
    for mode in (True, False):
        recorder = _Recorder()
        with restored(model), attached(model, recorder), torch.compiler.set_stance("force_eager"):
            model.train(mode)
            given, named = cloned((args, kwargs))
            model(*given, **named)
        found.append(recorder.sites)
    train, evaluation = found
    merged = {name: replace(site, in_train=True) for name, site in train.items()}
    for name, site in evaluation.items():
        merged[name] = replace(merged.get(name, replace(site, in_train=False)), in_eval=True)
    return Sites(merged.values())


class _Recorder(Handler):
    """Notes every call that drops, and lets it run."""

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}

    def dropout(self, place: Place, call: Call) -> Any:
        if call.is_active:
            known = self.sites.get(place.name)
            self.sites[place.name] = _site(place, call) if known is None else replace(known, calls=known.calls + 1)
        return call.run()

    def other(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return function(*args, **kwargs)


def _site(place: Place, call: Call) -> Site:
    rate = call.p
    if isinstance(rate, Tensor):
        rate = float(rate) if rate.numel() == 1 else None
    file, line = _caller()
    shape = tuple(call.input.shape) if not call.input.is_nested else ()
    return Site(place.name, place.path, call.function.kind, rate, True, False, file, line, shape, call.shared, 1)


_LIBRARIES = tuple(str(Path(str(file)).parent) for file in (torch.__file__, sys.modules["dropkit"].__file__))


def _caller() -> tuple[str, int]:
    """Return file and line of the innermost code that is neither PyTorch's nor dropkit's."""
    frame = sys._getframe(1)
    first = frame.f_code.co_filename, frame.f_lineno
    while frame is not None:
        if not frame.f_code.co_filename.startswith((*_LIBRARIES, "<")):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    return first
