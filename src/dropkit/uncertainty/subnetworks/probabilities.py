"""Outputs that are probabilities already, where logits are asked for: told by what returns them, and by their values.

Either may miss some: a softmax by hand is no function of its name, and values of few rows lie in [0, 1] by chance.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dropkit.errors import UnsupportedError
from dropkit.sites.interception.telling import warn
from dropkit.uncertainty.shares import Shares

__all__ = ["Origins", "Values", "refuse_probabilities"]

_SEVERAL = 8  # rows: the logits of so many hardly all lie in [0, 1]


class Origins(TorchFunctionMode):
    """Notes which tensors come from a softmax or a sigmoid, with nothing in between that changes numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._shares = Shares()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function."""
        made = self._shares.made(func, args, kwargs or {})
        found = func(*args, **(kwargs or {}))
        self._shares.add(made, found)
        return found

    def maker(self, value: Any) -> str:
        """Return what has made a tensor: ``"softmax"`` or ``"sigmoid"``; empty if neither."""
        return self._shares.maker(value)


class Values:
    """Whether all outputs so far could be probabilities.

    Args:
        output: What the model's output is said to be, as for `exact`.
        axis: Of the classes, counted from that of examples.
        like: What the model gives in evaluation mode.
    """

    def __init__(self, output: str, axis: int, like: Tensor) -> None:
        self._output, self._axis = output, axis
        self._classes = like.shape[axis] if output == "softmax" else 1
        self._rows = like.numel() // max(self._classes, 1)
        self._are_shares = output != "raw" and like.numel() > 0
        self._sum_to_one = output == "softmax"
        self.add(like[None])

    def add(self, outputs: Tensor) -> None:
        """Look at outputs of some subnetworks, of shape (subnetworks, examples, ...), in the type of the model's."""
        self._are_shares = self._are_shares and bool(((outputs >= 0) & (outputs <= 1)).all())
        if self._are_shares and self._sum_to_one:
            tolerance = 1e-2 if outputs.dtype.itemsize < 4 else 1e-5
            off = outputs.sum(self._axis + 1, dtype=torch.float64) - 1
            self._sum_to_one = bool((off.abs() < tolerance).all())

    def tell(self) -> None:
        """Refuse what are probabilities of classes, and warn of what looks like other probabilities."""
        if self._are_shares and self._sum_to_one:
            refuse_probabilities(self._output, "they are in [0, 1] and sum to 1 over the classes")
        if self._are_shares and self._rows >= _SEVERAL:
            warn(
                "exact: all outputs of all subnetworks lie in [0, 1], as probabilities do, and their "
                f"{self._output} is taken. If they are logits, all is well. Else {_remedy(self._output)}"
            )


def refuse_probabilities(output: str, reason: str) -> None:
    """Raise for a model whose outputs are probabilities."""
    remedy = _remedy(output)
    raise UnsupportedError(f"exact: the outputs are probabilities: {reason}. {remedy[0].upper()}{remedy[1:]}")


def _remedy(output: str) -> str:
    taken = f"for their {output} is taken"
    return f'let the model return logits, {taken}; or give output="raw", whose mean is that of the probabilities.'
