"""The result files of a run: results.csv, times.csv and results.json."""

import csv
import io
import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Any

from dropkit import __version__
from dropkit.study._atomic import write_atomic
from dropkit.study.findings import Findings
from dropkit.study.measures import MEASURES, Measured
from dropkit.study.methods import METHODS
from dropkit.study.metrics import metrics_of
from dropkit.study.pace import Pace, paces
from dropkit.study.records import CONFIRMATION, Record, Scores
from dropkit.study.summary import Arm, Spread, early_loss, last_loss
from dropkit.study.test_rows import OnTestRows, SavedOnTestRows

__all__ = ["as_json", "columns", "write_files"]

_TIMES = ("phase", "method", "strength", "seed", "epochs", "seconds")
_LOSSES = ("training_loss", "validation_loss", "gap")


def columns(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the heading of results.csv for a plan's data."""
    scores = (*_LOSSES, *(metric.name for metric in metrics_of(data["task"])))
    titles = [f"{epoch}_{score}" for epoch in ("early", "last") for score in scores]
    return ("phase", "method", "strength", "seed", "status", "early_epoch", "relative_epochs", *titles)


def _scores(at: Scores) -> dict[str, float]:
    return {name: getattr(at, name) for name in _LOSSES} | dict(at.metrics)


def write_files(path: Path, findings: Findings) -> None:
    """Write all result files into a run directory."""
    summary = findings.summary
    heading = columns(summary.plan.data)
    found = paces(summary)
    rows = [_row(record, heading, found.get(record.trial.method)) for record in summary.records]
    write_atomic(path / "results.csv", _csv(heading, rows))
    write_atomic(path / "times.csv", _csv(_TIMES, _times(findings)))
    write_atomic(path / "results.json", json.dumps(as_json(findings), indent=1, ensure_ascii=False) + "\n")


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _row(record: Record, heading: Sequence[str], pace: Pace | None) -> list[Any]:
    trial = record.trial
    head = [trial.phase, trial.method, repr(record.strength), trial.seed]
    if record.diverged:
        row = [*head, f"diverged in epoch {record.diverged_at}"]
        return row + [""] * (len(heading) - len(row))
    relative = pace.relative.get(trial.seed) if pace is not None and trial.phase == CONFIRMATION else None
    found = [relative, *(value for at in (record.early, record.last) for value in _scores(at).values())]
    written = ["" if value is None or isnan(value) else f"{value:.10g}" for value in found]
    return [*head, "complete", record.curves.early_epoch, *written]


def _times(findings: Findings) -> Iterable[Sequence[Any]]:
    """Models of a pack train together, so the time of one is its share."""
    records = findings.summary.records
    packs = {trial.name: pack.name for pack in findings.summary.plan.packs() for trial in pack.trials}
    models = Counter(packs[record.trial.name] for record in records)
    for record in records:
        trial, pack = record.trial, packs[record.trial.name]
        epochs = record.diverged_at or record.curves.epochs
        seconds = findings.seconds[pack] / models[pack]
        yield trial.phase, trial.method, repr(record.strength), trial.seed, epochs, f"{seconds:.4f}"


def as_json(findings: Findings) -> dict[str, Any]:
    """Return verdict, comparisons, cautions and settings as plain data."""
    import torch

    summary, plan = findings.summary, findings.summary.plan
    return {
        "verdict": {
            "kind": findings.verdict.kind,
            "sentence": findings.verdict.sentence,
            "recommended": [
                {"method": name, "strength": summary.chosen[name], "strength_name": METHODS[name].symbol}
                for name in findings.verdict.recommended
            ],
            "seeds_that_change_it": list(findings.stability.changed),
        },
        "cautions": list(findings.cautions),
        "methods": {name: _arm(arm) for name, arm in summary.arms.items()},
        "relative_epochs": {
            name: {"median": pace.median, "seeds_within": len(pace.reached), "seeds": len(pace.relative)}
            for name, pace in paces(summary).items()
        },
        "comparisons": {name: asdict(comparison) for name, comparison in summary.comparisons.items()},
        "test_rows": [_on_test_rows(test) for test in findings.test_rows],
        "saved_model": None if findings.saved is None else _saved(findings.saved),
        "measures": {
            measure.name: {
                "at": measure.unit,
                "methods": {name: _measured(found) for name, found in findings.measures[measure.name].items()},
            }
            for measure in MEASURES
            if measure.name in findings.measures
        },
        "plan": json.loads(plan.to_json()),
        "seconds": round(sum(findings.seconds.values()), 2),
        "versions": {"dropkit": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _measured(found: Measured) -> dict[str, Any]:
    mean, deviation = found.mean, found.deviation
    points = [{"at": at, "mean": mean[at], "deviation": deviation[at]} for at in mean]
    return {"models": len(found.models), "units_left_out": found.left_out, "values": points}


def _arm(arm: Arm) -> dict[str, Any]:
    if not arm.records:
        return {"strength": arm.strength, "seeds": 0, "diverged": arm.diverged}

    def spread(found: Spread) -> dict[str, float]:
        return {"mean": found.mean, "deviation": found.deviation}

    def means(found: Sequence[dict[str, float]]) -> dict[str, float | None]:
        return {name: _known(sum(one[name] for one in found) / len(found)) for name in found[0]}

    return {
        "strength": arm.strength,
        "seeds": len(arm.records),
        "diverged": arm.diverged,
        "early_epochs": [record.curves.early_epoch for record in arm.records],
        **({"learned_rates": arm.learned_rates} if arm.learned_rates else {}),
        "early_validation_loss": spread(arm.spread(early_loss)),
        "last_validation_loss": spread(arm.spread(last_loss)),
        "early": means([_scores(record.early) for record in arm.records]),
        "last": means([_scores(record.last) for record in arm.records]),
    }


def _known(value: float) -> float | None:
    """Return the value, or None for an undefined one: JSON has no NaN."""
    return None if isnan(value) else value


def _on_test_rows(test: OnTestRows) -> dict[str, Any]:
    sides = {side: getattr(test, side).items() for side in ("metrics", "none_metrics")}
    return asdict(test) | {side: {name: _known(value) for name, value in items} for side, items in sides.items()}


def _saved(saved: SavedOnTestRows) -> dict[str, Any]:
    return asdict(saved) | {"metrics": {name: _known(value) for name, value in saved.metrics.items()}}
