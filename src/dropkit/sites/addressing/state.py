"""What is saved of an addressed model: made, and read again."""

from collections.abc import Iterable, Mapping
from typing import Any

from dropkit._checks import KEY, Integer, argument_error, argument_type_error
from dropkit.random import MASK_VERSION

__all__ = ["STEP", "checked_state", "state_of"]

STEP = Integer(0, 2**64 - 1, "[0, 2**64)")
_COUNT = Integer(0, 2**32, "[0, 2**32]")


def state_of(seed: int, step: int, runs: Mapping[str, int]) -> dict[str, Any]:
    """Return what has to be saved.

    Args:
        seed: The seed.
        step: The step.
        runs: How often modules have run in it, by name; as pairs, for ``torch.distributed.checkpoint`` loads those keys
            alone that a state has before. Their order is that of names, for compiled code begins them in another.
    """
    return {"mask_version": MASK_VERSION, "seed": seed, "last_step": step, "runs": tuple(sorted(runs.items()))}


def checked_state(where: str, state: object, modules: Iterable[str]) -> tuple[int, int, dict[str, int]]:
    """Return seed, step and runs of what was saved of a model whose modules have these names.

    Raises:
        ArgumentError: If it has other keys, names other modules, or is of another version of the masks' definition.
        ArgumentTypeError: If it is no mapping, or a number is no integer.
    """
    rule = "what Addressing.state_dict returned"
    if not isinstance(state, Mapping):
        raise argument_type_error(where, "state_dict", rule, state)
    if set(state) != set(state_of(0, 0, {})):
        raise argument_error(where, "state_dict", rule, sorted(map(str, state)))
    if state["mask_version"] != MASK_VERSION:
        remedy = "Other versions of dropkit draw other masks for it: go on with the one that saved it."
        raise argument_error(where, "state_dict['mask_version']", str(MASK_VERSION), state["mask_version"], remedy)
    runs, known = _runs(where, state["runs"]), set(modules)
    if not set(runs) <= known:
        rule, remedy = "names of modules of the model", "It was saved for another one."
        raise argument_error(where, "state_dict['runs']", rule, sorted(set(runs) - known), remedy)
    counts = {name: _COUNT.check(where, f"state_dict['runs'][{name!r}]", count) for name, count in runs.items()}
    seed = KEY.check(where, "state_dict['seed']", state["seed"])
    return seed, STEP.check(where, "state_dict['last_step']", state["last_step"]), counts


def _runs(where: str, runs: object) -> dict[str, Any]:
    """Return runs by module: of pairs, or of a mapping."""
    pairs = runs.items() if isinstance(runs, Mapping) else runs
    if not isinstance(pairs, Iterable) or not all(map(_is_run, pairs := tuple(pairs))):
        raise argument_type_error(where, "state_dict['runs']", "pairs of a module's name and a number", runs)
    return dict(pairs)


def _is_run(pair: object) -> bool:
    return isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
