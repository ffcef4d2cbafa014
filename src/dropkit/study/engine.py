"""Running a study: selection, widening, confirmation; from the start or from where a run stopped."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dropkit.study.dataset import Dataset
from dropkit.study.methods import METHODS
from dropkit.study.own import OwnNetwork
from dropkit.study.plan import Pack
from dropkit.study.progress import Reporter
from dropkit.study.records import CONFIRMATION, SELECTION, WIDENING, Trial
from dropkit.study.storage import RunFolder
from dropkit.study.summary import choose, widen
from dropkit.study.trainer import Trainer
from dropkit.study.wording import joined

if TYPE_CHECKING:
    from dropkit.study.packed import Training

__all__ = ["train_all"]

Settled = Mapping[str, tuple[float, ...]]  # of each method, the strengths that an earlier phase chose for this one


def train_all(folder: RunFolder, data: Dataset, reporter: Reporter, network: OwnNetwork | None = None) -> None:
    """Train every pack of the plan that the journal does not hold yet."""
    plan = folder.plan
    trainer = Trainer(plan, data, network)
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
        trainings: list[Training] = []
        if trials:
            trainings = trainer.train(trials, reporter.epoch, folder.checkpoint(pack))
        else:
            reporter.skip(pack)
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
