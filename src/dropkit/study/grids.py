"""Which methods a study compares, and which strengths each of them gets to choose from."""

from collections.abc import Mapping, Sequence

from dropkit._checks import Choice, argument_error, argument_type_error
from dropkit.study.budgets import Budget
from dropkit.study.dataset import Dataset
from dropkit.study.methods import METHODS, METHODS_WITH_A_FILE

__all__ = ["check_methods", "that_fit"]

_MOST = min(len(method.strengths) for method in METHODS_WITH_A_FILE.values() if len(method.strengths) > 1)
Grids = Mapping[str, tuple[float, ...]]


def check_methods(where: str, budget: Budget, methods: object, rates: object) -> Grids:
    """Return the grid of every method; none comes first, the others in the order of the registry.

    Args:
        where: Name of the function whose arguments these are.
        budget: Whose methods are compared, with as many strengths as it says.
        methods: Names to compare instead, or None.
        rates: Rates of dropout to try, or None; every other method then gets as many strengths.
    """
    names = set(budget.methods)
    if methods is not None:
        if isinstance(methods, str) or not isinstance(methods, Sequence):
            raise argument_type_error(where, "methods", "a sequence of names", methods, f"Known: {', '.join(METHODS)}.")
        names = {Choice(tuple(METHODS)).check(where, "methods", name) for name in methods} - {"none"}
        if not any(METHODS[name].compared for name in names):
            raise argument_error(where, "methods", "at least one method besides none and baselines", methods)
    checked = None if rates is None else _check_rates(where, names, rates)
    count = budget.strengths if checked is None else len(checked)
    grids = {name: method.grid(count) for name, method in METHODS.items() if name in names}
    if checked is not None:
        grids["dropout"] = checked
    return {"none": METHODS["none"].grid(1), **grids}


def _check_rates(where: str, names: set[str], rates: object) -> tuple[float, ...]:
    if isinstance(rates, str) or not isinstance(rates, Sequence):
        raise argument_type_error(where, "rates", "a sequence of probabilities of dropping", rates)
    if "dropout" not in names:
        raise argument_error(where, "rates", "left out where dropout is not among the methods", rates)
    checked = tuple(sorted(METHODS["dropout"].domain.check(where, "rates", rate) for rate in rates))
    if not checked or len(set(checked)) != len(checked):
        raise argument_error(where, "rates", "one or more distinct rates", rates)
    if len(checked) > _MOST and len(names) > 1:
        remedy = f"Every method gets as many chances, and the others have {_MOST}. Or give methods=['dropout']."
        raise argument_error(where, "rates", "as many as the other methods have strengths", rates, remedy)
    return checked


def that_fit(where: str, grids: Grids, data: Dataset, methods: Sequence[str] | None) -> Grids:
    """Return the grids of the methods that fit the data; one that was asked for by name must be among them."""
    unfit = [name for name in grids if not METHODS[name].fits(data)]
    asked = [name for name in unfit if methods is not None]
    if asked:
        known = ", ".join(name for name, method in METHODS.items() if method.fits(data))
        raise argument_error(where, "methods", f"methods that fit {data.name!r}", asked, f"Known for it: {known}.")
    return {name: grid for name, grid in grids.items() if name not in unfit}
