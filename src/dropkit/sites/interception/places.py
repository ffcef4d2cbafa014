"""Where noise is drawn: runs of modules' forwards, and places in them."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Frame", "Place", "Shield"]


class Shield(TorchDispatchMode):
    """Keeps what runs from being compiled: torch.compile leaves alone what a dispatch mode looks at."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let an operator run."""
        return func(*args, **(kwargs or {}))


@dataclass
class Frame:
    """A run of a module's forward that has not ended.

    Args:
        module: The module.
        name: Its name in the model.
        run: How many times it ran before in the outermost forward.
        order: If its input is a packed sequence, which example of the batch each sequence is.
        functions: How many dropout functions it has called.
        randoms: How many random operators it has called.
        shield: What keeps the run from being compiled, if anything has to.
    """

    module: Module
    name: str
    run: int
    order: Tensor | None = None
    functions: int = 0
    randoms: int = 0
    shield: Shield | None = None


@dataclass(frozen=True)
class Place:
    """Where in a model, and in which run, noise is drawn.

    Args:
        name: Name of the site, as the mask definition spells it: that of a dropout layer, or that of any other module
            followed by ``#k``, the number of the call in one run of its forward, or by ``~j``, that of the random
            operator.
        frame: The innermost run of a registered module's forward.
        run: How many times that module ran before, since runs were last counted anew.
    """

    name: str
    frame: Frame
    run: int

    @property
    def module(self) -> Module:
        """The innermost registered module whose forward is running."""
        return self.frame.module

    @property
    def path(self) -> str:
        """Its name in the model."""
        return self.frame.name

    @property
    def order(self) -> Tensor | None:
        """If its input is a packed sequence, which example of the batch each sequence is; None if in order."""
        return self.frame.order
