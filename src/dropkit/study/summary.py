"""From trials to comparisons: which strengths the selection chooses, and how the winners compare with none."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from dropkit.study.methods import METHODS
from dropkit.study.plan import LEVEL, POWER, Plan
from dropkit.study.records import CONFIRMATION, SELECTION, WIDENING, Record
from dropkit.study.statistics import CorrectedTest, corrected_t_test, holm, smallest_effect
from dropkit.study.widening import extra_strengths

__all__ = [
    "Arm",
    "Comparison",
    "Spread",
    "Summary",
    "choose",
    "compare_pair",
    "early_loss",
    "last_loss",
    "summarise",
    "widen",
]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Arm:
    """One method at one strength: its runs of a phase that did not diverge, by seed."""

    method: str
    strength: float
    records: tuple[Record, ...]
    diverged: int = 0

    def spread(self, score: Callable[[Record], float]) -> Spread:
        """Return the mean and deviation of a score over the seeds."""
        values = [score(record) for record in self.records]
        return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0)

    @property
    def learned_rates(self) -> tuple[float, ...]:
        """The rates that its models learned, one a hidden layer, means over the seeds; empty if none are learned."""
        return tuple(map(fmean, zip(*(record.learned_rates for record in self.records), strict=True)))

    @property
    def label(self) -> str:
        """The method's title with its strength, such as ``"dropout at p = 0.5"``."""
        method = METHODS[self.method]
        return f"{method.title} at {method.label(self.strength)}" if method.symbol else method.title


@dataclass(frozen=True)
class Comparison:
    """A frozen winner against none, over the confirmation seeds. Differences are method minus none: negative is better.

    `difference`, its corrected standard error, the p-value (after Holm) and the smallest effect are of the
    primary metric, the early-stopped validation loss. The other two differences are described, not tested.
    """

    method: str
    difference: float
    standard_error: float
    p_value: float
    smallest_effect: float
    last_difference: float
    last_against_early: float

    @property
    def helps(self) -> bool:
        """Whether the method is better than none at the level of the family."""
        return self.p_value < LEVEL and self.difference < 0

    @property
    def hurts(self) -> bool:
        """Whether the method is worse than none at the level of the family."""
        return self.p_value < LEVEL and self.difference > 0


@dataclass(frozen=True)
class Summary:
    """All that the confirmation says, without a judgement.

    Args:
        plan: The plan of the study.
        records: Every trial that ran, by phase, method, strength and seed.
        grid: Arms on the selection seeds by method, in the order of their strengths, those of the widening among them.
        chosen: The strength that the selection chose for each method; None where every strength diverged.
        arms: Confirmation arms by method.
        comparisons: Each method of the family against none; without methods that diverged on a confirmation seed.
    """

    plan: Plan
    records: tuple[Record, ...]
    grid: Mapping[str, tuple[Arm, ...]]
    chosen: Mapping[str, float | None]
    arms: Mapping[str, Arm]
    comparisons: Mapping[str, Comparison]

    @property
    def none(self) -> Arm:
        """The arm without regularisation."""
        return self.arms["none"]


def early_loss(record: Record) -> float:
    """Return the primary metric of a run."""
    return record.early.validation_loss


def last_loss(record: Record) -> float:
    """Return the validation loss of a run at the last epoch."""
    return record.last.validation_loss


def widen(plan: Plan, records: Iterable[Record]) -> dict[str, tuple[float, ...]]:
    """Return the strengths that each method gets beside its grid, from its best one of the selection.

    A method that diverged at every strength gets none.
    """
    best = choose(plan, (record for record in records if record.trial.phase == SELECTION))
    return {
        method: () if strength is None else extra_strengths(METHODS[method], plan.strengths[method], strength)
        for method, strength in best.items()
    }


def choose(plan: Plan, records: Iterable[Record]) -> dict[str, float | None]:
    """Return each method's strength with the lowest mean early-stopped loss over the selection seeds.

    A strength that diverged on any of them is out; a method that has none left gets None.
    """
    return {method: _best(arms) for method, arms in _grid(plan, records).items()}


def _best(arms: Sequence[Arm]) -> float | None:
    whole = [arm for arm in arms if arm.records and not arm.diverged]
    if not whole:
        return 0.0 if arms[0].method == "none" else None
    return min(whole, key=lambda arm: arm.spread(early_loss).mean).strength


def _grid(plan: Plan, records: Iterable[Record]) -> dict[str, tuple[Arm, ...]]:
    found = [record for record in records if record.trial.phase in (SELECTION, WIDENING)]
    tried = {
        method: {*strengths, *(record.strength for record in found if record.trial.method == method)}
        for method, strengths in plan.strengths.items()
    }
    return {
        method: tuple(_arm(method, strength, found) for strength in sorted(strengths))
        for method, strengths in tried.items()
    }


def _arm(method: str, strength: float, records: Iterable[Record]) -> Arm:
    own = sorted(
        (r for r in records if r.trial.method == method and r.strength == strength), key=lambda r: r.trial.seed
    )
    return Arm(method, strength, tuple(r for r in own if not r.diverged), sum(r.diverged for r in own))


def summarise(plan: Plan, records: Iterable[Record]) -> Summary:
    """Summarise a finished study."""
    order = list(plan.seeds)
    everything = sorted(records, key=lambda r: (order.index(r.trial.phase), r.trial.method, r.strength, r.trial.seed))
    chosen = choose(plan, everything)
    confirmed = [record for record in everything if record.trial.phase == CONFIRMATION]
    arms = {method: _arm(method, strength, confirmed) for method, strength in chosen.items() if strength is not None}
    comparisons = _compare(plan, arms)
    return Summary(plan, tuple(everything), _grid(plan, everything), chosen, arms, comparisons)


def _compare(plan: Plan, arms: Mapping[str, Arm]) -> dict[str, Comparison]:
    none = arms["none"]
    if none.diverged:
        return {}
    tests = {
        name: compare_pair(plan, arms[name], none) for name in plan.family if name in arms and not arms[name].diverged
    }
    # A method that could not be compared keeps its place in the family: leaving it out would favour the others.
    adjusted = holm({name: tests[name].p_value if name in tests else 1.0 for name in plan.family})
    level = LEVEL / len(plan.family)
    none_early, none_last = none.spread(early_loss).mean, none.spread(last_loss).mean
    return {
        name: Comparison(
            method=name,
            difference=test.mean,
            standard_error=test.standard_error,
            p_value=adjusted[name],
            smallest_effect=smallest_effect(test.standard_error, test.degrees, level=level, power=POWER),
            last_difference=arms[name].spread(last_loss).mean - none_last,
            last_against_early=arms[name].spread(last_loss).mean - none_early,
        )
        for name, test in tests.items()
    }


def compare_pair(plan: Plan, first: Arm, second: Arm) -> CorrectedTest:
    """Test two arms' early-stopped losses, paired by seed."""
    other = {record.trial.seed: early_loss(record) for record in second.records}
    differences = [early_loss(record) - other[record.trial.seed] for record in first.records]
    budget = plan.budget
    rows = budget.train_rows + budget.inner_rows
    return corrected_t_test(differences, training_rows=rows, validation_rows=budget.validation_rows)
