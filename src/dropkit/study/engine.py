"""Running a study: selection, widening, confirmation; from the start or from where a run stopped."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dropkit.study.dataset import Dataset
from dropkit.study.methods import METHODS
from dropkit.study.own import OwnNetwork, train_own
from dropkit.study.packed import Model, Training, train
from dropkit.study.plan import Pack, Plan
from dropkit.study.progress import Progress, ProgressCallback
from dropkit.study.records import CONFIRMATION, SELECTION, WIDENING, Trial
from dropkit.study.splits import Split, outer_split, seed_key, seed_split
from dropkit.study.storage import RunFolder
from dropkit.study.summary import choose, widen
from dropkit.study.wording import joined

__all__ = ["train_all"]

Settled = Mapping[str, tuple[float, ...]]  # of each method, the strengths that an earlier phase chose for this one


def train_all(folder: RunFolder, data: Dataset, progress: ProgressCallback, network: OwnNetwork | None = None) -> None:
    """Train every pack of the plan that the journal does not hold yet."""
    plan = folder.plan
    reporter = _Reporter(plan, progress)
    splits = _Splits(plan, data)
    settled: dict[str, Settled] = {}
    for pack in plan.packs():
        if pack.phase not in settled:
            settled[pack.phase] = _settle(folder, pack.phase)
            reporter.note(_note(pack.phase, settled[pack.phase]))
        if folder.is_finished(pack):
            reporter.skip(pack)
            continue
        trials = _runnable(pack, settled[pack.phase])
        reporter.begin(pack)
        began = time.perf_counter()
        models = [Model(seed_key(plan.seed, trial.seed), _recipe(trial)) for trial in trials]
        trainings = []
        if not trials:
            reporter.skip(pack)
        else:
            checkpoint = folder.checkpoint(pack)
            train_these = partial(train_own, network) if network and not models[0].recipe.is_linear else train
            trainings = train_these(models, data, splits.of(trials), plan.budget, reporter.epoch, checkpoint)
        folder.save_pack(pack, trials, trainings, time.perf_counter() - began)
        reporter.diverged(trials, trainings)


def _settle(folder: RunFolder, phase: str) -> Settled:
    """Return the strengths of a phase that follow from the records of those before; none for the selection's."""
    records = folder.records().values()
    if phase == WIDENING:
        return widen(folder.plan, records)
    if phase == CONFIRMATION:
        chosen = choose(folder.plan, records)
        return {name: () if strength is None else (strength,) for name, strength in chosen.items()}
    return {}


def _runnable(pack: Pack, settled: Settled) -> list[Trial]:
    """Return the pack's trials with their strengths, without those that got none."""
    if pack.phase == SELECTION:
        return list(pack.trials)
    with_one = [trial for trial in pack.trials if trial.slot < len(settled[trial.method])]
    return [trial.with_strength(settled[trial.method][trial.slot]) for trial in with_one]


def _recipe(trial: Trial) -> Any:
    return METHODS[trial.method].recipe(trial.strength or 0.0)


def _note(phase: str, settled: Settled) -> str:
    """Say which strengths were settled."""
    if phase == WIDENING:
        extra = [
            f"{METHODS[name].title} {joined([METHODS[name].label(strength) for strength in strengths])}"
            for name, strengths in settled.items()
            if strengths
        ]
        return f"tried beside the grids: {'; '.join(extra)}" if extra else ""
    labels = [
        f"{METHODS[name].title} {METHODS[name].label(strengths[0])}".strip() if strengths else f"{name} diverged"
        for name, strengths in settled.items()
        if name != "none"
    ]
    return f"chosen: {', '.join(labels)}" if labels else ""


class _Splits:
    """The splits of the seeds, drawn when first needed."""

    def __init__(self, plan: Plan, data: Dataset) -> None:
        self.plan, self.data = plan, data
        _, self.rest = outer_split(data, plan.budget, plan.seed)
        self.known: dict[int, Split] = {}

    def of(self, trials: Sequence[Trial]) -> dict[int, Split]:
        keys = {seed_key(self.plan.seed, trial.seed) for trial in trials}
        for key in keys - self.known.keys():
            self.known[key] = seed_split(self.data, self.rest, self.plan.budget, key)
        return {key: self.known[key] for key in keys}


class _Reporter:
    """Counts epochs over all models and passes the count on."""

    def __init__(self, plan: Plan, progress: ProgressCallback) -> None:
        self.progress, self.epochs = progress, plan.budget.epochs
        self.total = sum(len(pack.trials) for pack in plan.packs()) * self.epochs
        self.done, self.phase, self.size = 0, "selection", 0

    def _tell(self, note: str = "") -> None:
        self.progress(Progress(self.phase, self.done, self.total, note))

    def begin(self, pack: Pack) -> None:
        self.phase, self.size = pack.phase, len(pack.trials)
        self._tell()

    def skip(self, pack: Pack) -> None:
        self.phase = pack.phase
        self.done += len(pack.trials) * self.epochs
        self._tell()

    def epoch(self) -> None:
        self.done += self.size
        self._tell()

    def note(self, text: str) -> None:
        self._tell(text)

    def diverged(self, trials: Sequence[Trial], trainings: Sequence[Training]) -> None:
        for trial, training in zip(trials, trainings, strict=True):
            if training.diverged_at is not None:
                method = METHODS[trial.method]
                label = f"{method.title} {method.label(trial.strength or 0.0)}".strip()
                self._tell(
                    f"{label}, seed {trial.seed}: the loss became NaN or infinite in epoch {training.diverged_at}"
                )
