"""The plan of a study: every trial, seed and pack, written down and frozen before the first one trains."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dropkit import __version__
from dropkit.errors import RunError
from dropkit.random import MASK_VERSION
from dropkit.study.budgets import Budget
from dropkit.study.dataset import Dataset
from dropkit.study.methods import METHODS
from dropkit.study.records import CONFIRMATION, SELECTION, WIDENING, Trial
from dropkit.study.widening import EXTRA
from dropkit.study.wording import joined, loss_name

__all__ = ["LEVEL", "POWER", "RELEVANT", "Pack", "Plan", "make_plan", "plan_from_json"]

FORMAT = 4
LEVEL = 0.05  # of the one Holm family
POWER = 0.8  # at which the smallest detectable effect is stated
RELEVANT = 0.05  # an effect below this share of none's loss counts as no difference


@dataclass(frozen=True)
class Pack:
    """Trials that train together. The membership is part of the plan and never changes."""

    name: str
    trials: tuple[Trial, ...]

    @property
    def phase(self) -> str:
        """The phase that all its trials belong to."""
        return self.trials[0].phase


@dataclass(frozen=True)
class Plan:
    """A whole study, decided.

    Args:
        seed: The study's seed; with the data it decides every split, weight, shuffle and mask.
        data: Name, title, rows, columns, classes and SHA-256 of the data set.
        budget: Size of the study.
        strengths: From a method's name to the strengths that the selection tries; none is always among them.
        network: Class, number of parameters and SHA-256 of a user's own network; nothing of the study's.
    """

    seed: int
    data: Mapping[str, Any]
    budget: Budget
    strengths: Mapping[str, tuple[float, ...]]
    network: Mapping[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """The network without regularisation: the widths of all its layers, or the class of a user's own."""
        if self.network:
            return f"{self.network['class']}, your own, {self.network['parameters']:,} parameters"
        widths = (self.data["columns"], *self.budget.hidden, self.data["outputs"])
        return "-".join(str(width) for width in widths)

    @property
    def family(self) -> tuple[str, ...]:
        """The methods of the one family of tests: all but none and baselines."""
        return tuple(name for name in self.strengths if name != "none" and METHODS[name].compared)

    @property
    def seeds(self) -> dict[str, range]:
        """The seeds of each phase, in the order of the phases; those of the confirmation are fresh."""
        first, second = self.budget.selection_seeds, self.budget.confirmation_seeds
        before = {SELECTION: range(first)} | ({WIDENING: range(first)} if self.budget.widens else {})
        return {**before, CONFIRMATION: range(first, first + second)}

    def trials(self, phase: str) -> list[Trial]:
        """Return the trials of a phase, by method, strength or slot, and seed."""
        return [
            Trial(phase, name, strength, seed, slot)
            for name in self.strengths
            for slot, strength in self._places(phase, name)
            for seed in self.seeds[phase]
        ]

    def _places(self, phase: str, method: str) -> list[tuple[int, float | None]]:
        """Return slot and strength of a method's trials of one seed."""
        if phase == SELECTION:
            return [(0, strength) for strength in self.strengths[method]]
        if phase == WIDENING:
            return [(slot, None) for slot in range(EXTRA)] if len(self.strengths[method]) > 1 else []
        return [(0, None)]

    def packs(self) -> list[Pack]:
        """Return the packs in the order in which they train: the models of a pack are of one kind."""
        packs = []
        for phase in self.seeds:
            kinds: dict[object, list[Trial]] = {}
            for trial in self.trials(phase):
                kinds.setdefault(self._kind(trial), []).append(trial)
            parts = [part for members in kinds.values() for part in _even_parts(members, self.budget.pack_size)]
            packs += [Pack(f"{phase}-{number}", tuple(part)) for number, part in enumerate(parts)]
        return packs

    def _kind(self, trial: Trial) -> object:
        """Return the kind of a trial's recipe; where that depends on a strength to come, the trial's own place."""
        method = METHODS[trial.method]
        if trial.strength is not None:
            return method.recipe(trial.strength).kind
        kinds = {method.recipe(strength).kind for strength in method.strengths}
        return kinds.pop() if len(kinds) == 1 else (trial.method, trial.slot)

    def to_json(self) -> str:
        """Return the plan as JSON text that ends with its own checksum."""
        content = self._content()
        return json.dumps({**content, "sha256": _checksum(content)}, indent=1, ensure_ascii=False) + "\n"

    @property
    def checksum(self) -> str:
        """SHA-256 of the plan."""
        return _checksum(self._content())

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "dropkit": __version__,
            "mask_version": MASK_VERSION,
            "seed": self.seed,
            "data": dict(self.data),
            "budget": {**asdict(self.budget), "hidden": list(self.budget.hidden), "methods": list(self.budget.methods)},
            "strengths": {name: list(strengths) for name, strengths in self.strengths.items()},
            "network": dict(self.network),
            "primary": f"early-stopped validation {loss_name(self.data)}, each method against none, on the "
            "confirmation seeds",
            "test": "corrected resampled t-test (Nadeau and Bengio 2003), Holm over the family",
            "family": list(self.family),
            "level": LEVEL,
            "power": POWER,
            "relevant": RELEVANT,
            "seeds": {phase: list(seeds) for phase, seeds in self.seeds.items()},
            "packs": [{"name": pack.name, "trials": [trial.name for trial in pack.trials]} for pack in self.packs()],
        }


