"""Code of a model that runs outside of its forward, where nothing is seen: methods, and bodies that run later."""

import sys
from collections.abc import Mapping
from dis import get_instructions
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from torch.nn import Module

from dropkit.errors import UnsupportedError
from dropkit.sites.calls.functions import FUNCTIONS
from dropkit.sites.interception.telling import warn

__all__ = ["check_forward", "warn_of_methods"]

_MODULE_FILE = Module.__call__.__code__.co_filename


def check_forward(module: Module) -> None:
    """Raise if a module that is called from outside has a forward whose body runs only after it has returned."""
    name, forward = type(module).__name__, module.forward
    if isgeneratorfunction(forward) or isasyncgenfunction(forward):
        raise UnsupportedError(
            f"dropkit.sites: the forward of {name} is a generator function, whose body runs after the forward has "
            "returned, where its dropout is not seen. Make it a part of a module whose forward takes all that it "
            "yields."
        )
    if iscoroutinefunction(forward):
        raise UnsupportedError(
            f"dropkit.sites: the forward of {name} is a coroutine function, whose body runs after the forward has "
            "returned, where its dropout is not seen. Have it await what it waits for before it calls a module whose "
            "forward is a plain function."
        )


def warn_of_methods(names: Mapping[int, str], module: Module) -> None:
    """Warn if a method of a model that is called from outside, and not by its forward, draws dropout itself.

    That a method runs shows by the modules that it calls; and that it draws, by the functions that its code names.

    Args:
        names: Names of the model's modules, by their ids.
        module: The module that is called now.
    """
    method = ""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if id(owner) in names:
            if code.co_filename == _MODULE_FILE and owner is not module:
                return  # a forward of the model runs, which somebody else sees
            if code.co_filename != _MODULE_FILE and not method and _draws(code, frame.f_globals):
                method = f"{type(owner).__name__}.{code.co_name}"
        frame = frame.f_back
    if method:
        remedy = "Call it in the forward of a small module that has the model as a part."
        warn(
            f"dropkit.sites: {method} calls dropout itself, and runs outside of the forward of any module, where only "
            f"the dropout of layers is seen. {remedy}"
        )


def _draws(code: CodeType, scope: Mapping[str, Any]) -> bool:
    """Tell whether code names a function that draws dropout: a global, or what a global module has by that name."""
    found: Any = None
    for instruction in get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            found = scope.get(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(found, ModuleType):
            found = getattr(found, instruction.argval, None)
        else:
            found = None
        if isinstance(found, FunctionType | BuiltinFunctionType) and found in FUNCTIONS:
            return True
    return False
