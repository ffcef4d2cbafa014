"""Training a user's network: one model at a time, on the splits, shuffles and batches that every model of a seed gets.

The generators are seeded anew at the start of every epoch, so a checkpoint needs none of their state and a resumed
model is the undisturbed one by construction.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dropkit.random import call_key, normal
from dropkit.study.augmentation import changed, drawn
from dropkit.study.budgets import Budget
from dropkit.study.checkpoint import Checkpoint
from dropkit.study.dataset import Dataset
from dropkit.study.metrics import measured, metrics_of
from dropkit.study.network import row_losses
from dropkit.study.own.factory import OwnNetwork, arranged, module_outputs
from dropkit.study.own.inputs import Inputs, split
from dropkit.study.own.loading import loaded
from dropkit.study.own.randomness import seeded
from dropkit.study.packed import TRAINING_ROWS_SCORED, Model, Training, noise_key, shuffled
from dropkit.study.preparation import Prepared
from dropkit.study.records import curves
from dropkit.study.splits import Split

__all__ = ["module_rows", "own_row_scores", "rows_at_once", "train_own"]

State = Sequence[npt.NDArray[Any]]

_ROWS_AT_ONCE = 1000  # in evaluation: a convolution's hidden layers of all rows may not fit into memory


def train_own(
    network: OwnNetwork,
    models: Sequence[Model],
    data: Dataset,
    splits: Mapping[int, Split],
    budget: Budget,
    on_epoch: Callable[[], None] = lambda: None,
    checkpoint: Checkpoint | None = None,
) -> list[Training]:
    """Train a user's networks as `dropkit.study.packed.train` trains the study's own.

    Args:
        network: What builds them.
        models: Key and recipe of each; a checkpoint serves one.
        data: The rows.
        splits: From the key of a seed to its split.
        budget: Epochs, batch size and learning rate.
        on_epoch: Called after every epoch.
        checkpoint: Where the model is kept after every epoch, and taken up again. Default: nowhere.

    Returns:
        One training a model, in order, with the tensors of its state as parameters.
    """
    trainings = []
    for model in models:
        run = _Run(network, model, data, splits[model.key], budget)
        kept = checkpoint.load() if checkpoint is not None else None
        if kept is not None:
            run.restore(kept)
        for epoch in range(budget.epochs):
            if epoch >= len(run.history) and not run.diverged:
                run.epoch(epoch)
                if checkpoint is not None and epoch + 1 < budget.epochs:
                    checkpoint.save(run.state())
            on_epoch()
        trainings.append(run.result())
    return trainings


class _Run:
    def __init__(self, network: OwnNetwork, model: Model, data: Dataset, split: Split, budget: Budget) -> None:
        self.model, self.recipe, self.data, self.split, self.budget = model, model.recipe, data, split, budget
        prepared = data.prepared(split.train)
        self.module = network.build(self.recipe.dropout, model.key)
        self.device = next(self.module.parameters()).device
        self.inputs, self.target_scale = torch.from_numpy(prepared.inputs), prepared.target_scale
        self.targets = torch.from_numpy(prepared.targets)
        self.trained = [tensor for tensor in self.module.parameters() if tensor.requires_grad]
        self.weights = [tensor for tensor in self.trained if tensor.ndim >= 2]
        self.optimizer = torch.optim.Adam(self.trained, lr=budget.learning_rate)
        parts = (split.train[:TRAINING_ROWS_SCORED], split.inner, split.validation)
        self.scored, self.scored_rows = torch.from_numpy(np.concatenate(parts)), [len(part) for part in parts]
        self.smoothing = torch.tensor([self.recipe.label_smoothing], device=self.device)
        self.best, self.best_loss = self._state(), math.inf
        self.step = 0
        self.history: list[Tensor] = []

    @property
    def diverged(self) -> bool:
        return bool(self.history) and not bool(self.history[-1][:3].isfinite().all())

    def _state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.module.state_dict().items()}

    def epoch(self, epoch: int) -> None:
        with seeded(call_key(self.model.key, "own network", epoch)):
            self._train(epoch)
            self._score()

    def _train(self, epoch: int) -> None:
        self.module.train()
        size = self.budget.batch_size
        order = torch.from_numpy(shuffled(self.model.key, self.split.train, epoch))
        batches = list(order.split(size))
        if len(batches[-1]) == 1 < min(size, len(order)):
            batches.pop()  # batch normalisation has no variance of one row
        for rows, inputs in zip(batches, self._inputs(batches, len(order), epoch), strict=True):
            self._step(rows, inputs)

    def _inputs(self, batches: Sequence[Tensor], count: int, epoch: int) -> Iterator[Inputs]:
        if self.data.load is not None:
            yield from loaded(self.data, batches, training=True, key=call_key(self.model.key, "own loading", epoch))
            return
        draws = drawn(self.model.key, self.recipe, count, epoch)
        for number, rows in enumerate(batches):
            start = number * self.budget.batch_size
            parts = {name: torch.from_numpy(values[start : start + len(rows)]) for name, values in draws.items()}
            yield arranged(self._batch(rows, parts), self.data.image_shape)

    def _step(self, rows: Tensor, inputs: Inputs) -> None:
        found = module_outputs(self.module, inputs, self.data.classes)
        losses = row_losses(found[None], self.targets[rows].to(self.device)[None], self.smoothing)
        self.optimizer.zero_grad()
        losses.mean().backward()
        with torch.no_grad():
            self._regularise()
        self.step += 1

    def _batch(self, rows: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        found = self.inputs[rows]
        if draws:
            found = changed(found.unflatten(1, self.data.image_shape or (1, -1)), draws).flatten(1)
        if self.recipe.noise:
            noise = normal(noise_key(self.model.key, self.step), tuple(found.shape), dtype=np.float32)
            found = found + self.recipe.noise * torch.from_numpy(noise)
        return found

    def _regularise(self) -> None:
        """Take the optimizer's step with what the recipe does to the weights around it.

        Weights are the parameters of two or more dimensions. The last is taken for the output layer's, whose units
        have no longest incoming vector.
        """
        for weight in self.weights:
            if self.recipe.l1 and weight.grad is not None:
                weight.grad.add_(weight.sign(), alpha=self.recipe.l1)
            if self.recipe.weight_decay:
                weight.mul_(1 - self.budget.learning_rate * self.recipe.weight_decay)
        self.optimizer.step()
        if self.recipe.max_norm < math.inf:
            for weight in self.weights[:-1]:
                length = weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))
                weight.mul_((self.recipe.max_norm / length).clamp(max=1))

    @torch.no_grad()
    def _score(self) -> None:
        """Score on the model's own rows, and keep the state where the inner rows like it best so far."""
        self.module.eval()
        parts = _in_evaluation(self.data, self.inputs, self.scored, self.budget)
        found = module_rows(self.module, parts, self.data.classes)
        targets, validation = self.targets[self.scored], -self.scored_rows[-1]
        losses = row_losses(found[None], targets[None])[0].double()
        means = [part.mean() for part in losses.split(self.scored_rows)]
        metrics = measured(self.data.task, found[None, validation:], targets[None, validation:], [self.target_scale])
        self.history.append(torch.cat([torch.stack(means), metrics[0]]))
        if means[1] < self.best_loss:
            self.best, self.best_loss = self._state(), float(means[1])

    def state(self) -> dict[str, Tensor]:
        """Return all that changes from epoch to epoch, by name."""
        found = {f"trained {name}": tensor for name, tensor in self._state().items()}
        found |= {f"best {name}": tensor for name, tensor in self.best.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"moment {index} {name}": value.detach().cpu().clone() for name, value in moments.items()}
        counts = {"step taken": torch.tensor(self.step), "history": torch.stack(self.history)}
        return found | counts | {"best loss": torch.tensor(self.best_loss, dtype=torch.float64)}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.module.load_state_dict({name: kept[f"trained {name}"] for name in self.best})
        self.best = {name: kept[f"best {name}"] for name in self.best}
        moments: dict[int, dict[str, Tensor]] = {}
        for title, value in kept.items():
            kind, _, rest = title.partition(" ")
            if kind == "moment":
                index, _, name = rest.partition(" ")
                moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.step, self.history = int(kept["step taken"]), list(kept["history"])
        self.best_loss = float(kept["best loss"])

    def result(self) -> Training:
        diverged_at = len(self.history) if self.diverged else None
        whole = torch.stack(self.history)[: diverged_at - 1 if diverged_at else None]
        names = ("training_loss", "inner_loss", "validation_loss", *(m.name for m in metrics_of(self.data.task)))
        found = curves(**{name: whole[:, column].tolist() for column, name in enumerate(names)})
        return Training(found, diverged_at, [tensor.numpy() for tensor in self.best.values()])


