"""Tables of a user's own that cannot be studied: one line says why."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dropkit.errors import ArgumentError, DataError
from dropkit.study.tabular import load_table
from tests.helpers.tables import ROWS, people, write


def with_column(name: str, values: Callable[[int], object]) -> Callable[[Path], Path]:
    return lambda path: write(path, people() | {name: [values(row) for row in range(ROWS)]})


BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda path: None, "cannot be read: No such file"),
    ("directory", lambda path: path.mkdir(), "is a directory"),
    ("empty", lambda path: path.write_text(""), "is empty"),
    ("blank", lambda path: path.write_text(" \n\n"), "is empty"),
    ("heading alone", lambda path: path.write_text("a,churned\n"), "no rows below its heading"),
    ("too few fields", lambda path: path.write_text("a,churned\n1,2\n3\n"), "ragged: line 3 has 1 fields"),
    ("too many fields", lambda path: path.write_text("a,churned\n1,2,3\n"), "ragged: line 2 has 3 fields"),
    ("noise", lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "no text in UTF-8"),
    ("zeros", lambda path: path.write_bytes(b"a,b\n\0\0,1\n"), "zero bytes"),
    ("open quote", lambda path: path.write_text('a,churned\n"1,2\n'), "is no CSV: line"),
    ("unnamed", lambda path: path.write_text("a,,churned\n1,2,3\n"), "column 2 has no name"),
    ("twice", lambda path: path.write_text("a,a,churned\n1,2,3\n"), "two columns are named 'a'"),
    ("no target", lambda path: path.write_text("a,b\n1,2\n"), "'churned' is no column of .*Its columns: a, b"),
    ("one class", with_column("churned", lambda row: "no"), "always 'no': there is nothing to predict"),
    ("constant number", with_column("churned", lambda row: 4.5), "always '4.5'"),
    ("missing target", with_column("churned", lambda row: ""), "every value of the target 'churned' is missing"),
    ("rare class", with_column("churned", lambda row: "abc"[(row > 190) + (row > 197)]), "class 'c' .* has 2 of 200"),
    ("many classes", with_column("churned", lambda row: f"name {row % 150}"), "150 different values"),
    ("percent", with_column("churned", lambda row: f"{row}%"), "than 100 classes; signs of percent.*write 0 for '0%'"),
    ("a date", with_column("churned", lambda row: f"2024-01-{row % 20 + 1:02d}"), "holds dates"),
    ("infinite target", with_column("churned", lambda row: "inf" if row == 4 else row / 7), "in 1 of 200 rows"),
    ("huge target", with_column("churned", lambda row: f"{row / 7}e300"), "Multiply it by a power of ten"),
    ("tiny target", with_column("churned", lambda row: f"{row / 7}e-300"), "Multiply it by a power of ten"),
    ("narrow target", with_column("churned", lambda row: 1700000000 + row % 37), "Subtract a constant"),
    ("target alone", lambda path: write(path, {"churned": people()["churned"]}), "no column to predict 'churned' from"),
    ("useless", lambda path: write(path, {"x": [1] * ROWS, "churned": people()["churned"]}), "x: left out: always '1'"),
    ("few rows", lambda path: write(path, {name: column[:45] for name, column in people().items()}), "needs 50"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_unfit_files_are_refused_in_one_line(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "table.csv"
    make(path)
    with pytest.raises((DataError, ArgumentError), match=message) as caught:
        load_table(str(path), "churned")
    assert "\n" not in str(caught.value)
    assert "table.csv" in str(caught.value)


def test_noise_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "noise.parquet").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(DataError, match="is no Parquet file: it does not begin with PAR1"):
        load_table(str(tmp_path / "noise.parquet"), "churned")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1" + np.random.default_rng(0).bytes(5000))
    with pytest.raises(DataError, match="no Parquet file that can be read"):
        load_table(str(tmp_path / "cut.parquet"), "churned")
    pl.DataFrame({"churned": [1, 2], "list": [[1], [2]]}).write_parquet(tmp_path / "nested.parquet")
    with pytest.raises(DataError, match="column 'list' holds List"):
        load_table(str(tmp_path / "nested.parquet"), "churned")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "shop"}, "--group 'shop' is no column"),
        ({"time": "when"}, "--time 'when' is no column"),
        ({"group": "churned"}, "different columns"),
        ({"group": "city"}, "are only 2; splits need 10"),
        ({"time": "city"}, "have no 'city'"),
        ({"time": "note"}, "must hold numbers or dates such as 2024-12-31, got 'text 0'"),
        ({"time": "country"}, "'country' must hold numbers or dates"),
        ({"time": "constant"}, "'constant' is always '3': no row is later"),
        ({"time": "infinite"}, "1 rows have an infinite 'infinite'"),
        ({"task": "regression"}, "must hold numbers for regression, got '(yes|no)'"),
    ],
)
def test_unfit_options_are_refused(tmp_path: Path, options: dict[str, str], message: str) -> None:
    more = {"constant": [3] * ROWS, "infinite": ["inf", *range(1, ROWS)]}
    path = str(write(tmp_path / "people.csv", people() | more))
    if options == {"group": "city"}:
        path = str(write(tmp_path / "people.csv", people() | {"city": ["a", "b"] * (ROWS // 2)}))
    with pytest.raises((DataError, ArgumentError), match=message):
        load_table(path, "churned", **options)
