"""The verdict: from comparisons to one honest sentence of advice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dropkit.study.methods import METHODS
from dropkit.study.plan import LEVEL, POWER, RELEVANT
from dropkit.study.statistics import smallest_effect
from dropkit.study.summary import Arm, Comparison, Summary, compare_pair, early_loss, last_loss
from dropkit.study.wording import capital, change, detectable, joined, p_value, percent

__all__ = ["CANNOT_TELL", "FEW_SEEDS", "HELPS", "NOTHING", "TIE", "Verdict", "judge"]

HELPS = "helps"
TIE = "tie"
NOTHING = "nothing"
CANNOT_TELL = "cannot tell"

FEW_SEEDS = 8  # with fewer confirmation seeds the advice is rough


@dataclass(frozen=True)
class Verdict:
    """The advice of a study.

    Args:
        kind: ``"helps"``: one method is better than the rest; ``"tie"``: several help and cannot be told apart;
            ``"nothing"``: an effect worth having would have been seen, and was not; ``"cannot tell"``.
        recommended: The recommended methods, more than one in a tie; empty where none is recommended.
        leader: The method whose mean is lowest; None where nothing was compared.
        sentence: The advice.
    """

    kind: str
    recommended: tuple[str, ...]
    leader: str | None
    sentence: str

    @property
    def saved(self) -> str:
        """The method whose models are saved: the first that is recommended, or none."""
        return self.recommended[0] if self.recommended else "none"


def judge(summary: Summary) -> Verdict:
    """Judge a finished study."""
    if not summary.comparisons:
        return Verdict(CANNOT_TELL, (), None, _nothing_compared(summary))
    ranked = sorted(summary.comparisons.values(), key=lambda comparison: comparison.difference)
    best = ranked[0]
    if best.helps:
        tied = [other for other in ranked if other.helps and (other is best or _is_tie(summary, best, other))]
        recommended = tuple(name for name in summary.plan.family if name in {other.method for other in tied})
        kind, in_words = (TIE, _tie) if len(tied) > 1 else (HELPS, _helps)
    else:
        recommended = ()
        resolved = len(ranked) == len(summary.plan.family) and all(_resolved(summary, other) for other in ranked)
        kind, in_words = (NOTHING, _nothing) if resolved else (CANNOT_TELL, _cannot_tell)
    write: Callable[[Summary, Sequence[Comparison]], str] = in_words
    order = [summary.comparisons[name] for name in recommended] or [best]
    sentence = write(summary, order) + _about_dropout(summary, recommended) + _about_seeds(summary)
    return Verdict(kind, recommended, best.method, sentence)


def _is_tie(summary: Summary, first: Comparison, second: Comparison) -> bool:
    """Whether two methods differ by less than the smallest effect that a test of the two could have detected."""
    test = compare_pair(summary.plan, summary.arms[first.method], summary.arms[second.method])
    return abs(test.mean) <= smallest_effect(test.standard_error, test.degrees, level=LEVEL, power=POWER)


def _resolved(summary: Summary, comparison: Comparison) -> bool:
    """Whether an effect worth having would have been seen: what "no difference" means here."""
    worth_having = RELEVANT * summary.none.spread(early_loss).mean
    return comparison.hurts or comparison.smallest_effect <= worth_having


def _arm(summary: Summary, comparison: Comparison) -> Arm:
    return summary.arms[comparison.method]


def _share(summary: Summary, value: float) -> float:
    return value / summary.none.spread(early_loss).mean


def _seeds(summary: Summary) -> int:
    return summary.plan.budget.confirmation_seeds


def _helps(summary: Summary, order: Sequence[Comparison]) -> str:
    best = order[0]
    loss, none = _arm(summary, best).spread(early_loss).mean, summary.none.spread(early_loss).mean
    return (
        f"Use {_arm(summary, best).label}, with early stopping: it lowers the validation loss of early stopping alone "
        f"from {none:.3f} to {loss:.3f}, {change(_share(summary, best.difference))} ({_evidence([best])}, "
        f"{_seeds(summary)} fresh seeds)."
    )


def _tie(summary: Summary, order: Sequence[Comparison]) -> str:
    labels = [_arm(summary, comparison).label for comparison in order]
    shares = [percent(_share(summary, comparison.difference)) for comparison in order]
    return (
        f"Use {joined(labels, 'or')}, with early stopping: {'both' if len(order) == 2 else 'all'} beat early stopping "
        f"alone, with a validation loss {joined(shares)} lower ({_evidence(order)}, {_seeds(summary)} fresh seeds), "
        "and between them it is a tie."
    )


def _nothing(summary: Summary, order: Sequence[Comparison]) -> str:
    effects = [comparison.smallest_effect for comparison in summary.comparisons.values() if not comparison.hurts]
    sure = f", and {detectable(_share(summary, max(effects)))} would have been seen" if effects else ""
    return (
        f"Nothing beats {_alone(summary)} here: the best of the rest, {_arm(summary, order[0]).label}, has a "
        f"validation loss {change(_share(summary, order[0].difference))}{sure} ({_seeds(summary)} fresh seeds)."
    )


def _cannot_tell(summary: Summary, order: Sequence[Comparison]) -> str:
    best, alone = order[0], _alone(summary)
    return (
        f"Cannot tell with this many rows and seeds: the best of the rest, {_arm(summary, best).label}, has a "
        f"validation loss {change(_share(summary, best.difference))} than {alone} ({p_value(best.p_value)} after "
        f"correction, {_seeds(summary)} fresh seeds). {_hidden(summary)} {capital(alone)} is the simplest choice."
    )


def _hidden(summary: Summary) -> str:
    """Name the comparison that could have hidden most, or the methods that could not be compared."""
    unresolved = [comparison for comparison in summary.comparisons.values() if not _resolved(summary, comparison)]
    if not unresolved:
        missing = [METHODS[name].title for name in summary.plan.family if name not in summary.comparisons]
        return f"{capital(joined(missing))} diverged and could not be compared."
    widest = max(unresolved, key=lambda comparison: comparison.smallest_effect)
    share = percent(_share(summary, widest.smallest_effect))
    return f"Of {_arm(summary, widest).label}, a change below about {share} could have been missed."


def _alone(summary: Summary) -> str:
    """Name the alternative to every method: stopping early, where that alone is worth having."""
    early, last = summary.none.spread(early_loss).mean, summary.none.spread(last_loss).mean
    return "early stopping alone" if last > early * (1 + RELEVANT) else "no regularisation"


def _nothing_compared(summary: Summary) -> str:
    if summary.none.diverged:
        return (
            f"Cannot tell: training without regularisation diverged on {summary.none.diverged} of {_seeds(summary)} "
            "seeds, so there is nothing to compare with; lower the learning rate of "
            f"{summary.plan.budget.learning_rate:g}."
        )
    return "Cannot tell: every method diverged, so there is nothing to compare with training without regularisation."


def _evidence(order: Sequence[Comparison]) -> str:
    weakest = max(comparison.p_value for comparison in order)
    strength = "strong evidence" if weakest < LEVEL / 5 else "evidence"
    values = list(dict.fromkeys(p_value(comparison.p_value) for comparison in order))
    return f"{strength}: {joined(values)} after correction"


def _about_seeds(summary: Summary) -> str:
    return f" Only {_seeds(summary)} seeds, so this is rough." if _seeds(summary) < FEW_SEEDS else ""


def _about_dropout(summary: Summary, recommended: Sequence[str]) -> str:
    """Say what is known of dropout where the advice is not about it: it is what the study was asked about."""
    dropout = summary.comparisons.get("dropout")
    if dropout is None or not recommended or "dropout" in recommended:
        return ""
    label, share = _arm(summary, dropout).label, change(_share(summary, dropout.difference))
    if dropout.helps:
        return f" {capital(label)} helps less ({share})."
    if dropout.hurts:
        return f" {capital(label)} hurts ({share})."
    if _resolved(summary, dropout):
        return f" {capital(label)} makes no difference ({share})."
    effect = percent(_share(summary, dropout.smallest_effect))
    return f" Whether {label} helps cannot be told ({share}, where about {effect} could have been detected)."
