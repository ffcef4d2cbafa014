"""Fitting a study of data of one's own to the time of its budget, by measuring an epoch before the plan is made."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from dropkit.study.budgets import Budget
from dropkit.study.dataset import Dataset
from dropkit.study.grids import Grids
from dropkit.study.methods import METHODS
from dropkit.study.own import OwnNetwork
from dropkit.study.plan import Pack, Plan, make_plan
from dropkit.study.records import SELECTION, Trial
from dropkit.study.trainer import Trainer, recipe_of
from dropkit.study.wording import joined

__all__ = ["LEAST_EPOCHS", "fit_to_time", "measure_epochs"]

LEAST_EPOCHS = 10  # fewer show neither over-fitting nor what a method does against it
_SHARE_TO_MEASURE = 0.1  # of the budget's time; kinds that are not measured by then count as the slowest one that is

Seconds = dict[object, float]
Clock = Callable[[], float]


def fit_to_time(
    data: Dataset,
    budget: Budget,
    seed: int,
    grids: Grids,
    network: OwnNetwork | None = None,
    *,
    keep_epochs: bool = False,
    keep_methods: bool = False,
    clock: Clock = time.perf_counter,
) -> tuple[Budget, Grids]:
    """Reduce a plan to what fits the budget's time; epochs go first, then the least useful methods, never seeds.

    Args:
        data: The rows.
        budget: With the time, in `minutes`; without one nothing is measured.
        seed: The study's seed.
        grids: The strengths of every method.
        network: A network of the user's own. Default: the study's.
        keep_epochs: Whether the number of epochs is the user's own wish. Default: False.
        keep_methods: Whether the methods are the user's own wish. Default: False.
        clock: Returns seconds. Default: `time.perf_counter`.

    Returns:
        The budget, whose `fitted` says in words what was measured and left out, and the grids.
    """
    if budget.minutes is None:
        return budget, grids
    plan = make_plan(data, budget, seed, grids)
    measured = measure_epochs(plan, data, clock, network)
    limit = 60 * budget.minutes
    total = estimate = _estimate(plan, measured)
    if estimate > limit and not keep_epochs:
        epochs = max(int(budget.epochs * limit / estimate), min(LEAST_EPOCHS, budget.epochs))
        plan = make_plan(data, replace(budget, epochs=epochs), seed, grids)
        estimate = _estimate(plan, measured)
    while estimate > limit and not keep_methods and (least := _least_useful(plan)) is not None:
        kept = {name: grid for name, grid in plan.strengths.items() if name != least}
        plan = make_plan(data, plan.budget, seed, kept)
        estimate = _estimate(plan, measured)
    words = _words(budget, total, plan, estimate, [name for name in grids if name not in plan.strengths], measured)
    return replace(budget, epochs=plan.budget.epochs, fitted=words), plan.strengths


def measure_epochs(
    plan: Plan, data: Dataset, clock: Clock = time.perf_counter, network: OwnNetwork | None = None
) -> Seconds:
    """Return the seconds that one epoch of one model takes, by the kind of its recipe, as its pack trains."""
    kinds: dict[object, Pack] = {}
    for pack in plan.packs():
        if pack.phase == SELECTION:
            kinds.setdefault(_kind(plan, pack.trials[0]), pack)
    trainer = Trainer(replace(plan, budget=replace(plan.budget, epochs=1)), data, network)
    trainer.train(next(iter(kinds.values())).trials)  # the first one pays for what is loaded on first use
    found: Seconds = {}
    limit = _SHARE_TO_MEASURE * 60 * (plan.budget.minutes or 0)
    spent = 0.0
    for kind, pack in kinds.items():
        if spent > limit:
            found[kind] = max(found.values())
            continue
        began = clock()
        trainer.train(pack.trials)
        seconds = clock() - began
        spent += seconds
        # A fitted model has no epochs: its time is spread over them.
        epochs = plan.budget.epochs if recipe_of(pack.trials[0]).is_linear else 1
        found[kind] = seconds / len(pack.trials) / epochs
    return found


def _kind(plan: Plan, trial: Trial) -> object:
    strength = plan.strengths[trial.method][0] if trial.strength is None else trial.strength
    return METHODS[trial.method].recipe(strength).kind


def _estimate(plan: Plan, measured: Seconds) -> float:
    """Return how many seconds all models of a plan train."""
    return plan.budget.epochs * sum(measured[_kind(plan, trial)] for pack in plan.packs() for trial in pack.trials)


def _least_useful(plan: Plan) -> str | None:
    """Return the method to leave out next: the last one compared in the budget's order; dropout stays."""
    order = [name for name in plan.budget.methods if name in plan.family and name != "dropout"]
    return order[-1] if order else None


def _words(
    budget: Budget, total: float, plan: Plan, estimate: float, left_out: Sequence[str], measured: Seconds
) -> str:
    """Say what was measured and what follows from it."""
    longest = 1e3 * max(measured.values())
    text = f"an epoch of one network took up to {longest:.3g} ms here, the whole plan about {_minutes(total)}"
    parts = []
    if plan.budget.epochs < budget.epochs:
        parts.append(f"{plan.budget.epochs} epochs instead of {budget.epochs}")
    if left_out:
        parts.append(f"without {joined([METHODS[name].title for name in left_out])}")
    if parts:
        text += f"; to fit {_minutes(60 * (budget.minutes or 0))}, {joined(parts)}"
    if estimate > 60 * (budget.minutes or 0):
        text += f"; it will take about {_minutes(estimate)}, more than the budget's, for seeds are never left out"
    return text


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
