"""Training: models of one shape train together as one batched model.

Each has its own data split, first weights, masks and strength. No model sees another: the loss is the sum of their
losses, with the divergence of the rates that they learn; Adam works element by element, and all noise is addressed by
the model's own key. So a model that diverges leaves the others alone, and which models share a pack changes results
only within float tolerance.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dropkit.functional import activation_dropout, dropout
from dropkit.random import call_key, normal, uniform32
from dropkit.random.keys import call_keys
from dropkit.study.augmentation import augmented, drawn, mixed, padded_windows
from dropkit.study.budgets import Budget
from dropkit.study.checkpoint import Checkpoint
from dropkit.study.dataset import Dataset
from dropkit.study.linear_model import fit_linear
from dropkit.study.methods import Recipe
from dropkit.study.methods.variants import acts_on_weights, first_learned, learned_by, noisy
from dropkit.study.metrics import measured, metrics_of
from dropkit.study.network import initial_parameters, logits, row_losses, row_scores
from dropkit.study.normalisation import BatchNorm, folded
from dropkit.study.records import Curves, curves
from dropkit.study.splits import Split

__all__ = ["TRAINING_ROWS_SCORED", "Model", "Training", "dropout_key", "noise_key", "shuffled", "train"]

TRAINING_ROWS_SCORED = 1000  # at most: the training loss of all rows would cost a quarter of the study


@dataclass(frozen=True)
class Model:
    """One model of a pack: the key of its seed, and how it is trained."""

    key: int
    recipe: Recipe


@dataclass(frozen=True, eq=False)
class Training:
    """What training gave for one model.

    The parameters are those at the early-stopping epoch, with batch normalisation folded into weights and biases. So
    are the learned rates: of each hidden layer their mean over the units, and none where rates are not learned.
    """

    curves: Curves
    diverged_at: int | None
    parameters: list[npt.NDArray[np.float32]]
    learned_rates: tuple[float, ...] = ()


def dropout_key(key: int, layer: int, step: int) -> int:
    """Return the key of the mask after hidden layer `layer` at training step `step`, for the seed of key `key`."""
    return call_key(key, _hidden(layer), step)


def _hidden(layer: int) -> str:
    return f"hidden {layer}"


def noise_key(key: int, step: int) -> int:
    """Return the key of the noise on the inputs at training step `step`, for the seed of key `key`."""
    return call_key(key, "input noise", step)


def shuffled(key: int, rows: npt.NDArray[np.int64], epoch: int) -> npt.NDArray[np.int64]:
    """Return the training rows in the order of one epoch, the same for all methods of a seed."""
    return rows[np.argsort(uniform32(call_key(key, "shuffle", epoch), (len(rows),)), kind="stable")]


def train(
    models: Sequence[Model],
    data: Dataset,
    splits: Mapping[int, Split],
    budget: Budget,
    on_epoch: Callable[[], None] = lambda: None,
    checkpoint: Checkpoint | None = None,
) -> list[Training]:
    """Train a pack to the last epoch of the budget.

    Linear models are fitted instead, and have the same scores after every epoch.

    Args:
        models: The members of the pack, with recipes of one kind.
        data: The rows.
        splits: From the key of a seed to its split.
        budget: Network, epochs, batch size and learning rate.
        on_epoch: Called after every epoch.
        checkpoint: Where the pack is kept after every epoch, and taken up again. Default: nowhere.

    Returns:
        One training a model, in order.
    """
    pack = _Pack(models, data, splits, budget)
    if pack.recipe.is_linear:
        pack.fit()
        checkpoint = None  # a fit has no epochs to go on from
    kept = checkpoint.load() if checkpoint is not None else None
    if kept is not None:
        pack.restore(kept)
    for epoch in range(budget.epochs):
        if epoch >= len(pack.history):
            if not pack.recipe.is_linear:
                pack.train_epoch(epoch)
            pack.score(epoch)
            if checkpoint is not None and epoch + 1 < budget.epochs:
                checkpoint.save(pack.state())
        on_epoch()
    return pack.results()


class _Pack:
    def __init__(self, models: Sequence[Model], data: Dataset, splits: Mapping[int, Split], budget: Budget) -> None:
        self.models, self.budget = models, budget
        recipes = [model.recipe for model in models]
        self.recipe = recipes[0]  # of all models, where their kind is meant
        self.splits = {model.key: splits[model.key] for model in models}
        self._prepare(data)
        parts = [(s.train[:TRAINING_ROWS_SCORED], s.inner, s.validation) for s in self.splits.values()]
        scored = [torch.from_numpy(np.concatenate(rows)) for rows in parts]
        self.scored = [
            (inputs[rows], targets[rows])
            for inputs, targets, rows in zip(self.inputs, self.targets, scored, strict=True)
        ]
        self.scored_rows = [len(rows) for rows in parts[0]]
        hidden = self.recipe.hidden(budget.hidden)
        widths = (data.columns, *hidden, data.outputs)
        self.parameters = initial_parameters([model.key for model in models], widths)
        self.norms = [BatchNorm(len(models), width) for width in hidden] if self.recipe.batch_norm else []
        # A bias in front of a normalisation does nothing, and Adam would make steps of its rounding errors.
        idle = [self.parameters[2 * layer + 1].zero_() for layer in range(len(self.norms))]
        self.trained = [parameter for parameter in self.parameters if all(parameter is not bias for bias in idle)]
        self.trained += [tensor for norm in self.norms for tensor in (norm.gain, norm.offset)]
        self.learned = first_learned(recipes, hidden)
        self.trained += self.learned
        for tensor in self.trained:
            tensor.requires_grad_()
        self.optimizer = torch.optim.Adam(self.trained, lr=budget.learning_rate, fused=True)
        self.best = [parameter.detach().clone() for parameter in (*self.parameters, *self.learned)]
        self.best_loss = torch.full((len(models),), torch.inf, dtype=torch.float64)
        self.rates = torch.tensor([recipe.dropout for recipe in recipes], dtype=torch.float64)
        self.on_weights = acts_on_weights(self.recipe)
        self.shrink = 1 - budget.learning_rate * _strengths([recipe.weight_decay for recipe in recipes])
        self.l1 = _strengths([recipe.l1 for recipe in recipes])
        self.longest = _strengths([recipe.max_norm for recipe in recipes])
        self.smoothing = torch.tensor([recipe.label_smoothing for recipe in recipes])
        self.noise = _strengths([recipe.noise for recipe in recipes])
        self.step = 0
        self.keys: dict[tuple[int, int], Tensor] = {}  # of this epoch's masks, by layer and step
        self.history: list[Tensor] = []
        self.classes = data.classes

    @torch.no_grad()
    def fit(self) -> None:
        """Fit the linear models to convergence."""
        for index, model in enumerate(self.models):
            rows, seat = self.splits[model.key].train, int(self.seats[index])
            inputs, targets = self.inputs[seat].numpy()[rows], self.targets[seat].numpy()[rows]
            fitted = fit_linear(inputs, targets, self.classes, model.recipe.l2)
            for parameter, array in zip(self.parameters, fitted, strict=True):
                parameter[index] = torch.from_numpy(array)

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
        self.task, self.scales = data.task, [part.target_scale for part in prepared]

        self.image_shape = data.image_shape or (1, data.columns)
        if self.recipe.shift:
            self.most = max(model.recipe.shift for model in self.models)
            self.windows = padded_windows(self.inputs.unflatten(2, self.image_shape), self.most)

    def train_epoch(self, epoch: int) -> None:
        orders = {key: shuffled(key, split.train, epoch) for key, split in self.splits.items()}
        order = torch.from_numpy(np.stack([orders[model.key] for model in self.models]))
        draws, starts = self._drawn(order.shape[1], epoch), range(0, order.shape[1], self.budget.batch_size)
        self.keys = self._dropout_keys(range(self.step, self.step + len(starts)))
        for start in starts:
            batch = slice(start, start + self.budget.batch_size)
            self._train_step(order[:, batch], {name: values[:, batch] for name, values in draws.items()})

    def _drawn(self, rows: int, epoch: int) -> dict[str, Tensor]:
        """Draw how every model's rows change in an epoch, in the order of the epoch."""
        each = [drawn(model.key, model.recipe, rows, epoch) for model in self.models]
        return {name: torch.from_numpy(np.stack([one[name] for one in each])) for name in each[0]}

    def _train_step(self, rows: Tensor, draws: Mapping[str, Tensor]) -> None:
        found = logits(self._noisy_parameters(), self._batch(rows, draws), self._activate)
        losses = self._losses(found, self.targets[self.seats[:, None], rows], draws)
        self.optimizer.zero_grad()
        (losses.mean(1) + self._divergence()).sum().backward()
        with torch.no_grad():
            self._regularise()
        self.step += 1

    def _divergence(self) -> Tensor | float:
        """Return what each model's learned rates add to its loss: their divergence is of all training rows together."""
        learned = learned_by(self.recipe)
        if learned is None:
            return 0.0
        layers = zip(self.learned, self.parameters[2::2], strict=True)
        rows = len(next(iter(self.splits.values())).train)
        return torch.stack([learned.kl(rates, weight) for rates, weight in layers]).sum(0) / rows

    def _losses(self, found: Tensor, targets: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        if "mixup" not in draws:
            return row_losses(found, targets, self.smoothing)
        if targets.is_floating_point():
            return row_losses(found, mixed(targets, draws["mixup"]))
        own, other = (row_losses(found, one, self.smoothing) for one in (targets, targets.roll(-1, dims=1)))
        return torch.lerp(other, own, draws["mixup"].to(own.dtype))

    def _batch(self, rows: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        seats = self.seats[:, None]
        if "shift" in draws:
            corner = self.most - draws["shift"].long()
            found = self.windows[seats, rows, corner[..., 0], corner[..., 1]].flatten(2)
        else:
            found = self.inputs[seats, rows]
        if draws.keys() - {"shift", "mixup"}:
            found = augmented(found.unflatten(2, self.image_shape), draws).flatten(2)
        if self.recipe.noise:
            shape = found.shape[1:]
            fields = {key: normal(noise_key(key, self.step), shape, dtype=np.float32) for key in self.splits}
            found = found + self.noise * torch.from_numpy(np.stack([fields[model.key] for model in self.models]))
        return mixed(found, draws["mixup"]) if "mixup" in draws else found

    def _noisy_parameters(self) -> list[Tensor]:
        if not self.on_weights:
            return self.parameters
        found = list(self.parameters)
        for layer in range(len(found) // 2 - 1):
            found[2 * layer] = noisy(found[2 * layer], self.recipe, self.rates, self.keys[layer, self.step])
        return found

    def _activate(self, hidden: Tensor, layer: int) -> Tensor:
        if self.recipe.dropout and self.recipe.dropout_before_norm:
            hidden = dropout(hidden, self.rates, key=self.keys[layer, self.step])
        if self.norms:
            hidden = self.norms[layer](hidden)
        if not self.recipe.dropout or self.recipe.dropout_before_norm or self.on_weights:
            return hidden.relu_()
        if self.recipe.variant:
            rates = self.learned[layer] if self.learned else self.rates
            return noisy(hidden.relu_(), self.recipe, rates, self.keys[layer, self.step])
        return activation_dropout(hidden, "relu", self.rates, key=self.keys[layer, self.step])

    def _regularise(self) -> None:
        """Take the optimizer's step with what each model's recipe does to its weights around it."""
        for weight in self.parameters[::2]:
            if self.recipe.l1 and weight.grad is not None:
                weight.grad.addcmul_(weight.sign(), self.l1)
            if (self.shrink != 1).any():
                weight.mul_(self.shrink)
        self.optimizer.step()
        if self.recipe.max_norm < math.inf:
            for weight in self.parameters[:-2:2]:
                weight.mul_((self.longest / weight.norm(dim=1, keepdim=True)).clamp(max=1))

    def _dropout_keys(self, steps: range) -> dict[tuple[int, int], Tensor]:
        """Return the models' keys of `dropout_key` by layer and step."""
        seeds, layers = [model.key for model in self.models], range(len(self.parameters) // 2 - 1)
        drawn = {layer: torch.from_numpy(call_keys(seeds, _hidden(layer), steps).view(np.int64)) for layer in layers}
        return {(layer, step): keys for layer in layers for step, keys in zip(steps, drawn[layer], strict=True)}

    def score(self, epoch: int) -> None:
        """Score every model on its own rows, and keep the parameters where the inner rows like them best so far."""
        inputs, targets = zip(*(self.scored[seat] for seat in self.seats), strict=True)
        parameters = folded(self.parameters, self.norms)
        losses, outputs = row_scores(parameters, inputs, targets)
        found = torch.stack([part.mean(1) for part in losses.split(self.scored_rows, dim=1)], dim=1)
        validation = -self.scored_rows[-1]
        truth = torch.stack([target[validation:] for target in targets])
        scales = [self.scales[seat] for seat in self.seats]
        self.history.append(torch.cat([found, measured(self.task, outputs[:, validation:], truth, scales)], dim=1))
        better = found[:, 1] < self.best_loss
        self.best_loss = torch.where(better, found[:, 1], self.best_loss)
        for best, parameter in zip(self.best, (*parameters, *self.learned), strict=True):
            best[better] = parameter.detach()[better]

    def state(self) -> dict[str, Tensor]:
        """Return all that changes from epoch to epoch, by name."""
        running = [moment for norm in self.norms for moment in (norm.mean, norm.variance)]
        named = {"trained": self.trained, "best": self.best, "running": running}
        found = {
            f"{name} {index}": tensor.detach() for name, group in named.items() for index, tensor in enumerate(group)
        }
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"{name} {index}": moment for name, moment in moments.items()}
        counts = {
            "best loss": self.best_loss,
            "history": torch.stack(self.history),
            "step taken": torch.tensor(self.step),
        }
        return found | counts

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        moments = {"exp_avg", "exp_avg_sq", "step"}
        state = {index: {name: kept[f"{name} {index}"] for name in moments} for index in range(len(self.trained))}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.step, self.history = int(kept["step taken"]), list(kept["history"])
        with torch.no_grad():
            for name, tensor in self.state().items():
                tensor.copy_(kept[name])

    def results(self) -> list[Training]:
        trainings, rates = [], self._learned_rates()
        for index, history in enumerate(torch.stack(self.history, dim=1)):
            broken = (~history[:, :3].isfinite().all(1)).nonzero()  # a metric may be undefined: only losses diverge
            diverged_at = int(broken[0]) + 1 if len(broken) else None
            whole = history[: diverged_at - 1] if diverged_at else history
            names = ("training_loss", "inner_loss", "validation_loss", *(m.name for m in metrics_of(self.task)))
            found = curves(**{name: whole[:, column].tolist() for column, name in enumerate(names)})
            parameters = [best[index].numpy() for best in self.best[: len(self.parameters)]]
            trainings.append(Training(found, diverged_at, parameters, tuple(rates[index])))
        return trainings

    def _learned_rates(self) -> list[list[float]]:
        """Return every model's learned rates, one a hidden layer."""
        learned, layers = learned_by(self.recipe), self.best[len(self.parameters) :]
        if learned is None:
            return [[] for _ in self.models]
        return torch.stack([learned.rate(layer).double().mean((1, 2)) for layer in layers], dim=1).tolist()


def _strengths(values: Sequence[float]) -> Tensor:
    """Return one number a model, to multiply weights or inputs by."""
    return torch.tensor(values)[:, None, None]
