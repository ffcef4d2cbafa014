"""Dividing rows by whole groups, with every class in its share on both sides as nearly as the groups allow."""

import numpy as np
import numpy.typing as npt

__all__ = ["apportion", "stratified_groups"]

Whole = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

_MOST_DRAWS, _LEAST_DRAWS, _GROUPS_DRAWN = 200, 10, 100_000


def stratified_groups(groups: Whole, classes: Whole, count: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Choose whole groups that hold `count` rows or a little more.

    Groups are drawn at random, equally from those of each leading class; of many such draws the most even one is
    taken. That is rerandomisation (Morgan and Rubin 2012, section 2): what was drawn stays random, but far-off draws
    are never used.

    Args:
        groups: The group of each row.
        classes: The class of each row, integers from 0.
        count: Rows wanted, at most the number of rows.
        rng: Draws the order of the groups.

    Returns:
        Whether each row's group was chosen.
    """
    _, places = np.unique(groups, return_inverse=True)
    held = np.zeros((places.max() + 1, classes.max() + 1))
    np.add.at(held, (places, classes), 1)
    held = held[:, held.any(0)]
    leading = (held / held.sum(0)).argmax(1)
    draws = max(_LEAST_DRAWS, min(_MOST_DRAWS, _GROUPS_DRAWN // len(held)))  # many groups are even in any draw
    best = min(
        (_draw(held, leading, count, rng) for _ in range(draws)), key=lambda taken: _unevenness(held, taken, count)
    )
    return np.isin(places, best)


def apportion(classes: Whole, shares: Numbers, count: int) -> Whole:
    """Choose `count` rows with classes in given shares as nearly as there are rows (the method of Sainte-Laguë).

    Args:
        classes: The class of each row, integers from 0; of one class the first rows are chosen.
        shares: How much of each class is wanted, in any unit, positive.
        count: Rows wanted, at most the number of rows.

    Returns:
        The places of the chosen rows, in their order.
    """
    held = np.bincount(classes, minlength=len(shares))
    rank = np.empty(len(classes))
    rank[np.argsort(classes, kind="stable")] = np.concatenate([np.arange(number) for number in held])
    return np.sort(np.argsort((rank + 0.5) / shares[classes], kind="stable")[:count])


def _draw(held: Numbers, leading: Whole, count: int, rng: np.random.Generator) -> Whole:
    """Draw groups until they hold `count` rows: systematic sampling, an equal share of every leading class."""
    sizes = held.sum(1)
    order = np.lexsort((rng.random(len(sizes)), leading))
    rows = np.bincount(leading, sizes)
    before = np.cumsum(sizes[order]) - sizes[order] - (np.cumsum(rows) - rows)[leading[order]]
    moment = (before + rng.random(len(order)) * sizes[order]) / rows[leading[order]]
    order = order[moment.argsort(kind="stable")]
    return order[: np.searchsorted(np.cumsum(sizes[order]), count) + 1]


def _unevenness(held: Numbers, taken: Whole, count: int) -> tuple[int, float]:
    """Return how many classes one side lacks, and how far shares and number of rows are from what is wanted."""
    totals = held.sum(0)
    overall = totals / totals.sum()
    chosen = held[taken].sum(0)
    absent, apart = 0, (chosen.sum() / count - 1) ** 2
    for side in (chosen, totals - chosen):
        absent += int((side == 0).sum())
        apart += ((side / max(side.sum(), 1) - overall) ** 2 / overall).sum()
    return absent, float(apart)
