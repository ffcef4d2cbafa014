"""Samples of a saved model: passes over its networks with the dropout that they trained with.

A model whose networks dropped nothing has one sample a network.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit import sites
from dropkit.nn.variants import VARIANTS
from dropkit.random import call_key
from dropkit.study.methods import Recipe
from dropkit.study.methods.variants import acts_on_weights
from dropkit.study.own import OwnMember
from dropkit.study.own.factory import arranged, module_outputs
from dropkit.study.own.inputs import Inputs, split
from dropkit.uncertainty import mc

if TYPE_CHECKING:
    from dropkit.study.saved_model import SavedModel

__all__ = ["Dropped", "drops", "samples"]

UNITS, PRODUCTS, WEIGHTS = "units", "products", "weights"
_LEAST_RATE = 2.0**-32  # the least that draws anything; a learned one may be less
_NUMBERS = 2**22  # of all samples of the rows that are taken at once, at most
_ROWS = 1000


@dataclass(frozen=True)
class Dropped:
    """What the networks of a saved model dropped in training, so that it can be dropped again.

    Args:
        variant: Class of `dropkit.nn` whose noise it was; empty where nothing was dropped, or a network of the
            user's own has its dropout itself.
        place: ``"units"`` behind the rectifier of hidden layers, ``"products"`` in front of their biases, where batch
            normalisation came next, or ``"weights"`` of hidden layers.
        rates: Of each network, the rate of every hidden layer. Of rates that a layer learned unit by unit, the mean.
        error: The root mean squared error of the model on the test rows of the study; None of classes.
    """

    variant: str
    place: str
    rates: tuple[tuple[float, ...], ...]
    error: float | None

    @classmethod
    def of(cls, recipe: Recipe, rates: Sequence[Sequence[float]], error: float | None) -> "Dropped":
        """Return what a recipe's networks dropped, at given rates."""
        variant = recipe.variant or ("Dropout" if recipe.dropout else "")
        place = WEIGHTS if acts_on_weights(recipe) else PRODUCTS if recipe.dropout_before_norm else UNITS
        return cls(variant, place, tuple(map(tuple, rates)) if variant else (), error)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], hidden: Sequence[int]) -> "Dropped":
        """Build it from plain data of networks with so many hidden layers.

        What does not fit raises KeyError, TypeError or ValueError.
        """
        rates = tuple(tuple(float(rate) for rate in one) for one in data["rates"])
        error = None if data["error"] is None else float(data["error"])
        found = cls(data["variant"], data["place"], rates, error)
        fits = [len(one) for one in rates] == [*hidden] if found.variant else not rates
        known = found.variant in ("", *VARIANTS) and found.place in (UNITS, PRODUCTS, WEIGHTS)
        is_error = error is None or 0 <= error < float("inf")
        if not (fits and known and is_error and all(0 <= rate < 1 for one in rates for rate in one)):
            raise ValueError(data)
        return found

    def put_into(self, network: nn.Sequential, member: int) -> nn.Sequential:
        """Return a network of the study, of linear layers and rectifiers in turn, with its dropout at its places."""
        layers: list[Any] = list(network)
        for layer, rate in enumerate(self.rates[member]):
            noise, place = _Noise(self.variant, rate), 2 * layer
            if self.place == UNITS:
                layers[place + 1] = nn.Sequential(layers[place + 1], noise)
            else:
                layers[place] = _NoisyLinear(layers[place], noise, self.place)
        return nn.Sequential(*layers).eval().requires_grad_(False)


class _Noise(nn.Module):
    """The noise of a variant as a study trains with it, by the one function that its row names."""

    def __init__(self, variant: str, rate: float) -> None:
        super().__init__()
        row = VARIANTS[variant]
        learned = row.learned and torch.tensor(row.learned.first(max(rate, _LEAST_RATE)))
        self.function = row.function if row.learned is None else row.learned.function
        self.rate = rate if learned is None else learned

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = self.function(values, self.rate, self.training)  # type: ignore[misc]  # every method's row has one
        return found


