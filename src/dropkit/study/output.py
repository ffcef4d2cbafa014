"""The result files of a run: results.csv, times.csv and results.json."""

import csv
import io
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dropkit import __version__
from dropkit.study._atomic import write_atomic
from dropkit.study.findings import Findings
from dropkit.study.methods import METHODS
from dropkit.study.records import Record, Scores
from dropkit.study.summary import Arm, Spread, early_loss, last_loss

__all__ = ["as_json", "columns", "write_files"]

_SCORES = ("training_loss", "validation_loss", "gap", "accuracy")


def columns(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the heading of results.csv for a plan's data."""
    scores = [f"{epoch}_{_title(data, score)}" for epoch in ("early", "last") for score in _SCORES]
    return ("phase", "method", "strength", "seed", "status", "early_epoch", *scores)


def _title(data: Mapping[str, Any], score: str) -> str:
    return "r_squared" if score == "accuracy" and data["task"] == "regression" else score


def write_files(path: Path, findings: Findings) -> None:
    """Write all result files into a run directory."""
    summary = findings.summary
    write_atomic(path / "results.csv", _csv(columns(summary.plan.data), map(_row, summary.records)))
    write_atomic(path / "times.csv", _csv(("pack", "trials", "epochs", "seconds"), _times(findings)))
    write_atomic(path / "results.json", json.dumps(as_json(findings), indent=1, ensure_ascii=False) + "\n")


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _row(record: Record) -> list[Any]:
    trial = record.trial
    head = [trial.phase, trial.method, repr(record.strength), trial.seed]
    if record.diverged:
        return [*head, f"diverged in epoch {record.diverged_at}", "", *[""] * (2 * len(_SCORES))]
    scores = [f"{getattr(at, name):.10g}" for at in (record.early, record.last) for name in _SCORES]
    return [*head, "complete", record.curves.early_epoch, *scores]


def _times(findings: Findings) -> Iterable[Sequence[Any]]:
    plan = findings.summary.plan
    for pack in plan.packs():
        yield pack.name, len(pack.trials), plan.budget.epochs, f"{findings.seconds.get(pack.name, 0.0):.2f}"


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
        },
        "cautions": list(findings.cautions),
        "methods": {name: _arm(arm, plan.data) for name, arm in summary.arms.items()},
        "comparisons": {name: asdict(comparison) for name, comparison in summary.comparisons.items()},
        "test_rows": [asdict(test) for test in findings.test_rows],
        "plan": json.loads(plan.to_json()),
        "seconds": round(sum(findings.seconds.values()), 2),
        "versions": {"dropkit": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _arm(arm: Arm, data: Mapping[str, Any]) -> dict[str, Any]:
    if not arm.records:
        return {"strength": arm.strength, "seeds": 0, "diverged": arm.diverged}

    def spread(found: Spread) -> dict[str, float]:
        return {"mean": found.mean, "deviation": found.deviation}

    def scores(at: Scores) -> dict[str, float]:
        return {_title(data, name): getattr(at, name) for name in _SCORES}

    early = [scores(record.early) for record in arm.records]
    last = [scores(record.last) for record in arm.records]
    return {
        "strength": arm.strength,
        "seeds": len(arm.records),
        "diverged": arm.diverged,
        "early_epochs": [record.curves.early_epoch for record in arm.records],
        "early_validation_loss": spread(arm.spread(early_loss)),
        "last_validation_loss": spread(arm.spread(last_loss)),
        "early": {name: sum(one[name] for one in early) / len(early) for name in early[0]},
        "last": {name: sum(one[name] for one in last) / len(last) for name in last[0]},
    }
