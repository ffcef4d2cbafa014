"""Entering and leaving function modes in another order than that of a stack."""

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

__all__ = ["enter_in_turn", "leave"]


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
    while mode in _get_current_function_mode_stack():
        above.append(_pop_mode())
    for other in reversed(above):
        if other is not mode:
            _push_mode(other)