class _NoisyLinear(nn.Module):
    """A linear layer with noise on its weights, or on its product in front of the bias."""

    def __init__(self, linear: nn.Linear, noise: _Noise, place: str) -> None:
        super().__init__()
        self.linear, self.noise, self.place = linear, noise, place

    def forward(self, rows: Tensor) -> Tensor:
        if self.place == WEIGHTS:
            return F.linear(rows, self.noise(self.linear.weight), self.linear.bias)
        return self.noise(F.linear(rows, self.linear.weight)) + self.linear.bias


class _Own(nn.Module):
    """A network of the user's own, with outputs of shape (rows, outputs)."""

    def __init__(self, member: OwnMember) -> None:
        super().__init__()
        self.module, self.classes = member.module, member.classes

    def forward(self, input: Inputs) -> Tensor:
        return module_outputs(self.module, input, self.classes)


def drops(model: "SavedModel", inputs: Any) -> bool:
    """Return whether passes over the model's networks differ; one of the user's own is run on two rows to see that."""
    preparation, network = model.members[0]
    if not isinstance(network, OwnMember):
        return model.dropped is not None and bool(model.dropped.variant)
    rows = model.rows(preparation, next(split(inputs, 2)))
    return len(sites.find(_Own(network), arranged(rows, network.image_shape))) > 0


def samples(model: "SavedModel", inputs: Any, count: int | None, seed: int) -> Iterator[Tensor]:
    """Yield samples of the rows, part after part, in memory that does not grow with the rows.

    The masks of a row are functions of the seed, the network, the pass and the row's number, and of nothing else.

    Args:
        model: The model.
        inputs: The rows, as `SavedModel.predict` takes them.
        count: Passes over each network; None for one of each as it is, without dropout.
        seed: Decides the masks.

    Returns:
        Float64 tensors of shape (networks * passes, rows, outputs): probabilities, or numbers in their own units.
    """
    numbers = len(model.members) * (count or 1) * max(1, len(model.class_names))
    size = min(max(1, _NUMBERS // numbers), *(_rows_at_once(network) for _, network in model.members))
    members = [_of_member(model, member, inputs, size, count, seed) for member in range(len(model.members))]
    for parts in zip(*members, strict=True):
        yield torch.cat(parts)


def _rows_at_once(network: Any) -> int:
    return min(_ROWS, network.rows_at_once) if isinstance(network, OwnMember) else _ROWS


@torch.no_grad()
def _of_member(
    model: "SavedModel", member: int, inputs: Any, size: int, count: int | None, seed: int
) -> Iterator[Tensor]:
    preparation, network = model.members[member]
    parts = (model.rows(preparation, part) for part in split(inputs, size))
    if count is not None:
        outputs = _passes(model.dropped, member, network, parts, count, call_key(seed, "samples", member))
    else:
        outputs = (network(part)[None] for part in parts)
    for output in outputs:
        yield model.scaled(preparation, output)


def _passes(
    dropped: Dropped | None, member: int, network: Any, parts: Iterable[Inputs], count: int, seed: int
) -> Iterator[Tensor]:
    engine = "auto"
    if isinstance(network, OwnMember):
        module: nn.Module = _Own(network)
        parts = (arranged(part, network.image_shape) for part in parts)
    else:
        assert dropped is not None  # noqa: S101  # else there is no count
        module = dropped.put_into(network, member)
        engine = "loop" if dropped.place == WEIGHTS else "auto"  # masks of weights are of all rows of a pass
    predict = mc(module, count, seed=seed, engine=engine, keep_samples=True)
    results = predict.each({"input": part} for part in parts)  # by name, for inputs may be a dictionary
    while True:
        with warnings.catch_warnings():  # weights belong to no row, as is said where they are chosen
            if engine == "loop":
                warnings.filterwarnings("ignore", "mc: passes over this model have masks that belong to places")
            result = next(results, None)
        if result is None:
            return
        yield result.samples.cpu()
