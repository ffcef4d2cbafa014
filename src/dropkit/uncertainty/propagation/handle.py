"""What a model's code holds of a random tensor."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._pytree import tree_leaves, tree_map

from dropkit.uncertainty.propagation.variables import Variable

__all__ = ["Handle", "Owner", "can_be_handled", "handles_among", "without_handles"]


class Owner(Protocol):
    """The pass that a handle belongs to."""

    def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any], handles: list["Handle"]
    ) -> Any:
        """Run a function of tensors of which none is random."""

    def refuse_below(self, name: str) -> Exception:
        """Return the error about an operation that met a random tensor where no rule can answer."""


class Handle(Tensor):
    """A tensor with a variable beside it, and no values of its own: nothing can compute with it unseen.

    Python functions of PyTorch are answered by the pass, which looks at the variable. What reaches a handle below them,
    as compiled programs and transforms do, is answered with the variable's mean if that is all there is to it, and is
    an error if it is random.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # the pass answers

    variable: Variable
    owner: Owner
    memory: list[int]  # how often the values that it shares with its views were overwritten
    seen: int

    @staticmethod
    def of(
        variable: Variable, owner: Owner, dtype: torch.dtype | None = None, memory: list[int] | None = None
    ) -> "Handle":
        """Return a new handle, of the type that the tensor has in the model, if that is not the variable's."""
        mean = variable.mean
        made = Tensor._make_wrapper_subclass(
            Handle, mean.shape, strides=mean.stride(), dtype=dtype or mean.dtype, device=mean.device
        )
        made.variable, made.owner, made.memory = variable, owner, [0] if memory is None else memory
        made.seen = made.memory[0]
        return made

    @property
    def is_current(self) -> bool:
        """Whether it has not been overwritten through another view."""
        return self.seen == self.memory[0]

    def overwrite(self, variable: Variable) -> "Handle":
        """Become another random tensor, as a function does that works in place."""
        self.variable = variable
        self.memory[0] += 1
        self.seen = self.memory[0]
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # annotated there as a static function
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer an operation that no Python function of PyTorch has called."""
        handles = handles_among(args, kwargs)
        for handle in handles:
            if handle.variable.is_random or not handle.is_current:
                raise handle.owner.refuse_below(str(function))
        with torch._C.DisableTorchFunction():
            return handles[0].owner.run(function, args, kwargs or {}, handles)


def handles_among(*values: Any) -> list[Handle]:
    """Return the handles in some arguments."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Handle)]


def without_handles(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    handles: list[Handle],
    wrap: Callable[[Any], Any],
) -> Any:
    """Run a function of tensors of which none is random; what it returns that is no argument is wrapped."""
    means = {id(handle.variable.mean): handle for handle in handles}
    given, named = tree_map(lambda leaf: leaf.variable.mean if isinstance(leaf, Handle) else leaf, (args, dict(kwargs)))
    result = function(*given, **named)
    return tree_map(lambda leaf: means[id(leaf)] if id(leaf) in means else wrap(leaf), result)


def can_be_handled(value: Any) -> bool:
    """Return whether a value is a tensor that a handle can stand for."""
    return (
        isinstance(value, Tensor)
        and not isinstance(value, Handle)
        and value.dim() > 0
        and value.layout is torch.strided
        and not (value.is_nested or value.is_quantized or is_functorch_wrapped_tensor(value))
    )
