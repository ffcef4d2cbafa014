"""Holm's step-down correction: several methods are tested, and the chance of any false alarm stays at the level."""

from collections.abc import Mapping

from dropkit._checks import Number

__all__ = ["holm"]

_P_VALUE = Number(0.0, 1.0)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p-values of one family of tests.

    Args:
        p_values: From a test's name to its p-value, in [0, 1].

    Returns:
        The adjusted p-values under the same names: compare them with the level of the whole family.

    Raises:
        ArgumentError: If a p-value is no number in [0, 1].

    Examples:
        >>> holm({"dropout": 0.01, "weight decay": 0.04})
        {'dropout': 0.02, 'weight decay': 0.04}

    References:
        Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    checked = {name: _P_VALUE.check("holm", f"p_values[{name!r}]", p) for name, p in p_values.items()}
    adjusted, running = {}, 0.0
    for step, name in enumerate(sorted(checked, key=checked.__getitem__)):
        running = max(running, min(1.0, (len(checked) - step) * checked[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}