def rows_at_once(data: Dataset, budget: Budget) -> int:
    """Return how many rows a network gets in evaluation: of rows that a function loads as many as in training."""
    return _ROWS_AT_ONCE if data.load is None else budget.batch_size


def _in_evaluation(data: Dataset, inputs: Tensor, rows: Tensor, budget: Budget) -> Iterator[Inputs]:
    size = rows_at_once(data, budget)
    if data.load is not None:
        return loaded(data, rows.split(size), training=False)
    return split(arranged(inputs[rows], data.image_shape), size)


def module_rows(module: nn.Module, parts: Iterable[Inputs], classes: int) -> Tensor:
    """Return a network's outputs, of shape (rows, outputs), a part of the rows after another."""
    return torch.cat([module_outputs(module, part, classes).cpu() for part in parts])


def _with_state(module: nn.Module, tensors: State) -> nn.Module:
    """Return the network with a state of `train_own` in it, in evaluation."""
    named = zip(module.state_dict(), tensors, strict=True)
    module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in named})
    return module.eval()


@torch.no_grad()
def own_row_scores(
    network: OwnNetwork,
    trained: Iterable[tuple[Model, State]],
    prepared: Iterable[Prepared],
    data: Dataset,
    rows: npt.NDArray[np.int64],
    budget: Budget,
) -> tuple[Tensor, Tensor]:
    """Return every model's loss on every row and its outputs, as `dropkit.study.network.row_scores` does.

    Args:
        network: What builds the networks.
        trained: Each model with the state that training gave.
        prepared: All rows as each sees them.
        data: Where the rows are from.
        rows: Those to score.
        budget: Of the study.
    """
    losses, outputs, scored = [], [], torch.from_numpy(rows)
    for (model, state), own in zip(trained, prepared, strict=True):
        module = _with_state(network.build(model.recipe.dropout, model.key), state)
        with seeded(call_key(model.key, "own network evaluation", 0)):
            parts = _in_evaluation(data, torch.from_numpy(own.inputs), scored, budget)
            outputs.append(module_rows(module, parts, data.classes))
        losses.append(row_losses(outputs[-1][None], torch.from_numpy(own.targets)[scored][None])[0])
    return torch.stack(losses).double(), torch.stack(outputs)
