"""Many small regression networks as one: a layer of all of them is one batched product.

A network has one hidden layer of rectified units, and dropout of one rate before both of its layers. What chance
decides for it, where it begins, its batches and its masks, follows from its own seed: so it trains as it would alone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dropkit.functional import activation_dropout, dropout
from dropkit.random import call_key

__all__ = ["Networks", "Scores", "score"]

BATCH, LEARNING_RATE, UNITS = 128, 1e-3, 50
_PLACES = "input", "hidden"
_EPOCHS_DRAWN = 50  # at once: draws cost little each, beginning to draw costs more
_UNITS_AT_ONCE = 2**19  # while sampling: what a processor's cache holds


class Networks:
    """Networks that train and sample together.

    Args:
        inputs: The number of inputs.
        rates: Float64 tensor of shape (networks,): each network's rate.
        decay: Tensor of shape (networks,): each network's coefficient of the squared weights in its loss.
        seeds: A seed for each network. Those of one seed begin with the same weights, see the same batches, and share
            masks: what a lower rate drops, a higher one drops too. So they differ by their rates alone.
        units: The number of hidden units.
        dtype: The type of weights.
    """

    def __init__(
        self,
        inputs: int,
        rates: Tensor,
        decay: Tensor,
        seeds: list[int],
        units: int = UNITS,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.rates, self.seeds = rates, seeds
        self.decay = decay.to(dtype)[:, None, None]
        drawn = {seed: torch.Generator().manual_seed(seed) for seed in set(seeds)}
        first = {seed: _glorot(inputs, units, generator) for seed, generator in drawn.items()}
        last = {seed: _glorot(units, 1, generator) for seed, generator in drawn.items()}
        zeros = torch.zeros(len(seeds), 1, units), torch.zeros(len(seeds), 1, 1)
        values = (
            torch.stack([first[seed] for seed in seeds]),
            zeros[0],
            torch.stack([last[seed] for seed in seeds]),
            zeros[1],
        )
        self.weights = [value.to(dtype).requires_grad_() for value in values]

    def predict(self, x: Tensor, keys: list[Tensor] | None = None, stream: int = 0) -> Tensor:
        """Return outputs of shape (networks, rows), of inputs of shape (networks, rows, inputs).

        Args:
            x: The inputs.
            keys: Keys of the masks of inputs and hidden units; without them nothing is dropped.
            stream: Which masks to draw with the keys.
        """
        first, first_bias, last, last_bias = self.weights
        if keys is None:
            hidden = torch.baddbmm(first_bias, x, first).relu()
        else:
            dropped = dropout(x, self.rates, key=keys[0], stream=stream)
            before = torch.baddbmm(first_bias, dropped, first)
            hidden = activation_dropout(before, "relu", self.rates, key=keys[1], stream=stream)
        return torch.baddbmm(last_bias, hidden, last).squeeze(2)

    def train(self, x: Tensor, y: Tensor, epochs: int) -> None:
        """Train on all rows, by Adam on the mean of squared errors of batches.

        Args:
            x: Inputs of shape (networks, rows, inputs).
            y: Targets of shape (networks, rows).
            epochs: How often every row is seen.
        """
        optimizer = torch.optim.Adam(self.weights, lr=LEARNING_RATE, fused=True)
        keys, step = self.keys("train"), 0
        rows = x.size(1)
        table, targets = x.flatten(0, 1), y.flatten()
        first = torch.arange(len(x))[:, None] * rows  # of each network, in that table
        for order in self._orders(rows, epochs):
            for batch in (order + first).split(BATCH, dim=1):
                found = self.predict(table[batch.flatten()].view(*batch.shape, -1), keys, step)
                # A network's gradient is its own, so that of the sum over networks is each one's of its mean.
                loss = (found - targets[batch]).square().mean(1).sum()
                optimizer.zero_grad()
                loss.backward()
                self._decay()
                optimizer.step()
                step += 1

    def keys(self, of: str) -> list[Tensor]:
        """Return every network's key for each place of dropout, in training or in sampling."""
        return [
            torch.from_numpy(np.array([call_key(seed, f"{of}.{place}", 0) for seed in self.seeds], np.uint64)).view(
                torch.int64
            )
            for place in _PLACES
        ]

    @torch.no_grad()
    def _decay(self) -> None:
        """Add the gradient of the squared weights; biases have no part in them."""
        for weight in self.weights[::2]:
            weight.grad.addcmul_(self.decay, weight, value=2.0)

    def _orders(self, rows: int, epochs: int) -> Iterator[Tensor]:
        """Return the rows of each network as an epoch meets them."""
        drawn = {seed: np.random.default_rng(seed) for seed in dict.fromkeys(self.seeds)}
        place = {seed: number for number, seed in enumerate(drawn)}
        which = [place[seed] for seed in self.seeds]
        for begin in range(0, epochs, _EPOCHS_DRAWN):
            plain = np.broadcast_to(np.arange(rows), (min(_EPOCHS_DRAWN, epochs - begin), rows))
            orders = [torch.from_numpy(generator.permuted(plain, axis=1)) for generator in drawn.values()]
            for order in torch.stack(orders, 1):
                yield order[which]


