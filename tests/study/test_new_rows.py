"""New rows that are not like the study's: how many, and which ones nothing is known of."""

from pathlib import Path

import numpy as np
import pytest

from dropkit import study
from dropkit.errors import DataError
from dropkit.study import Budget, Dataset
from dropkit.study.new_rows import ranges_of
from dropkit.study.preparation import CATEGORY, Column
from dropkit.study.splits import outer_split
from tests.helpers.command import call

pytestmark = pytest.mark.usefixtures("light_studies")

SMALL = {"methods": ["dropout"], "rates": [0.2], "network": [8], "epochs": 4}
HEADING = "age,since,city,kind"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of ages from 20 to 60, days of 2024, a category without gaps, and one with."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    lines = []
    for row in range(300):
        age = (20, 60)[row % 2] if row < 20 else int(rng.integers(20, 61))
        day = np.datetime64("2024-01-01") + (0 if row < 10 else 365 if row < 20 else int(rng.integers(0, 366)))
        kind = ("a", "b", "")[row % 3]
        lines.append(f"{age},{day},{('Oslo', 'Rome')[row % 2]},{kind},{age + rng.normal():.3f}")
    (folder / "table.csv").write_text("\n".join([f"{HEADING},y", *lines]) + "\n")
    return study.run(str(folder / "table.csv"), target="y", directory=folder / "run", **SMALL).directory


ORDINARY = "30,2024-05-01,Oslo,a"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (ORDINARY, ""),
        ("20,2024-12-31,Rome,", ""),  # the study has missing kinds, and both ends of the ranges
        ("30,2024-05-01,Paris,a", "1 with unknown categories"),
        ("30,2024-05-01,,a", "1 with missing values"),
        (",2024-05-01,Oslo,a", "1 with missing values"),
        ("30,,Oslo,a", "1 with missing values"),
        ("-inf,2024-05-01,Oslo,a", "1 with infinite numbers, taken as missing"),
        ("61,2024-05-01,Oslo,a", "1 with values beyond the study's range"),
        ("30,2025-01-01,Oslo,a", "1 with values beyond the study's range"),
        (
            ",2025-01-01,Paris,a",
            "1 with unknown categories, 1 with missing values, 1 with values beyond the study's range",
        ),
    ],
)
def test_rows_are_counted(run: Path, tmp_path: Path, row: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new.csv").write_text("\n".join([HEADING, ORDINARY, row]) + "\n")
    told = f"Of 2 rows: {words}." if words else ""
    assert study.predict(run, tmp_path / "new.csv").notes == ((told,) if told else ())
    assert call("predict", str(run), str(tmp_path / "new.csv")) == 0
    assert capsys.readouterr().err == (f"dropkit: {told}\n" if told else "")
    found = study.predict(run, tmp_path / "new.csv", method="dropout", samples=5, tolerance=1e6)
    assert found.notes[1:] == ((told,) if told else ())
    assert found.unsure.tolist() == [False, False]


@pytest.mark.parametrize(
    "row",
    [
        ",,,",
        ",,Paris,",
        "inf,,,c",
        "101,2024-05-01,Oslo,a",  # 60 and 40 years of range
        "-21,2024-05-01,Oslo,a",
        "30,2031-01-01,Oslo,a",
    ],
)
def test_rows_of_which_nothing_is_known_are_unsure_whatever_the_samples_say(
    run: Path, tmp_path: Path, row: str
) -> None:
    (tmp_path / "new.csv").write_text("\n".join([HEADING, row, ORDINARY, row]) + "\n")
    found = study.predict(run, tmp_path / "new.csv", method="dropout", samples=5, tolerance=1e6)
    assert found.unsure.tolist() == [True, False, True]
    assert found.notes[1].endswith("Unsure whatever the samples say: 2.")
    assert study.predict(run, tmp_path / "new.csv").unsure is None


@pytest.mark.parametrize(("age", "is_unsure"), [(100, False), (100.5, True), (-20, False), (-20.5, True)])
def test_the_limit_is_the_width_of_the_range(run: Path, tmp_path: Path, age: float, is_unsure: bool) -> None:
    (tmp_path / "new.csv").write_text(f"{HEADING}\n{age},2024-05-01,Oslo,a\n")
    found = study.predict(run, tmp_path / "new.csv", method="dropout", samples=5, tolerance=1e6)
    assert found.unsure.tolist() == [is_unsure]


def test_what_a_value_cannot_be_read_as_is_told_with_its_row(run: Path, tmp_path: Path) -> None:
    for row, words in (
        ("x,2024-05-01,Oslo,a", "'age' must hold numbers only, as in the study's table, got 'x' in row 3 below"),
        ("30,soon,Oslo,a", "'since' must hold dates only such as 2024-12-31, as in .*, got 'soon' in row 3 below"),
    ):
        (tmp_path / "new.csv").write_text("\n".join([HEADING, ORDINARY, ",,,", row]) + "\n")
        with pytest.raises(DataError, match=words):
            study.predict(run, tmp_path / "new.csv")


def test_rows_of_arrays_have_ranges_too(toy: Dataset, tiny: Budget, tmp_path: Path) -> None:
    """Ranges are those of all rows but the test rows."""
    directory = study.run(toy, budget=tiny, methods=["dropout"], rates=[0.2], directory=tmp_path / "run").directory
    _, rest = outer_split(toy, tiny, 0)
    high, low = toy.inputs[rest].max(0), toy.inputs[rest].min(0)
    assert study.predict(directory, np.stack([high, low]).astype(np.float64)).notes == ()
    rows = np.repeat(toy.inputs[rest][:1], 3, 0)
    rows[1, 2] = high[2] * 1.01
    rows[2, 0] = 1e6
    found = study.predict(directory, rows, method="dropout", samples=20, level=0.01)  # at which samples always agree
    assert found.unsure.tolist() == [False, False, True]
    assert found.notes[1] == "Of 3 rows: 2 with values beyond the study's range. Unsure whatever the samples say: 1."


def test_ranges_leave_gaps_and_categories_out() -> None:
    inputs = np.array([[1.0, 0.0, np.nan], [np.nan, 1.0, np.nan], [-3.0, 1.0, np.nan]])
    columns = (Column("a"), Column("b", CATEGORY, ("x", "y")), Column("c"))
    assert ranges_of(columns, inputs) == ((-3.0, 1.0), None, None)
    assert ranges_of((), inputs[:, :2]) == ((-3.0, 1.0), (0.0, 1.0))
