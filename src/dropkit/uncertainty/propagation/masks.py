"""Masks that a model draws by hand, followed through a pass to where they drop from a tensor."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Identity
from torch.utils._pytree import tree_leaves, tree_map

from dropkit.sites.handwritten.applications import Application, Mask
from dropkit.sites.handwritten.draws import MASKING, Draw
from dropkit.sites.handwritten.masks import Masks
from dropkit.sites.handwritten.operations import Rule, find_rule
from dropkit.sites.handwritten.tags import Count, Random
from dropkit.sites.interception.interceptor import Handler
from dropkit.sites.interception.places import Frame, Place
from dropkit.uncertainty.propagation.handle import Handle, handles_among
from dropkit.uncertainty.propagation.noise import Masking

__all__ = ["HandDrawn"]

_DROPPING = (Rule.MULTIPLY, Rule.FILL, Rule.CHOOSE, Rule.ASSIGN)
_LIKE = "_like"  # ends the names of operators that ask a tensor for its shape alone


class Dropping(Protocol):
    """The pass."""

    def masked(self, handle: Handle, mask: Masking, shared: tuple[int, ...], dtype: torch.dtype) -> Any:
        """Return a tensor with a mask."""

    def refuse_by_hand(self, why: str) -> Exception:
        """Return the error about a mask."""

    def refuse_noise(self) -> Exception:
        """Return the error about noise that is no mask, or a mask that does more than drop."""


class HandDrawn(Masks):
    """Follows masks that are drawn by hand: they are drawn indeed, but nothing depends on the values.

    What follows one of them to where it drops is what follows it in training; here a rule stands for the drop.

    Args:
        owner: The pass.
    """

    def __init__(self, owner: Dropping) -> None:
        super().__init__(Handler, self._drawn, self._dropped)  # type: ignore[arg-type]  # asked for places alone
        self._owner = owner
        self._sizes: dict[str, int] = {}  # of draws, by their names
        self._used: list[Mask] = []
        self._handles: dict[int, Handle] = {}  # in the call that runs, by what stands for them
        self._has_dropped = False

    def _place(self) -> Place:
        return Place(f"~{len(self._sizes)}", Frame(Identity(), "", 0), 0)

    def concern(self, function: Callable[..., Any], values: Any) -> bool:
        """Tell whether a call draws what may be a mask, or takes what was drawn."""
        if _is_in(function, MASKING):
            return True
        return bool(self._tags.data) and any(self._is_drawn(_values_of(leaf)) for leaf in tree_leaves(values))

    def _is_drawn(self, value: Any) -> bool:
        if not isinstance(value, Tensor):
            return False
        known = self._tags.get(value)
        return isinstance(self._tag_of(value) if known is None else known[1], Random | Count)

    def answer(self, function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Answer a call that draws, or takes what was drawn."""
        handles = handles_among(args, dict(named))
        rule = find_rule(function)
        is_random = any(handle.variable.is_random for handle in handles)
        name = MASKING.get(function, "") if _is_in(function, MASKING) else ""
        if is_random and not (rule in _DROPPING or rule is Rule.CAST or name.endswith(_LIKE)):
            raise self._owner.refuse_noise()
        stand_ins = {id(handle): _stand_in(handle) for handle in handles}
        self._handles = {id(stand_ins[id(handle)]): handle for handle in handles}
        self._has_dropped = False
        given, by_name = tree_map(lambda leaf: stand_ins.get(id(leaf), leaf), (args, dict(named)))
        for leaf in tree_leaves((given, by_name)):
            if isinstance(leaf, Tensor) and self._tags.get(leaf) is not None and self._tag_of(leaf) is None:
                raise self._owner.refuse_by_hand("that was overwritten in part")
        result = self.call(function, given, by_name)
        if self._has_dropped:
            return result
        leaves = tree_leaves(result)
        if (is_random and rule in _DROPPING) or not leaves or not all(map(self._is_drawn, leaves)):
            raise self._owner.refuse_noise()
        return tree_map(lambda leaf: self._handles.get(id(leaf), leaf), result)

    def _drawn(self, draw: Draw) -> Any:
        """Draw what may become a mask, without any generator."""
        if draw.values is None or not draw.has_address:
            raise self._owner.refuse_noise()
        result = draw.aside()
        self._sizes[draw.place.name] = result.numel()
        return result

    def _dropped(self, application: Application) -> Any:
        """Return a tensor with a mask."""
        mask, tensor, survivor = application.mask, application.tensor, application.survivor
        handle = self._handles.get(id(application.input))
        if handle is None:
            raise self._owner.refuse_by_hand("that drops from what is no example's, such as weights,")
        if application.p is None or mask.is_combined or not mask.is_zero or math.isnan(survivor):
            raise self._owner.refuse_by_hand("whose rate, or what it makes of a tensor, cannot be told")
        if any(mask is one for one in self._used):
            raise self._owner.refuse_by_hand("that drops from several tensors")
        operation = application.operation
        is_in_place = operation.target is not None
        if not _fits(application) or (is_in_place and operation.target is not application.input):
            raise self._owner.refuse_by_hand("whose shape is not that of the tensor")
        own = math.prod(
            length for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if length != 1 and stride
        )
        if own != self._sizes[application.place.name]:
            raise self._owner.refuse_by_hand("of which elements were taken or repeated")
        self._used.append(mask)
        self._has_dropped = True
        masking = Masking(application.p, survivor or 1.0)
        dtype = handle.dtype
        if operation.rule is Rule.MULTIPLY and not is_in_place:
            dtype = torch.promote_types(dtype, tensor.dtype)
        made = self._owner.masked(handle, masking, application.shared, dtype)
        if is_in_place and made is not handle:
            handle.overwrite(made.variable)
            made = handle
        return None if operation.rule is Rule.ASSIGN else made


def _fits(application: Application) -> bool:
    """Tell whether the tensor that a mask drops from keeps its shape."""
    shape, own = application.input.shape, application.tensor.shape
    if application.operation.rule is Rule.ASSIGN:
        return not isinstance(application.operation.args[1], tuple) and shape[: len(own)] == own
    try:
        return torch.broadcast_shapes(shape, own) == shape
    except RuntimeError:
        return False


def _values_of(leaf: Any) -> Any:
    """Return the values of what is not random; a random tensor has none."""
    if not isinstance(leaf, Handle):
        return leaf
    return None if leaf.variable.is_random else leaf.variable.mean


def _stand_in(handle: Handle) -> Tensor:
    """Return what stands for a tensor: its values, or those of no tensor if it is random."""
    if not handle.variable.is_random:
        return handle.variable.mean
    return torch.empty_strided(handle.shape, handle.stride(), dtype=handle.dtype, device=handle.device)


def _is_in(function: Callable[..., Any], table: Mapping[Callable[..., Any], Any]) -> bool:
    try:
        return function in table
    except TypeError:  # it has no hash
        return False
