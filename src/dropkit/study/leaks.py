"""Columns that give the target away: a copy of it, or something known only afterwards."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dropkit.study.preparation import CATEGORY, Column

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

    codes = np.arange(column.width)
    features = (values[:, None] == codes) if column.kind == CATEGORY else _filled(values)[:, None]
    if np.issubdtype(targets.dtype, np.integer):
        tree = DecisionTreeClassifier(max_leaf_nodes=4 * (int(targets.max()) + 1), random_state=0)
        wrong = float((tree.fit(features, targets).predict(features) != targets).mean())
        guess = 1 - float(np.bincount(targets).max()) / len(targets)
    else:
        tree = DecisionTreeRegressor(max_leaf_nodes=64, min_samples_leaf=5, random_state=0)
        wrong = float(((tree.fit(features, targets).predict(features) - targets) ** 2).mean())
        guess = float(targets.var())
        if column.kind != CATEGORY:
            wrong = min(wrong, guess * (1 - _correlation(features[:, 0], targets) ** 2))
    return 1 - wrong / guess if guess > 0 else 0.0


def _correlation(values: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
    return float(np.corrcoef(values, targets)[0, 1]) if values.std() > 0 else 0.0


def _filled(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.where(np.isnan(values), np.nanmin(values) - 1, values)
