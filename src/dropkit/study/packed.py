"""Training: models of one shape train together as one batched model.

Each has its own data split, first weights, dropout rate, masks and weight decay. No model sees another: the loss is the
sum of their losses, Adam works element by element, and every mask is addressed by the model's own key. So a model that
diverges leaves the others alone, and which models share a pack changes results only within float tolerance.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit.functional import dropout
from dropkit.random import call_key, uniform32
from dropkit.study.budgets import Budget
from dropkit.study.dataset import Dataset
from dropkit.study.methods import Recipe
from dropkit.study.network import initial_parameters, logits, row_scores
from dropkit.study.records import Curves, curves
from dropkit.study.splits import Split

__all__ = ["Model", "Training", "dropout_key", "shuffled", "train"]


@dataclass(frozen=True)
class Model:
    """One model of a pack: the key of its seed, and how it is trained."""

    key: int
    recipe: Recipe


@dataclass(frozen=True, eq=False)
class Training:
    """What training gave for one model; the parameters are those at the early-stopping epoch."""

    curves: Curves
    diverged_at: int | None
    parameters: list[npt.NDArray[np.float32]]


def dropout_key(key: int, layer: int, step: int) -> int:
    """Return the key of the mask after hidden layer `layer` at training step `step`, for the seed of key `key`."""
    return call_key(key, f"hidden {layer}", step)


def shuffled(key: int, rows: npt.NDArray[np.int64], epoch: int) -> npt.NDArray[np.int64]:
    """Return the training rows in the order of one epoch, the same for all methods of a seed."""
    return rows[np.argsort(uniform32(call_key(key, "shuffle", epoch), (len(rows),)), kind="stable")]


def train(
    models: Sequence[Model],
    data: Dataset,
    splits: Mapping[int, Split],
    budget: Budget,
    on_epoch: Callable[[], None] = lambda: None,
) -> list[Training]:
    """Train a pack to the last epoch of the budget.

    Args:
        models: The members of the pack.
        data: The rows.
        splits: From the key of a seed to its split.
        budget: Network, epochs, batch size and learning rate.
        on_epoch: Called after every epoch.

    Returns:
        One training a model, in order.
    """
    pack = _Pack(models, data, splits, budget)
    for epoch in range(budget.epochs):
        pack.train_epoch(epoch)
        pack.score(epoch)
        on_epoch()
    return pack.results()


class _Pack:
    def __init__(self, models: Sequence[Model], data: Dataset, splits: Mapping[int, Split], budget: Budget) -> None:
        self.models, self.budget = models, budget
        self.splits = {model.key: splits[model.key] for model in models}
        self._prepare(data)
        self.used = np.unique(np.concatenate([np.concatenate(_parts(split)) for split in self.splits.values()]))
        self.scored = [part[self.used] for part in (self.inputs if data.schema else self.inputs[:1])]
        widths = (data.columns, *budget.hidden, data.outputs)
        self.parameters = [p.requires_grad_() for p in initial_parameters([model.key for model in models], widths)]
        self.best = [parameter.detach().clone() for parameter in self.parameters]
        self.best_loss = torch.full((len(models),), torch.inf, dtype=torch.float64)
        self.optimizer = torch.optim.Adam(self.parameters, lr=budget.learning_rate, fused=True)
        self.rates = torch.tensor([model.recipe.dropout for model in models], dtype=torch.float64)
        decay = torch.tensor([model.recipe.weight_decay for model in models])
        self.shrink = (1 - budget.learning_rate * decay)[:, None, None] if decay.any() else None
        self.step = 0
        self.history: list[Tensor] = []

    def _prepare(self, data: Dataset) -> None:
        """Keep the rows as each seed's training rows prepare them: one copy a seed, or one in all without a schema."""
        prepared = [data.prepared(split.train) for split in self.splits.values()]
        place = {key: number for number, key in enumerate(self.splits)}
        self.seats = torch.tensor([place[model.key] for model in self.models])
        if data.schema:
            self.inputs = torch.from_numpy(np.stack([part.inputs for part in prepared]))
        else:
            self.inputs = torch.from_numpy(prepared[0].inputs).expand(len(prepared), -1, -1)
        self.targets = torch.from_numpy(np.stack([part.targets for part in prepared]))

    def train_epoch(self, epoch: int) -> None:
        orders = {key: shuffled(key, split.train, epoch) for key, split in self.splits.items()}
        order = torch.from_numpy(np.stack([orders[model.key] for model in self.models]))
        for rows in order.split(self.budget.batch_size, dim=1):
            self._train_step(rows)

    def _train_step(self, rows: Tensor) -> None:
        seats = self.seats[:, None]
        found = logits(self.parameters, self.inputs[seats, rows], self._drop if self.rates.any() else None)
        losses = F.cross_entropy(found.flatten(0, 1), self.targets[seats, rows].flatten(), reduction="none")
        self.optimizer.zero_grad()
        losses.view(rows.shape).mean(1).sum().backward()
        if self.shrink is not None:
            with torch.no_grad():
                for weight in self.parameters[::2]:
                    weight.mul_(self.shrink)
        self.optimizer.step()
        self.step += 1

    def _drop(self, hidden: Tensor, layer: int) -> Tensor:
        drawn = {key: dropout_key(key, layer, self.step) for key in self.splits}
        keys = np.array([drawn[model.key] for model in self.models], np.uint64).view(np.int64)
        return dropout(hidden, self.rates, key=torch.from_numpy(keys))

    def score(self, epoch: int) -> None:
        """Score every model on its own rows, and keep the parameters where the inner rows like them best so far."""
        inputs = [self.scored[seat % len(self.scored)] for seat in self.seats]
        targets = [self.targets[seat, self.used] for seat in self.seats]
        losses, correct = row_scores(self.parameters, inputs, targets)
        columns = []
        for model, loss, right in zip(self.models, losses, correct, strict=True):
            train, inner, validation = (np.searchsorted(self.used, part) for part in _parts(self.splits[model.key]))
            columns.append([loss[train].mean(), loss[inner].mean(), loss[validation].mean(), right[validation].mean()])
        found = torch.tensor(columns, dtype=torch.float64)
        self.history.append(found)
        better = found[:, 1] < self.best_loss
        self.best_loss = torch.where(better, found[:, 1], self.best_loss)
        for best, parameter in zip(self.best, self.parameters, strict=True):
            best[better] = parameter.detach()[better]

    def results(self) -> list[Training]:
        trainings = []
        for index, history in enumerate(torch.stack(self.history, dim=1)):
            broken = (~history.isfinite().all(1)).nonzero()
            diverged_at = int(broken[0]) + 1 if len(broken) else None
            whole = history[: diverged_at - 1] if diverged_at else history
            names = ("training_loss", "inner_loss", "validation_loss", "accuracy")
            found = curves(**{name: whole[:, column].tolist() for column, name in enumerate(names)})
            trainings.append(Training(found, diverged_at, [best[index].numpy() for best in self.best]))
        return trainings


def _parts(split: Split) -> tuple[npt.NDArray[np.int64], ...]:
    return split.train, split.inner, split.validation