def make_plan(
    data: Dataset,
    budget: Budget,
    seed: int,
    strengths: Mapping[str, Sequence[float]],
    network: Mapping[str, Any] | None = None,
) -> Plan:
    """Build the plan for a data set."""
    described = {"name": data.name, "title": data.title, "note": data.note, "rows": data.rows}
    described |= {"columns": data.columns, "classes": data.classes, "sha256": data.digest()}
    described |= {"outputs": data.outputs, "task": data.task, "target": data.target_name, "origin": dict(data.origin)}
    fitting = [
        name for name, method in METHODS.items() if method.fits(data) and (not network or method.fits_any_network)
    ]
    left_out = [METHODS[name].title for name in fitting if name not in strengths and not METHODS[name].on_request]
    named = replace(budget, leaves_out=joined(left_out) if left_out else "")
    return Plan(seed, described, named, {name: tuple(grid) for name, grid in strengths.items()}, network or {})


def plan_from_json(text: str, where: str) -> Plan:
    """Read a plan back; it must be whole and of this version's making.

    Raises:
        RunError: If the text is no plan, was changed, or was made by a version that plans otherwise.
    """
    fresh = "Start a new run."
    damaged = RunError(f"{where} is damaged: it holds no plan of a study. {fresh}")
    try:
        content = json.loads(text)
        checksum, found = content.pop("sha256"), content["format"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged from None
    if _checksum(content) != checksum:
        raise RunError(f"{where} was changed after the study began: its checksum does not fit. {fresh}")
    if found != FORMAT:  # before anything is read that another format may lack
        raise RunError(f"{where} has format {found}, this dropkit reads format {FORMAT}. {fresh}")
    try:
        plan = Plan(
            content["seed"],
            content["data"],
            Budget(**content["budget"]),
            {name: tuple(grid) for name, grid in content["strengths"].items()},
            content["network"],
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged from None
    if content["dropkit"] != __version__ or plan.checksum != checksum:
        raise RunError(f"{where} was made by dropkit {content['dropkit']}, this is {__version__}. {fresh}")
    return plan


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _even_parts(members: Sequence[Trial], most: int) -> list[Sequence[Trial]]:
    """Cut a list into as few parts of at most `most` as possible, of nearly equal lengths."""
    count = -(-len(members) // most)
    bounds = [len(members) * part // count for part in range(count + 1)] if count else []
    return [members[start:stop] for start, stop in itertools.pairwise(bounds)]
