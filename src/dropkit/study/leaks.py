"""Columns that give the target away: a copy of it, or something known only afterwards."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dropkit.study.preparation import CATEGORY, Column, standardised

__all__ = ["leaks"]

_MOST_ROWS = 5000
_ALMOST_ALL = 0.995


def leaks(columns: Sequence[Column], inputs: npt.NDArray[Any], targets: npt.NDArray[Any], name: str) -> tuple[str, ...]:
    """Return a warning for every column that alone tells the target of almost every row."""
    rows = np.random.default_rng(0).permutation(len(targets))[:_MOST_ROWS]
    texts = []
    for place, column in enumerate(columns):
        share = _told(column, inputs[rows, place], targets[rows])
        if share >= _ALMOST_ALL:
            texts.append(
                f"The column {column.name!r} alone tells {name!r} almost perfectly ({share:.1%} of what differs): it "
                "may be a copy of the target or known only after it. If so, leave it out and run again."
            )
    return tuple(texts)


def _told(column: Column, values: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
    """Return the share of a plain guess's errors that a small tree or a line over this one column avoids."""
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    if column.kind == CATEGORY:
        features = values[:, None] == np.arange(column.width)
    else:  # a tree asks only which is larger; ranks say so of any number, and a missing one has a rank of its own
        features = np.unique(values, return_inverse=True)[1][:, None]
    if np.issubdtype(targets.dtype, np.integer):
        tree = DecisionTreeClassifier(max_leaf_nodes=4 * (int(targets.max()) + 1), random_state=0)
        wrong = float((tree.fit(features, targets).predict(features) != targets).mean())
        guess = 1 - float(np.bincount(targets).max()) / len(targets)
        return 1 - wrong / guess if guess > 0 else 0.0
    numbers = standardised(targets.astype(np.float64))
    tree = DecisionTreeRegressor(max_leaf_nodes=64, min_samples_leaf=5, random_state=0)
    told = 1 - float(((tree.fit(features, numbers).predict(features) - numbers) ** 2).mean())
    if column.kind != CATEGORY:
        told = max(told, float((np.nan_to_num(standardised(values)) * numbers).mean()) ** 2)
    return told
