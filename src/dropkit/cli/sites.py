"""`dropkit sites`: every place of a model that draws dropout, as a table."""

import importlib
import math
import re
import sys
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from inspect import Parameter, signature
from os import sep
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

import dropkit
from dropkit.errors import ArgumentError, DropkitError, RunError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from dropkit.sites import Site

__all__ = ["HELP", "command"]

HELP = """List every place of a model that draws dropout.

The model runs once in training and once in evaluation mode, on random inputs. A place that drops in evaluation too is
marked, and told of below the table.

\b
Examples:
  dropkit sites package.models:resnet --input 8x3x224x224
  dropkit sites models:Bert --input 8x128:int64:30000 --input attention_mask=8x128:int64
  dropkit sites models:net --input 8x16 --eval          fails if any drops in evaluation mode
"""

_INPUT = re.compile(r"(?:(?P<name>[^\d\W]\w*)=)?(?P<shape>\d+(?:x\d+)*|scalar)(?::(?P<dtype>\w+)(?::(?P<below>\d+))?)?")
_FORM = "[NAME=]SHAPE[:TYPE[:BELOW]], such as 32x3x224x224, 8x16:int64:1000 or mask=8x16:bool"
_MOST = 2**32  # elements of an input: more is a slip
_STANDARD = f"{Path(re.__file__).parents[1]}{sep}"
_NUMBERS = ("float32", "float64", "float16", "bfloat16", "complex64", "complex128")
_INTEGERS = {"int64": 2**63 - 1, "int32": 2**31, "int16": 2**15, "int8": 2**7, "uint8": 2**8, "bool": 2}


def command(
    model: Annotated[str, typer.Argument(help="package.module:factory, a function without arguments, or a model.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="SHAPE",
            help="An input of the forward, one option for each: " + _FORM + ". Without a type float32, from a normal "
            "distribution; integers from 0 to BELOW - 1, by default 0 and 1.",
            show_default="none",
        ),
    ] = None,
    only_eval: Annotated[
        bool, typer.Option("--eval", help="List only places that drop in evaluation mode; exit code 1 if any does.")
    ] = False,
) -> int:
    """List every place of a model that draws dropout."""
    given = [_parsed(text) for text in inputs or ()]
    names = [each.name for each in given if each.name]
    if len(set(names)) < len(names):
        raise ArgumentError(f"--input: each name is given once, got {', '.join(names)}.")
    import torch

    from dropkit.sites import Sites

    generator = torch.Generator().manual_seed(0)
    values = [(each.name, each.drawn(generator)) for each in given]
    network = _built(model)
    found = _found(network, values)
    in_eval = Sites(site for site in found if site.in_eval)
    if only_eval and found and not in_eval:
        print(f"none of {len(found)} drops in evaluation mode")
    else:
        print(in_eval if only_eval else found)
    if in_eval:
        print(f"\n{_warning(in_eval, len(found))}")
    return int(only_eval and bool(in_eval))


class _Input(NamedTuple):
    """An input that the user asks for."""

    name: str | None
    shape: tuple[int, ...]
    dtype: Any
    below: int

    def drawn(self, generator: Any) -> "Tensor":
        """Draw its values."""
        import torch

        if self.dtype.is_floating_point or self.dtype.is_complex:
            return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(self.dtype)
        return torch.randint(self.below, self.shape, generator=generator).to(self.dtype)


