"""Cautions: what a reader should know before trusting the advice, one file each, always with what was measured here."""

from collections.abc import Callable

from dropkit.study.cautions import (
    cut_short,
    diverged,
    edge_of_grid,
    few_rows,
    few_seeds,
    few_test_rows,
    high_rate,
    linear_model,
    norm_order,
    under_fit,
)
from dropkit.study.summary import Summary

__all__ = ["CAUTIONS", "cautions"]

CAUTIONS: tuple[Callable[[Summary], list[str]], ...] = (
    diverged.check,
    few_rows.check,
    few_seeds.check,
    few_test_rows.check,
    cut_short.check,
    under_fit.check,
    edge_of_grid.check,
    high_rate.check,
    norm_order.check,
    linear_model.check,
)


def cautions(summary: Summary) -> list[str]:
    """Return every caution that applies, in words."""
    return [text for check in CAUTIONS for text in check(summary)]
