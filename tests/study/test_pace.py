"""How long methods take to fit their training rows: exact cases."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dropkit.study.findings import Findings
from dropkit.study.output import write_files
from dropkit.study.pace import Pace, epochs_to_reach, paces
from dropkit.study.records import CONFIRMATION, Record, Trial, curves
from dropkit.study.stability import stability
from dropkit.study.statements import statements
from dropkit.study.summary import Arm, Summary


@pytest.mark.parametrize(
    ("losses", "target", "expected"),
    [
        ([1.0, 0.5, 0.25], 0.5, 2.0),  # exactly after an epoch
        ([1.0, 0.5, 0.25], 0.375, 2.5),  # halfway between two
        ([1.0, 0.5, 0.25], 0.4375, 2.25),
        ([1.0, 0.5, 0.25], 1.0, 1.0),
        ([1.0, 0.5, 0.25], 7.0, 1.0),  # sooner than the first epoch ends is not measured
        ([1.0, 0.5, 0.25], 0.2, None),
        ([1.0, 0.25, 0.5, 0.125], 0.3125, 1.0 + 0.6875 / 0.75),  # the first time, though the loss rises again
        ([1.0, 1.5, 0.5], 0.75, 2.75),
        ([], 1.0, None),
    ],
)
def test_epochs_to_reach(losses: list[float], target: float, expected: float | None) -> None:
    assert epochs_to_reach(losses, target) == expected


def run(method: str, seed: int, training: list[float], inner: list[float]) -> Record:
    found = curves(
        training_loss=training, inner_loss=inner, validation_loss=inner,
        accuracy=[0.5] * 4, auc=[0.5] * 4, calibration_error=[0.1] * 4,
    )  # fmt: skip
    return Record(Trial(CONFIRMATION, method, 0.0 if method == "none" else 0.5, seed), found)


@pytest.fixture
def summary(made_up: Callable[..., Summary]) -> Summary:
    """None stops at epoch 2 of seed 2 and at epoch 4 of seed 3; weight decay diverged on every seed."""
    plain = made_up(dict.fromkeys(("none", "dropout", "weight_decay"), lambda strength, seed: 0.3))
    none = (run("none", 2, [1, 0.5, 0.25, 0.2], [3, 1, 2, 2]), run("none", 3, [1, 0.8, 0.4, 0.2], [4, 3, 2, 1]))
    dropout = (run("dropout", 2, [1, 0.75, 0.6, 0.4], [1] * 4), run("dropout", 3, [1, 0.9, 0.8, 0.7], [1] * 4))
    arms = {"none": Arm("none", 0, none), "dropout": Arm("dropout", 0.5, dropout)}
    return replace(plain, arms={**arms, "weight_decay": Arm("weight_decay", 1.0, (), 2)})


def test_the_pace_is_relative_to_none_of_the_same_seed(summary: Summary) -> None:
    # Seed 2: .5 lies halfway between epochs 3 and 4, and none had it after epoch 2. Seed 3 does not get to .2.
    assert paces(summary) == {"dropout": Pace("dropout", {2: pytest.approx(3.5 / 2), 3: None})}
    found = paces(summary)["dropout"]
    assert len(found.reached) == 1
    assert found.median == pytest.approx(1.75)


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        ([1.0, 2.0, 4.0], 2.0),
        ([4.0, None, 1.0], 4.0),  # later than 4 in any case, so the middle one is known
        ([1.0, 2.0, None, None], 2.0),  # half are there
        ([4.2, None, None], None),  # the only one that got there is no median
        ([None], None),
    ],
)
def test_the_median_counts_runs_that_did_not_get_there(relative: list[float | None], expected: float | None) -> None:
    assert Pace("dropout", dict(enumerate(relative))).median == expected


def test_what_the_report_and_the_files_say(summary: Summary, tmp_path: Path) -> None:
    findings = Findings(summary, stability(summary), (), (), {})
    assert "dropout at p = 0.5 needed 1.8 times the epochs, and 1 of 2 seeds got there" in statements(findings)[-1]
    slow = replace(summary.arms["dropout"], records=summary.arms["dropout"].records[1:])
    never = replace(summary, arms={**summary.arms, "dropout": slow})
    said = statements(Findings(never, stability(summary), (), (), {}))[-1]
    assert "dropout at p = 0.5 got there on none of 1 seeds" in said
    slow = replace(slow, records=(*summary.arms["dropout"].records, run("dropout", 4, [1] * 4, [1] * 4)))
    none = replace(summary.none, records=(*summary.none.records, run("none", 4, [1, 0.5, 0.4, 0.2], [4, 3, 2, 1])))
    few = replace(summary, arms={**summary.arms, "none": none, "dropout": slow})
    said = statements(Findings(few, stability(summary), (), (), {}))[-1]
    assert "dropout at p = 0.5 got there on only 1 of 3 seeds" in said
    records = tuple(record for arm in summary.arms.values() for record in arm.records)
    seconds = {pack.name: 1.0 for pack in summary.plan.packs()}
    write_files(tmp_path, replace(findings, summary=replace(summary, records=records), seconds=seconds))
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [(row["method"], row["seed"], row["relative_epochs"]) for row in rows] == [
        *(("none", "2", ""), ("none", "3", ""), ("dropout", "2", "1.75"), ("dropout", "3", ""))
    ]
    written = json.loads((tmp_path / "results.json").read_text())["relative_epochs"]
    assert written == {"dropout": {"median": 1.75, "seeds_within": 1, "seeds": 2}}


def test_seeds_on_which_none_diverged_are_left_out(summary: Summary) -> None:
    only = Arm("none", 0, summary.none.records[1:], 1)
    assert paces(replace(summary, arms={**summary.arms, "none": only})) == {"dropout": Pace("dropout", {3: None})}
