"""PyTorch's recurrent networks layer by layer on its own kernels, with dropkit's dropout between the layers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dropkit._checks import argument_error
from dropkit.functional import dropout as drop
from dropkit.functional.inputs import check_mask
from dropkit.functional.noise import Noise, find_noise
from dropkit.functional.overrides import overridable

__all__ = ["NETWORKS"]

_RAGGED = 2**32  # what time counts as, so that a mask does not depend on the length of a batch's longest sequence


class _Batch(NamedTuple):
    """How the sequences of a batch lie: packed, or side by side."""

    sizes: Tensor | None
    batch_first: bool
    order: Tensor | None

    def lengths(self, x: Tensor) -> tuple[int, int]:
        """Return the numbers of examples and steps."""
        if self.sizes is not None:
            return int(self.sizes[0]), len(self.sizes)
        return (x.size(0), x.size(1)) if self.batch_first else (x.size(1), x.size(0))

    def laid(self, mask: Tensor) -> Tensor:
        """Return a mask of (examples, steps, units) as the sequences lie."""
        if self.sizes is None:
            return mask if self.batch_first else mask.transpose(0, 1)
        if self.order is not None and len(mask) > 1:
            mask = mask.index_select(0, self.order)
        steps, batch = len(self.sizes), int(self.sizes[0])
        active = torch.arange(batch) < self.sizes.unsqueeze(1)
        return mask.transpose(0, 1).expand(steps, batch, -1)[active.to(mask.device)]


class _Between:
    """Dropout between the layers of one call, whose masks are the fields of one key."""

    def __init__(self, p: float, batch: _Batch, key: Any, masks: Sequence[Tensor] | None, is_returned: bool) -> None:
        self.p, self.batch, self.key, self.masks, self.is_returned = p, batch, key, masks, is_returned
        self.kept: list[Tensor] = []
        self._noise: tuple[Tensor, Noise] | None = None

    def drop(self, x: Tensor, number: int) -> Tensor:
        """Drop out what a layer hands to the next."""
        if self.key is None and self.masks is None and not self.is_returned:
            return drop(x, self.p)
        shape = (*self.batch.lengths(x), x.size(-1))
        mask = self._drawn(x, shape, number) if self.masks is None else self._given(x, shape, number)
        if self.is_returned:
            self.kept.append(mask)
        return drop(x, self.p, mask=self.batch.laid(mask))

    def _given(self, x: Tensor, shape: tuple[int, ...], number: int) -> Tensor:
        mask: Any = self.masks[number]  # type: ignore[index]  # only called where there are masks
        check_mask("recurrent network", mask, x.new_empty(()).expand(shape), {}, {}, f"mask[{number}]")
        return mask

    def _drawn(self, x: Tensor, shape: tuple[int, ...], number: int) -> Tensor:
        if self._noise is None:
            self._noise = find_noise("recurrent network", x.new_empty(()).expand(shape), self.p, self.key, None)
        threshold, noise = self._noise
        return noise.field(number).keep_mask(shape, threshold, full_shape=(shape[0], _RAGGED, shape[2]))


def _layer_by_layer(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Return one of PyTorch's networks as a function that knows where its noise comes from."""

    @overridable
    def network(
        input: Tensor,
        hx: Any,
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool = False,
        batch_sizes: Tensor | None = None,
        *,
        order: Tensor | None = None,
        key: int | Tensor | None = None,
        mask: Sequence[Tensor] | None = None,
        return_mask: bool = False,
    ) -> Any:
        """Run the network, in training with dropout between its layers.

        The masks are (batch, steps, units), the same for packed and for padded sequences of one batch. That after layer
        d is field d of the key.

        Args:
            input: Padded sequences, or the values of packed ones.
            hx: Initial states: one tensor, or for an LSTM a pair.
            params: Parameters by layer and direction.
            has_biases: Whether biases are among them.
            num_layers: Number of layers.
            dropout: Probability of dropping.
            train: Whether to drop.
            bidirectional: Whether a second set of cells runs backwards.
            batch_first: Whether padded sequences are (batch, steps, features). Default: False.
            batch_sizes: Number of sequences at each step, where they are packed. Default: they are not.
            order: Which example of the batch each packed sequence is. Default: they are in order.
            key: The key of the call, or one an example. Default: drawn.
            mask: A mask for the output of every layer but the last, to use instead. Default: drawn.
            return_mask: Whether to return ``(result, masks)``. Default: False.
        """
        if mask is not None and len(mask) != num_layers - 1:
            rule = f"{num_layers - 1} masks, one for the output of every layer but the last"
            raise argument_error("recurrent network", "mask", rule, len(mask))
        between = _Between(dropout, _Batch(batch_sizes, batch_first, order), key, mask, return_mask)
        directions = 2 if bidirectional else 1
        own = len(params) // num_layers  # parameters of a layer
        x, last = input, []
        for layer in range(num_layers):
            first = slice(layer * directions, (layer + 1) * directions)
            states = hx[first] if isinstance(hx, Tensor) else [state[first] for state in hx]
            weights = params[layer * own : (layer + 1) * own]
            flags = has_biases, 1, 0.0, train, bidirectional
            if batch_sizes is None:
                x, *final = stock(x, states, weights, *flags, batch_first)
            else:
                x, *final = stock(x, batch_sizes, states, weights, *flags)
            last.append(final)
            if train and layer < num_layers - 1:
                x = between.drop(x, layer)
        result = (x, *(torch.cat(states) for states in zip(*last, strict=True)))
        return (result, tuple(between.kept)) if return_mask else result

    network.__name__ = network.__qualname__ = stock.__name__
    return network


NETWORKS = {kind: _layer_by_layer(getattr(torch, kind)) for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")}
"""PyTorch's recurrent networks by name, each with a source for the masks between its layers."""