def _parsed(text: str) -> _Input:
    import torch

    match = _INPUT.fullmatch(text)
    if match is None:
        raise ArgumentError(f"--input must be {_FORM}, got {text!r}.")
    shape = () if match["shape"] == "scalar" else tuple(map(int, match["shape"].split("x")))
    if math.prod(shape) > _MOST:
        raise ArgumentError(f"--input {text}: a tensor of at most 2**32 elements, got {math.prod(shape)}.")
    kind = match["dtype"] or "float32"
    if kind not in (*_NUMBERS, *_INTEGERS):
        near = get_close_matches(kind, (*_NUMBERS, *_INTEGERS), n=3)
        advice = f"Did you mean {' or '.join(near)}?" if near else f"Types are {', '.join((*_NUMBERS, *_INTEGERS))}."
        raise ArgumentError(f"--input {text}: no type {kind!r} is known. {advice}")
    if match["below"] and kind in _NUMBERS:
        raise ArgumentError(f"--input {text}: only integers have a bound, and {kind} are none.")
    below, most = int(match["below"] or 2), _INTEGERS.get(kind, 2)
    if not 1 <= below <= most:
        raise ArgumentError(f"--input {text}: BELOW must be in [1, {most}] for {kind}, got {below}.")
    return _Input(match["name"], shape, getattr(torch, kind), below)


def _built(path: str) -> "Module":
    """Return the model that a factory makes."""
    module, colon, name = path.partition(":")
    if not (colon and module and name):
        raise ArgumentError(f"MODEL must be package.module:factory, got {path!r}.")
    found: Any = _imported(module)
    for part in name.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, dir(found), n=3)
            advice = f"Did you mean {' or '.join(near)}?" if near else ""
            raise ArgumentError(f"{module} has no {name!r}. {advice}")
        found = getattr(found, part)
    from torch.nn import Module

    if not isinstance(found, Module) and callable(found):
        needed = _needed(found)
        if needed:
            remedy = "Give a function that makes the model without arguments."
            raise ArgumentError(f"{path} needs arguments: {', '.join(needed)}. {remedy}")
        found = _called(f"{path}()", "", found)
    if not isinstance(found, Module):
        raise ArgumentError(f"{path} must make a torch.nn.Module, got {type(found).__name__}.")
    return found


def _needed(function: Any) -> list[str]:
    """Return the arguments that a function cannot be called without."""
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have none to read
        return []
    optional = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [each.name for each in parameters if each.default is each.empty and each.kind not in optional]


def _imported(module: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise RunError(_told(f"Importing {module}", error, "")) from error
        remedy = "Run this in the directory that has it, or install it."
        raise ArgumentError(f"There is no module {error.name!r}. {remedy}") from None
    except (Exception, SystemExit) as error:
        raise RunError(_told(f"Importing {module}", error, "")) from error


def _found(network: "Module", values: Iterable[tuple[str | None, "Tensor"]]) -> "list[Site]":
    from dropkit.sites import find

    args = [value for name, value in values if name is None]
    kwargs = {name: value for name, value in values if name is not None}
    shapes = [f"{name + '=' if name else ''}{tuple(value.shape)} of {value.dtype}" for name, value in values]
    remedy = f"It was given {', '.join(shapes) or 'no input'}: --input says what it takes."
    return _called("The model's forward", remedy, find, network, *args, **kwargs)


def _called(what: str, remedy: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call code of the user's, whose exceptions become one line."""
    try:
        return function(*args, **kwargs)
    except DropkitError:
        raise
    except (Exception, SystemExit) as error:
        raise RunError(_told(what, error, remedy)) from error


def _told(what: str, error: BaseException, remedy: str) -> str:
    """Say in one line what code of the user's has raised, and where."""
    import torch

    libraries = tuple(f"{Path(str(file)).parent}{sep}" for file in (torch.__file__, dropkit.__file__))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_file()]
    own = [frame for frame in frames if not frame.filename.startswith((*libraries, _STANDARD))]
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    text = " ".join(str(error).split())
    end = "" if text.endswith((".", "!", "?")) else "."
    return f"{what} raised {type(error).__name__}{place}{': ' + text if text else ''}{end} {remedy}".strip()


def _warning(sites: "list[Site]", count: int) -> str:
    names = ", ".join(f"{site.name} ({Path(site.file).name}:{site.line})" for site in sites)
    verb = "drops" if len(sites) == 1 else "drop"
    return f"{len(sites)} of {count} {verb} in evaluation mode too: {names}. Predictions are random then."
