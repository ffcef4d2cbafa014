"""How many rows go where, for data of any length."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dropkit.errors import DataError
from dropkit.study.budgets import Budget
from dropkit.study.dataset import Dataset

__all__ = ["LEAST_ROWS", "fitted", "sizes_for", "with_network"]

LEAST_ROWS = 50
_MOST_TEST, _MOST_VALIDATION, _MOST_TRAIN = 2000, 1500, 6000


def sizes_for(data: Dataset, test_size: float | None = None) -> dict[str, Any]:
    """Return the fields of a `Budget` that suit a data set.

    A fifth of the rows are test rows; of the rest a fifth validates, an eighth chooses the epoch and the others train.
    Where groups stay together or time has an order some rows have to be left over, so fewer train.

    Args:
        data: The rows.
        test_size: Share of the rows below 1, or their number, to set aside as test rows. Default: a fifth, at most
            2,000.

    Raises:
        DataError: If there are too few rows.
    """
    if data.rows < LEAST_ROWS:
        raise DataError(f"{data.title} has {data.rows} rows; a study needs {LEAST_ROWS} at least.")
    if test_size is None:
        test = min(data.rows // 5, _MOST_TEST)
    else:
        test = round(test_size * data.rows) if test_size < 1 else round(test_size)
    rest = data.rows - test
    validation = min(rest // 5, _MOST_VALIDATION)
    inner = min(rest // 8, _MOST_VALIDATION)
    share = 0.6 if data.times is not None else 0.8 if data.groups is not None else 1.0
    train = min(int(share * (rest - validation - inner)), _MOST_TRAIN)
    if test < 1 or train < LEAST_ROWS // 3:
        raise DataError(
            f"{data.title} has {data.rows} rows; with {test} as test rows, {max(train, 0)} are left to train on."
        )
    return {
        "hidden": (64, 64),
        "epochs": 40,
        "batch_size": max(8, min(64, train // 16)),
        "test_rows": test,
        "train_rows": train,
        "inner_rows": inner,
        "validation_rows": validation,
    }


def fitted(budget: Budget, data: Dataset) -> Budget:
    """Return a named budget with the sizes that suit the data; without any the budget's own, if the rows are enough."""
    own = data.sizes or (sizes_for(data) if budget.rows > data.rows else {})
    return replace(budget, **own)


def with_network(
    budget: Budget, data: Dataset, network: Sequence[int] | None, epochs: int | None, batch_size: int | None
) -> Budget:
    """Return the budget with the widths, epochs and batch size that a user wants instead of its own.

    Widths of all layers may count the columns of a table, as a category is several inputs.
    """
    wanted = {"hidden": network, "epochs": epochs, "batch_size": batch_size}
    given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    if network is not None and len(network) > 2 and network[0] in _inputs(data) and network[-1] == data.outputs:
        given["hidden"] = network[1:-1]
    return replace(budget, **given)


def _inputs(data: Dataset) -> set[int]:
    """Return what a user may count as inputs: those of the network, or a table's columns, used or not."""
    if not data.schema:
        return {data.columns}
    every = len(data.description)
    return {data.columns, len(data.schema), every, every - 1}
