"""Tables of a user's own: what is read, and what each column is taken for."""

import csv
import datetime as dt
import decimal
import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dropkit.errors import ArgumentError, DataError
from dropkit.study.budgets import QUICK
from dropkit.study.inference import as_dates, infer
from dropkit.study.preparation import CATEGORY, DATE, NUMBER
from dropkit.study.sizes import with_network
from dropkit.study.sources import SOURCES
from dropkit.study.splits import outer_split, seed_key, seed_split
from dropkit.study.tabular import load_table
from tests.helpers.tables import ROWS, people, write


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_columns_are_taken_for_what_they_hold(tmp_path: Path, separator: str) -> None:
    data = load_table(str(write(tmp_path / "people.csv", people(), separator)), "churned")
    assert [(column.name, column.kind) for column in data.schema] == [
        *(("age", NUMBER), ("city", CATEGORY), ("since", DATE), ("income", NUMBER))
    ]
    said = dict(data.description)
    assert said["churned"] == "target, 2 classes: no, yes"
    assert "10 missing" in said["age"]
    assert said["city"].startswith("category, 2 values")
    assert said["since"].startswith("date, 2020-01-")
    assert said["customer_id"] == "left out: an identifier, it counts the rows"
    assert said["note"].startswith("left out: an identifier or free text")
    assert said["country"] == "left out: always 'Norway'"
    assert said["nothing"] == "left out: every value is missing"
    assert data.class_names == ("no", "yes")
    table = people()
    days = [(day - dt.date(1970, 1, 1)).days for day in table["since"]]
    np.testing.assert_array_equal(data.inputs[:, 2], days)
    np.testing.assert_array_equal(data.targets, [value == "yes" for value in table["churned"]])
    cities = [data.schema[1].categories[int(code)] for code in data.inputs[:, 1]]
    assert cities == [city.replace("NA", "(missing)") for city in table["city"]]
    assert np.isfinite(data.prepared(np.arange(50)).inputs).all()


def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    table = {name: [None if value == "" else value for value in values] for name, values in people().items()}
    pl.DataFrame(table).write_parquet(tmp_path / "people.parquet")
    found = load_table(str(tmp_path / "people.parquet"), "churned")
    reference = load_table(str(write(tmp_path / "people.csv", people())), "churned")
    np.testing.assert_array_equal(found.inputs, reference.inputs)
    np.testing.assert_array_equal(found.targets, reference.targets)
    assert found.description == reference.description


def test_numbers_are_predicted_as_numbers_and_few_whole_ones_as_classes(tmp_path: Path) -> None:
    path = str(write(tmp_path / "people.csv", people()))
    income = load_table(path, "income")
    assert (income.task, income.outputs) == ("regression", 1)
    assert dict(income.description)["income"] == "target, regression"
    table = people() | {"stars": [row % 5 + 1 for row in range(ROWS)]}
    path = str(write(tmp_path / "stars.csv", table))
    stars = load_table(path, "stars")
    assert (stars.task, stars.class_names) == ("classification", ("1", "2", "3", "4", "5"))
    assert load_table(path, "stars", task="regression").task == "regression"


def test_one_number_in_two_spellings_is_one_class(tmp_path: Path) -> None:
    table = people() | {"grade": [("0", "0.0", "1", "01", "2.5")[row % 5] for row in range(ROWS)]}
    data = load_table(str(write(tmp_path / "people.csv", table)), "grade", task="classification")
    assert data.class_names == ("0", "1", "2.5")
    np.testing.assert_array_equal(data.targets, np.array([0, 0, 1, 1, 2])[np.arange(ROWS) % 5])
    table["grade"] = [("1", "1.0")[row % 2] for row in range(ROWS)]
    with pytest.raises(DataError, match="always '1'"):
        load_table(str(write(tmp_path / "people.csv", table)), "grade")


def test_what_groups_and_times_are_said_to_be(tmp_path: Path) -> None:
    table = people() | {
        "shop": ["" if row % 4 == 0 else f"shop {row % 30}" for row in range(ROWS)],
        "year": [2000 + row % 4 for row in range(ROWS)],
    }
    path = str(write(tmp_path / "people.csv", table))
    said = dict(load_table(path, "churned", group="shop", time="year").description)
    assert said["shop"] == "group, its rows stay on one side of a split; 50 rows without one stand alone"
    assert said["year"] == "time, later rows are predicted; rows of one time may stand on two sides"