@dataclass(frozen=True)
class Scores:
    """How well networks predict, in the targets' own units; each tensor has an entry a network.

    Attributes:
        rmse: Root mean squared error of the mean of samples.
        likelihood: Mean log-likelihood of shape (precisions, networks).
        weight_scaled_rmse: Root mean squared error of one pass without dropout.
    """

    rmse: Tensor
    likelihood: Tensor
    weight_scaled_rmse: Tensor


@torch.inference_mode()
def score(
    networks: Networks, x: Tensor, y: Tensor, center: Tensor, scale: Tensor, precisions: Tensor, passes: int
) -> Scores:
    """Score networks by passes with dropout, of which no more are kept than are drawn at once.

    Args:
        networks: The networks.
        x: Inputs of shape (networks, rows, inputs).
        y: Targets of shape (networks, rows), in their own units.
        center: What to add to outputs for those units, of shape (networks,).
        scale: What to multiply them by before, of shape (networks,).
        precisions: The observation's precision in those units, of shape (networks,) or (precisions, networks).
        passes: How many masks to draw.
    """
    y, center, scale = y.double(), center.double()[:, None], scale.double()[:, None]
    halves = precisions.double()[..., None, None] / 2
    keys, (count, rows) = networks.keys("sample"), y.shape
    at_once = max(1, min(passes, _UNITS_AT_ONCE // (count * rows * networks.weights[0].size(2))))
    repeated = x.repeat(1, at_once, 1)
    total, evidence = torch.zeros_like(y), torch.full((*precisions.shape, rows), -math.inf, dtype=torch.float64)
    for number, begin in enumerate(range(0, passes, at_once)):
        here = repeated[:, : min(at_once, passes - begin) * rows]
        outputs = networks.predict(here, keys, number + 1).double().view(count, -1, rows)
        outputs = outputs * scale[:, None] + center[:, None]
        total += outputs.sum(1)
        of_each = -halves * (outputs - y[:, None]).square()
        evidence = torch.logaddexp(evidence, of_each.logsumexp(-2))
    constant = (halves[..., 0] / math.pi).log() / 2 - math.log(passes)
    return Scores(
        rmse=(total / passes - y).square().mean(1).sqrt(),
        likelihood=(evidence + constant).mean(-1),
        weight_scaled_rmse=(networks.predict(x).double() * scale + center - y).square().mean(1).sqrt(),
    )


def _glorot(inputs: int, outputs: int, generator: torch.Generator) -> Tensor:
    """Draw weights uniformly, within the bound of Glorot and Bengio (2010), equation 16."""
    bound = math.sqrt(6 / (inputs + outputs))
    return (torch.rand(inputs, outputs, generator=generator, dtype=torch.float64) * 2 - 1) * bound
