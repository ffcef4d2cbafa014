"""The embedded table of customers: 7,043 rows of numbers and categories, and whether each customer left."""

from dataclasses import replace

from dropkit.study import embedded
from dropkit.study.dataset import Dataset
from dropkit.study.reading import columns_of_text
from dropkit.study.tabular import table_dataset

__all__ = ["load"]

_SIZES = {
    "hidden": (64, 64),
    "epochs": 40,
    "test_rows": 1000,
    "train_rows": 4500,
    "inner_rows": 543,
    "validation_rows": 1000,
}


def load() -> Dataset:
    """Load the table with its target `churn`; the eleven missing total charges are filled from the training rows."""
    table = embedded.churn()
    text = columns_of_text(list(table), [list(row) for row in zip(*table.values(), strict=True)])
    data = table_dataset(text, "churn", name="churn", title="Customer churn, 7,043 customers of a telephone company")
    note = "IBM's sample of customers of a telephone company, from the R package modeldata, shipped with dropkit."
    return replace(data, note=note, sizes=_SIZES)