def test_rows_without_target_are_left_out_and_counted(tmp_path: Path) -> None:
    table = people()
    table["churned"][::10] = [""] * (ROWS // 10)
    data = load_table(str(write(tmp_path / "people.csv", table)), "churned")
    assert data.rows == ROWS - 20
    assert "20 rows without it left out" in dict(data.description)["churned"]


def test_a_few_rows_without_time_are_left_out_and_warned_of(tmp_path: Path) -> None:
    table = people()
    table["since"][::10] = [""] * (ROWS // 10)
    path = str(write(tmp_path / "people.csv", table))
    data = load_table(path, "churned", time="since")
    assert data.warnings == ("20 of 200 rows have no 'since' and were left out.",)
    kept = [row for row in range(ROWS) if row % 10]
    np.testing.assert_array_equal(data.times, [(table["since"][row] - dt.date(1970, 1, 1)).days for row in kept])
    np.testing.assert_array_equal(data.targets, [table["churned"][row] == "yes" for row in kept])
    assert sum(data.sizes[part] for part in ("test_rows", "train_rows", "inner_rows", "validation_rows")) <= 180
    table["since"][1] = ""
    write(tmp_path / "people.csv", table)
    with pytest.raises(DataError, match=r"21 of 200 rows have no 'since', more than a tenth\. Fill them in"):
        load_table(path, "churned", time="since")


@pytest.mark.parametrize(("copy", "leaked"), [("churned", True), ("age", False)])
def test_a_leaked_target_is_warned_of(tmp_path: Path, copy: str, leaked: bool) -> None:
    table = people()
    table["reason"] = [f"code {value}" if copy == "churned" else value for value in table[copy]]
    data = load_table(str(write(tmp_path / "people.csv", table)), "churned")
    assert any("'reason' alone tells 'churned'" in text for text in data.warnings) is leaked


def test_a_leaked_number_is_warned_of(tmp_path: Path) -> None:
    table = people()
    table["tax"] = [0.3 * float(value) for value in table["income"]]
    data = load_table(str(write(tmp_path / "people.csv", table)), "income")
    (text,) = data.warnings
    assert "'tax' alone tells 'income'" in text


def test_groups_stay_together_and_later_rows_are_predicted(tmp_path: Path) -> None:
    table = people() | {"shop": [f"shop {row % 40}" for row in range(ROWS)]}
    path = str(write(tmp_path / "people.csv", table))
    grouped = load_table(path, "churned", group="shop")
    timed = load_table(path, "churned", time="since")
    assert "shop" not in [column.name for column in grouped.schema]
    for data in (grouped, timed):
        budget = replace(QUICK, **data.sizes)
        test, rest = outer_split(data, budget, 0)
        splits = [seed_split(data, rest, budget, seed_key(0, number)) for number in range(5)]
        assert len({tuple(split.validation) for split in splits}) == 5
        for split in splits:
            parts = [split.train, split.inner, split.validation, test]
            sizes = [budget.train_rows, budget.inner_rows, budget.validation_rows, budget.test_rows]
            assert [len(part) for part in parts] == sizes
            assert len(np.unique(np.concatenate(parts))) == sum(sizes)
            for before, after in itertools.pairwise(parts):
                if data is grouped:
                    assert not set(grouped.groups[before]) & set(grouped.groups[after])
                else:
                    assert timed.times[before].max() <= timed.times[after].min()


def test_the_size_of_the_test_rows(tmp_path: Path) -> None:
    path = str(write(tmp_path / "people.csv", people()))
    assert load_table(path, "churned").sizes["test_rows"] == 40
    assert load_table(path, "churned", test_size=0.3).sizes["test_rows"] == 60
    assert load_table(path, "churned", test_size=25).sizes["test_rows"] == 25
    with pytest.raises(DataError, match="with 190 as test rows"):
        load_table(path, "churned", test_size=190)


@pytest.mark.parametrize(
    ("widths", "hidden"),
    [
        ((6, 16, 2), (16,)),  # age, city and its gaps, since, income: inputs
        ((4, 16, 2), (16,)),  # columns that are used
        ((9, 16, 8, 2), (16, 8)),  # columns of the file
        ((8, 16, 2), (16,)),  # without the target
        ((5, 16, 2), (5, 16, 2)),
        ((4, 16, 3), (4, 16, 3)),
        ((4, 2), (4, 2)),
        (None, (256, 256)),
    ],
)
def test_widths_of_all_layers_are_told_from_hidden_ones(
    tmp_path: Path, widths: tuple[int, ...] | None, hidden: tuple[int, ...]
) -> None:
    data = load_table(str(write(tmp_path / "people.csv", people())), "churned")
    assert (data.columns, data.outputs) == (6, 2)
    assert with_network(QUICK, data, widths, None, None).hidden == hidden


NUMBERS = np.random.default_rng(5).normal(size=ROWS)


@pytest.mark.parametrize(
    ("values", "words", "kind"),
    [
        ([f"{x}e300" for x in NUMBERS], r"number, -.*e\+300 to .*e\+300$", NUMBER),
        ([f"{x}e-300" for x in NUMBERS], r"number, -.*e-300 to .*e-300$", NUMBER),
        (["-inf", "1e400", *NUMBERS[2:]], r"number, .*, 2 infinite, taken as missing$", NUMBER),
        (["", "inf", *NUMBERS[2:]], r"number, .*, 1 missing, 1 infinite, taken as missing$", NUMBER),
        (["inf", "-inf"] * (ROWS // 2), "left out: every value is infinite", None),
        (["unknown", *NUMBERS[1:]], r"left out: .*; mostly numbers, but 1 cannot be .*, for example 'unknown'$", None),
        ([f"{abs(x):.3f}".replace(".", ",") for x in NUMBERS], "left out: .*; commas are not read as decimal", None),
        ([f"{row % 101}%" for row in range(ROWS)], "category, 101 .* used; signs of .*: write 0 for '0%'$", CATEGORY),
        (["0", *[f"{row % 7} %" for row in range(ROWS)]], "category, 8 .*; signs of .*: write 0 for '0 %'$", CATEGORY),
        ([f"-${abs(x):,.2f}" for x in 1e6 * NUMBERS], r"left out: .*: write -\d+\.\d\d for '-\$[\d,.]+'$", None),
        (["7", *[f"{1000 + row % 9:,}" for row in range(ROWS)]], "category, .*: write 1000 for '1,000'$", CATEGORY),
        ([f"{row % 9} €" for row in range(ROWS)], "category, 9 values; signs of .*: write 0 for '0 €'$", CATEGORY),
        ([f"{row % 9}%{row % 2}" for row in range(ROWS)], "category, 18 values$", CATEGORY),
        (["5", ""] * (ROWS // 2), "category, 1 values, 100 missing$", CATEGORY),
        (["(missing)", "", "a", "b"] * (ROWS // 4), "category, 2 values, 100 missing$", CATEGORY),
        ([f"{row % 12 + 1}/{row % 28 + 1}/2024" for row in range(ROWS)], "left out: dates .* in two ways", None),
        ([f"{row % 28 + 1}.{row % 12 + 1}.24" for row in range(ROWS)], "left out: dates .* in two ways", None),
        (["soon"] + ["2024-01-31", "2024-02-01"] * 100, "category, .* dates, but 1 .* for example 'soon'", CATEGORY),
        ([f"1-2-{row % 7}" for row in range(ROWS)], "category, 7 values$", CATEGORY),
    ],
)
def test_what_a_column_is_said_to_be(tmp_path: Path, values: list[object], words: str, kind: str | None) -> None:
    table = people() | {"x": list(values)[:ROWS]}
    data = load_table(str(write(tmp_path / "table.csv", table)), "churned")
    assert re.match(words, dict(data.description)["x"])
    assert {column.name: column.kind for column in data.schema}.get("x") == kind
    inputs = data.prepared(np.arange(ROWS)).inputs
    assert np.isfinite(inputs).all()
    if kind == NUMBER:
        place = next(place for place, column in enumerate(data.schema) if column.name == "x")
        start = sum(column.width for column in data.schema[:place])
        np.testing.assert_allclose([inputs[:, start].mean(), inputs[:, start].std()], [0, 1], atol=1e-5)


@pytest.mark.parametrize(
    "form",
    [
        *("2024-03-05", "2024/03/05", "05.03.2024", "5.3.2024", "5 March 2024", "5 Mar 2024", "05-Mar-2024"),
        *("March 5, 2024", "Mar 5 2024", "2024-03-05 00:00", "2024-03-05T00:00:00", "2024-03-05 00:00:00.000"),
        *("2024-03-05T00:00:00Z", "2024-03-05T02:00:00+02:00", "2024-03-04 19:00:00.000-0500", "05.03.2024 00:00"),
    ],
)
def test_dates_of_one_meaning_are_read(form: str) -> None:
    """Every form is the same day, also where a column holds two forms."""
    np.testing.assert_array_equal(as_dates([form, "2024-03-06", form]), [19787, 19788, 19787])
    assert dt.date(1970, 1, 1) + dt.timedelta(19787) == dt.date(2024, 3, 5)


@pytest.mark.parametrize(
    "text", ["03/05/2024", "1-2-3", "5.3.24", "2024", "2024-02-30", "30 Foo 2024", "2024-13-01", ""]
)
def test_what_is_no_date_or_has_two_meanings_is_not_read(text: str) -> None:
    assert as_dates([text]) is None
    assert as_dates(["2024-03-06", text]) is None


def test_kinds_of_parquet(tmp_path: Path) -> None:
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    moments = pl.Series([start + dt.timedelta(hours=row) for row in range(ROWS)])
    table = {
        "flag": [row % 3 == 0 for row in range(ROWS)],
        "price": [decimal.Decimal(f"{x:.2f}") for x in NUMBERS],
        "zoned": moments.dt.convert_time_zone("Europe/Oslo"),
        "plain": moments.dt.replace_time_zone(None),
        "gaps": [None if row % 9 == 0 else x for row, x in enumerate(NUMBERS)],
        "infinite": [np.inf if row == 3 else x for row, x in enumerate(NUMBERS)],
        "nothing": [None] * ROWS,
        "churned": people()["churned"],
    }
    path = tmp_path / "kinds.csv"  # Parquet is known by its first bytes, whatever the name
    pl.DataFrame(table).write_parquet(path)
    data = load_table(str(path), "churned")
    said = dict(data.description)
    assert said["flag"] == "category, 2 values"
    assert said["price"].startswith("number, -")
    assert said["zoned"] == said["plain"] == "date, 2024-01-01 to 2024-01-09, as days"
    assert said["gaps"].endswith(", 23 missing")
    assert said["infinite"].endswith(", 1 infinite, taken as missing")
    assert said["nothing"] == "left out: every value is missing"
    np.testing.assert_allclose(data.inputs[:, 2], 19723 + np.arange(ROWS) / 24)
    np.testing.assert_array_equal(data.inputs[:, 2], data.inputs[:, 3])


def test_headings_and_cells_with_quotes_separators_and_line_breaks(tmp_path: Path) -> None:
    table = {
        "a;b;c;d;e": list(NUMBERS),
        'two\n "lines"': [f'x\n"{row % 3}"' for row in range(ROWS)],
        "größe, цвет": [["rød", "красный", "赤"][row % 3] for row in range(ROWS)],
        "the target": people()["churned"],
    }
    data = load_table(str(write(tmp_path / "table.csv", table, quoting=csv.QUOTE_ALL)), "the target")
    assert [column.name for column in data.schema] == ["a;b;c;d;e", 'two "lines"', "größe, цвет"]
    assert data.schema[1].categories == tuple(f'x\n"{number}"' for number in range(3))
    with pytest.raises(ArgumentError, match="Its columns: a;b;c;d;e, two") as caught:
        load_table(str(tmp_path / "table.csv"), "none such")
    assert "\n" not in str(caught.value)


def test_a_number_far_from_all_others_is_warned_of(tmp_path: Path) -> None:
    table = people() | {"x": [1e300, *NUMBERS[1:]], "y": [10 * x for x in NUMBERS]}
    (text,) = load_table(str(write(tmp_path / "table.csv", table)), "churned").warnings
    assert text.startswith("The column 'x' holds 1e+300, while nine rows in ten are within 1.")


def test_a_target_far_from_all_others_is_warned_of(tmp_path: Path) -> None:
    table = people()
    assert load_table(str(write(tmp_path / "table.csv", table)), "income").warnings == ()
    table["income"][3] = 1e12
    (text,) = load_table(str(write(tmp_path / "table.csv", table)), "income").warnings
    assert text.startswith("The target 'income' holds 1e+12, while nine rows in ten are within ")
    assert text.endswith(" of its median: such a number hides all others. If it is wrong, correct it and run again.")


def test_leaks_are_found_at_any_scale(tmp_path: Path) -> None:
    table = people() | {"x": [f"{value}e300" for value in people()["income"]], "y": [f"{x}e300" for x in NUMBERS]}
    table["income"] = [value * 1e20 for value in table["income"]]
    (text,) = load_table(str(write(tmp_path / "table.csv", table)), "income").warnings
    assert "'x' alone tells 'income'" in text


def test_a_category_with_many_values_keeps_the_most_frequent() -> None:
    values = [f"town {row % 5}" for row in range(500)] + [f"village {row % 60}" for row in range(120)]
    found = infer("place", values)
    assert found.words == "category, 65 values, the 50 most frequent used"
    assert found.column is not None
    assert {f"town {row}" for row in range(5)} < set(found.column.categories)
    assert len(found.column.categories) == 50


def test_the_churn_table() -> None:
    data = SOURCES["churn"]()
    assert (data.rows, len(data.schema), data.classes, data.class_names) == (7043, 19, 2, ("No", "Yes"))
    assert int(np.isnan(data.inputs).sum()) == 11
    assert data.warnings == ()
    assert int(data.targets.sum()) == 1869
    train = np.arange(4500)
    inputs = data.prepared(train).inputs
    assert np.isfinite(inputs).all()
    assert inputs.shape[1] == data.columns == 9 + 9 * 3 + 4
    np.testing.assert_allclose(inputs[train, 0].mean(), 0, atol=1e-6)
