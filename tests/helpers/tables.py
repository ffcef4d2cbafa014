"""A table of people, as a user's own file might hold it."""

import csv
import datetime as dt
from pathlib import Path

import numpy as np

ROWS = 200


def people() -> dict[str, list[object]]:
    """Columns of every kind, and a class to predict."""
    rng = np.random.default_rng(0)
    age = rng.integers(18, 80, ROWS)
    return {
        "customer_id": list(range(1000, 1000 + ROWS)),
        "age": ["" if row % 20 == 3 else int(value) for row, value in enumerate(age)],
        "city": [("Rome", "Oslo", "NA")[value] for value in rng.integers(0, 3, ROWS)],
        "since": [dt.date(2020, 1, 1) + dt.timedelta(int(day)) for day in rng.integers(0, 900, ROWS)],
        "note": [f"text {row * 7919 % 1000}" for row in range(ROWS)],
        "country": ["Norway"] * ROWS,
        "nothing": [""] * ROWS,
        "income": [round(float(value), 2) for value in rng.normal(3000, 500, ROWS)],
        "churned": ["yes" if value else "no" for value in (age + rng.normal(0, 20, ROWS) > 50)],
    }


def write(path: Path, table: dict[str, list[object]], separator: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> Path:
    """Write columns as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator, quoting=quoting)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return path
