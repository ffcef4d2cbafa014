"""Training a user's network: one model at a time, on the splits, shuffles and batches that every model of a seed gets.

The generators are seeded anew at the start of every epoch, so a checkpoint needs none of their state and a resumed
model is the undisturbed one by construction.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from dropkit.study.own.randomness import seeded
from dropkit.study.packed import TRAINING_ROWS_SCORED, Model, Training, noise_key, shuffled
from dropkit.study.records import curves
from dropkit.study.splits import Split

__all__ = ["module_rows", "own_row_scores", "train_own"]

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
        draws = drawn(self.model.key, self.recipe, len(order), epoch)
        for start in range(0, len(order), size):
            rows, batch = order[start : start + size], slice(start, start + size)
            if len(rows) == 1 < min(size, len(order)):
                continue  # batch normalisation has no variance of one row
            self._step(rows, {name: torch.from_numpy(values[batch]) for name, values in draws.items()})

    def _step(self, rows: Tensor, draws: Mapping[str, Tensor]) -> None:
        placed = arranged(self._batch(rows, draws), self.data.image_shape).to(self.device)
        found = module_outputs(self.module, placed, self.data.classes)
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
        found = module_rows(self.module, self.inputs[self.scored], self.data.image_shape, self.data.classes)
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


def module_rows(module: nn.Module, inputs: Tensor, image_shape: tuple[int, int] | None, classes: int) -> Tensor:
    """Return a network's outputs on prepared rows, of shape (rows, outputs), a part of the rows after another."""
    device = next(module.parameters()).device
    parts = [arranged(part, image_shape).to(device) for part in inputs.split(_ROWS_AT_ONCE)]
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
    inputs: Iterable[Tensor],
    targets: Iterable[Tensor],
    data: Dataset,
) -> tuple[Tensor, Tensor]:
    """Return every model's loss on every row and its outputs, as `dropkit.study.network.row_scores` does.

    Args:
        network: What builds the networks.
        trained: Each model with the state that training gave.
        inputs: The rows of each, prepared, of shape (rows, columns).
        targets: Their targets, of shape (rows,).
        data: Where the rows are from.
    """
    losses, outputs = [], []
    for (model, state), own_inputs, own_targets in zip(trained, inputs, targets, strict=True):
        module = _with_state(network.build(model.recipe.dropout, model.key), state)
        with seeded(call_key(model.key, "own network evaluation", 0)):
            outputs.append(module_rows(module, own_inputs, data.image_shape, data.classes))
        losses.append(row_losses(outputs[-1][None], own_targets[None])[0])
    return torch.stack(losses).double(), torch.stack(outputs)
