"""How sure the advice is: what it would have been without each one of the confirmation seeds."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dropkit.study.records import CONFIRMATION
from dropkit.study.summary import Summary, summarise
from dropkit.study.verdict import CANNOT_TELL, HELPS, NOTHING, Verdict, judge
from dropkit.study.wording import joined

__all__ = ["Stability", "stability"]

_FEWEST = 3  # confirmation seeds: without one of them a test needs two


@dataclass(frozen=True)
class Stability:
    """The advice, and what it would have been without each confirmation seed; choices of the selection stay.

    Args:
        summary: The study.
        verdict: The advice.
        without: From a confirmation seed to the advice without it; empty where there are fewer than three.
    """

    summary: Summary
    verdict: Verdict
    without: Mapping[int, Verdict]

    @property
    def changed(self) -> tuple[int, ...]:
        """The seeds without which the advice would be another: of another kind, or for other methods."""
        return tuple(seed for seed, other in self.without.items() if _advice(other) != _advice(self.verdict))

    @property
    def sentence(self) -> str:
        """How often the advice changes, in words; nothing where it could not be told."""
        seeds, changed = len(self.without), self.changed
        if not seeds:
            return ""
        if not changed:
            return f"The advice is the same without any one of the {seeds} confirmation seeds."
        others = Counter(self._words(self.without[seed]) for seed in changed)
        into = joined([f"{words} ({count} of {seeds})" for words, count in others.items()])
        cases = "1 case" if len(changed) == 1 else f"{len(changed)} cases"
        return f"Without one of the {seeds} confirmation seeds the advice would change in {cases}: {into}."

    def _words(self, verdict: Verdict) -> str:
        if verdict.kind in (NOTHING, CANNOT_TELL):
            return "nothing to gain" if verdict.kind == NOTHING else "cannot tell"
        labels = [self.summary.arms[name].label for name in verdict.recommended]
        return labels[0] if verdict.kind == HELPS else f"a tie of {joined(labels)}"


def _advice(verdict: Verdict) -> tuple[str, tuple[str, ...]]:
    return verdict.kind, verdict.recommended


def stability(summary: Summary) -> Stability:
    """Judge a finished study again without each of its confirmation seeds."""
    plan = summary.plan
    seeds = plan.seeds[CONFIRMATION]
    if len(seeds) < _FEWEST:
        return Stability(summary, judge(summary), {})
    fewer = replace(plan, budget=replace(plan.budget, confirmation_seeds=len(seeds) - 1))
    without = {}
    for seed in seeds:
        kept = [r for r in summary.records if r.trial.phase != CONFIRMATION or r.trial.seed != seed]
        without[seed] = judge(summarise(fewer, kept))
    return Stability(summary, judge(summary), without)
