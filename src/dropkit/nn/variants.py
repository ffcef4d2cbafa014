"""The registry: one row a layer, which says what it is, where it comes from, and what it promises.

A row stands on top of its class. The command ``dropkit variants``, the documentation, the contract tests and the
methods of a study read it, so a new variant is one class with its row, and one test file.
"""

import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

__all__ = ["FAMILIES", "VARIANTS", "Learned", "Variant", "ordered", "variant"]

FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "activations": "Activations",
        "sequences": "Sequences",
        "weights": "Weights",
        "paths": "Paths",
        "attention": "Attention",
        "learned": "Learned rates",
    }
)
"""Headings of the families, in the order in which they are listed."""

_Layer = TypeVar("_Layer", bound=type[Module])


class Learned(NamedTuple):
    """The stateless form of a layer that learns the rate of its noise on units, for several models side by side.

    What is learned has the shape (models, 1, units), or (models, 1, 1) where units share a rate.

    Args:
        first: From a rate to the number with which what is learned begins.
        rate: From what is learned to the rate.
        function: The noise, called as ``function(input, learned, training, key=...)`` with one key a model; the input
            has the shape (models, rows, units).
        kl: The divergence in nats, called as ``kl(learned, weight)`` with the weight that reads the units, of shape
            (models, units, outputs); it returns one number a model.
        per_unit: Whether every unit has a rate of its own. Default: False.
        highest: What rates to begin with stay below. Default: 1.0.
    """

    first: Callable[[float], float]
    rate: Callable[[Tensor], Tensor]
    function: Callable[..., Tensor]
    kl: Callable[[Tensor, Tensor], Tensor]
    per_unit: bool = False
    highest: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the registry.

    Args:
        layer: The class; set by `variant`.
        family: What kind of thing it works on, one of `FAMILIES`.
        title: The name in sentences, in the field's words.
        noise: The law of what is multiplied or chosen.
        shared: Which elements share a draw.
        acts_on: What is multiplied or replaced.
        dropped: What a dropped unit becomes: 0, another constant in front of a scale and a shift, ``"old state"``,
            ``"mean"`` for noise that drops nothing, or what else the class says.
        at_one: What happens at p = 1: ``"zeros"``, ``"old state"``, or ``"refused"`` where the noise has no limit; then
            perhaps, behind a semicolon, what an option makes of it. Default: nothing, where the layer takes no rate.
        evaluation: The rule where nothing is drawn: ``"identity"``, or what else is done, in a few words.
        formula: What training computes, in LaTeX.
        symbol: What the paper calls the rate, and whether it drops or keeps.
        use: Where it is meant to be used, one sentence.
        rates: Typical rates, the most common first. Default: none, where the layer takes no rate.
        example: A layer of a rate, or of None where it takes none, for tests and documentation. Default: the class.
        inputs: Shapes of the inputs that `example` takes, batch first.
        dtype: Their type. Default: float32.
        shown: A layer of a rate for the picture, large enough to show what shares a draw. Default: `example`.
        shown_inputs: Shapes of the inputs that `shown` takes. Default: `inputs`.
        axes: What the axes of the picture count. Default: not said.
        is_layer: Whether it maps a tensor to a tensor, with `key=` and, if Bernoulli, `mask=` and `return_mask=`, so
            that the contract of layers binds it; else its own tests prove it. Default: True.
        takes_any_shape: Whether its input may have any shape. Default: False.
        function: The one function of `dropkit.functional` that the layer calls, which is its stateless form. A study
            trains models of several rates at once by it, if it is called as ``function(input, p, training, key=...)``
            with one rate and key a slice of axis 0 as well, and with a weight as input where it acts on weights.
            Default: none, or several.
        learned: How a study trains a layer that learns its rate. Default: it learns none.
        aliases: Other names under which it is exported.
    """

    family: str
    title: str
    noise: str
    shared: str
    acts_on: str
    dropped: float | str
    evaluation: str
    formula: str
    symbol: str
    use: str
    inputs: tuple[tuple[int, ...], ...]
    at_one: str = ""
    rates: tuple[float, ...] = ()
    dtype: torch.dtype = torch.float32
    shown: Callable[[float], Module] | None = None
    shown_inputs: tuple[tuple[int, ...], ...] = ()
    axes: tuple[str, ...] = ()
    example: Callable[[Any], Module] | None = None
    is_layer: bool = True
    takes_any_shape: bool = False
    function: Callable[..., Any] | None = None
    learned: Learned | None = None
    aliases: tuple[str, ...] = ()
    layer: type[Module] = Module

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.layer.__name__

    @property
    def summary(self) -> str:
        """The first sentence of the class's docstring."""
        return self.description[0].replace("\n", " ")

    @property
    def description(self) -> list[str]:
        """The paragraphs of the class's docstring in front of its arguments."""
        paragraphs = _docstring(self.layer).split("\n\n")
        parts = ("Args:", "Raises:", "Examples:", "References:")
        return list(itertools.takewhile(lambda text: not text.startswith(parts), paragraphs)) or [""]

    @property
    def paper(self) -> str:
        """Authors, year, title, section or equation: the references of the class's docstring."""
        return " ".join(_docstring(self.layer).partition("\nReferences:\n")[2].split())

    @property
    def citation(self) -> str:
        """The paper in short, such as ``"Srivastava et al. (2014)"``."""
        authors, _, rest = self.paper.partition(" (")
        surnames = re.split(r", and |, | and ", authors)
        short = f"{surnames[0]} et al." if len(surnames) > 2 else authors
        return f"{short} ({rest.partition(')')[0]})"

    @property
    def facts(self) -> dict[str, str]:
        """What a page says of it beside summary and formula, by headings, in their order; rates only if it has any."""
        if isinstance(self.dropped, str):
            dropped = "none is dropped" if self.dropped == "mean" else self.dropped
        else:
            dropped = f"{self.dropped:.5g}, then scaled and shifted as all are" if self.dropped else "0"
        at_one = "refused: the noise has no limit" if self.at_one == "refused" else self.at_one
        found = {
            "acts on": self.acts_on,
            "noise": self.noise,
            "share a draw": self.shared,
            "what is dropped becomes": dropped,
            "at p = 1": at_one,
            "in evaluation": self.evaluation,
            "use": self.use,
            "typical rates": ", ".join(f"{rate:g}" for rate in self.rates),
            "the paper's rate": self.symbol,
            "paper": self.paper,
        }
        return {heading: text for heading, text in found.items() if text}

    @property
    def usual(self) -> float | None:
        """The most common rate, or None where the layer takes none."""
        return self.rates[0] if self.rates else None

    def build(self, p: float | None = None) -> Module:
        """Return a layer of a rate, by default the most common."""
        return (self.example or self.layer)(self.usual if p is None else p)

    @property
    def is_inverted_bernoulli(self) -> bool:
        """Whether the contract of inverted Bernoulli dropout binds it: dropped to 0, survivors scaled, else itself."""
        return self.noise == "Bernoulli" and self.dropped == 0 and self.evaluation == "identity"


def _docstring(layer: type[Module]) -> str:
    return inspect.getdoc(layer) or ""  # none under python -OO


_rows: dict[str, Variant] = {}
VARIANTS: Mapping[str, Variant] = MappingProxyType(_rows)


def ordered(rows: Iterable[Variant]) -> list[Variant]:
    """Return rows in the order in which they are listed: by family, then by name."""
    families = list(FAMILIES)
    return sorted(rows, key=lambda row: (families.index(row.family), row.name))


def variant(**row: Any) -> Callable[[_Layer], _Layer]:
    """Enter a class into the registry; the arguments are those of `Variant` but `layer`."""

    def enter(layer: _Layer) -> _Layer:
        _rows[layer.__name__] = Variant(layer=layer, **row)
        return layer

    return enter
