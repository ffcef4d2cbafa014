"""Entering and leaving function modes in another order than that of a stack."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

__all__ = ["enter_in_turn", "is_entered", "leave", "replaced_modes"]


def is_entered(mode: TorchFunctionMode) -> bool:
    """Tell whether a mode is entered in this thread."""
    return any(other is mode for other in _get_current_function_mode_stack())


def enter_in_turn(mode: TorchFunctionMode, turn: int) -> None:
    """Enter a mode beneath whatever is to be asked before it, such as what is attached to a whole, of this a part."""
    stack = _get_current_function_mode_stack()
    earlier = (number for number, other in enumerate(stack) if getattr(other, "turn", turn) < turn)
    above = [_pop_mode() for _ in stack[next(earlier, len(stack)) :]]
    mode.__enter__()
    for other in reversed(above):
        _push_mode(other)


def leave(mode: TorchFunctionMode) -> None:
    """Leave a mode, wherever it is among those that are entered."""
    above = []
    while is_entered(mode):
        above.append(_pop_mode())
    for other in reversed(above):
        if other is not mode:
            _push_mode(other)


@contextmanager
def replaced_modes(
    is_replaced: Callable[[TorchFunctionMode], bool], modes: Iterable[TorchFunctionMode]
) -> Iterator[None]:
    """Let other modes be entered, meanwhile, above those that stay; then the same as before, in the same order."""
    before = _get_current_function_mode_stack()
    _set_stack([*(mode for mode in before if not is_replaced(mode)), *modes])
    try:
        yield
    finally:
        _set_stack(before)


def _set_stack(modes: Iterable[TorchFunctionMode]) -> None:
    while torch._C._len_torch_function_stack():
        _pop_mode()
    for mode in modes:
        _push_mode(mode)
