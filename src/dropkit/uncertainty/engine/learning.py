"""Learning which sites of a model drop, and how to turn on those that evaluation mode turns off."""

import random
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import Module

from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.sites.find import Site
from dropkit.sites.interception.names import runnable, unwrapped
from dropkit.sites.interception.restoring import set_mode
from dropkit.sites.interception.telling import warn
from dropkit.sites.switching.noise import Noise, listed, training_noise
from dropkit.sites.switching.planning import planned
from dropkit.sites.switching.probe import Probe
from dropkit.sites.switching.rewriting import Plan
from dropkit.sites.switching.selection import Selection
from dropkit.uncertainty.dropping import nothing_kept, seen_in_evaluation

__all__ = ["Learned", "learn"]


@dataclass(frozen=True)
class Learned:
    """What is known of a model's sites.

    Args:
        known: All sites, by name.
        chosen: Names of those that drop in Monte Carlo passes.
        plan: What has to be done to turn them on.
        silent: Names of calls that could drop, and do so in neither mode, as of a backbone that is frozen.
        noise: What else is drawn in training mode alone.
    """

    known: Mapping[str, Site]
    chosen: set[str]
    plan: Plan
    silent: frozenset[str] = frozenset()
    noise: frozenset[Noise] = frozenset()

    def joined(self, other: "Learned") -> "Learned":
        """Return what is known from these inputs and from others."""
        known = {**other.known, **self.known}
        plan, noise = other.plan.joined(self.plan), self.noise | other.noise
        return Learned(known, self.chosen | other.chosen, plan, self.silent | other.silent, noise)


def learn(
    model: Module,
    selection: Selection,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    told: Collection[Noise] = (),
) -> Learned:
    """Run a model on inputs, in training and in evaluation mode, and learn its sites.

    Args:
        model: The model.
        selection: Which sites drop.
        args: What its forward takes, by position.
        kwargs: The same, by name.
        told: Noise that has been warned of.

    Raises:
        ArgumentError: If there is none, or none that is chosen.
        UnsupportedError: If none of them can be turned on.
    """
    with torch.no_grad(), _in_evaluation(model):
        found = _probed(model, args, kwargs)
        sites = {name: site for probe in found for name, site in probe.sites.items()}
        certain = {name: site for name, site in sites.items() if site.is_certain}
        if not found:
            sites = certain = {site.name: site for site in seen_in_evaluation("mc", model, args, kwargs)}
        noise = list(dict.fromkeys(each for probe in found for each in training_noise(probe)))
        silent = {name for probe in found for name in probe.train.rewritable - sites.keys()}
        if not certain:
            raise ArgumentError(_nothing(model, [name for name in sites if name not in certain], noise, silent))
        chosen = {name for name, site in certain.items() if site in selection}
        if not chosen:
            raise selection.mismatch("mc", certain.values())
        if all(certain[name].p == 1 for name in chosen):
            raise nothing_kept("mc", chosen)
        plan = Plan()
        for probe in found:
            plan = plan.joined(planned(probe, "on", chosen & probe.sites.keys()))
    if plan.stuck:
        names = ", ".join(f"{name} ({sites[name].kind})" for name in sites if name in plan.stuck)
        if chosen <= plan.stuck:
            raise UnsupportedError(f"mc: the model's dropout cannot be turned on in evaluation: {names}.")
        warn(f"mc: these sites cannot be turned on, and do not drop: {names}.")
    if not told and any(selection.covers(each.path) for each in noise):
        warn(
            f"mc: in training mode alone, this {type(model).__name__} draws {listed(noise)}. That may be dropout, but "
            "cannot be told from other noise, and is off in these passes: if it is dropout, they differ too little. "
            f"{_REMEDY}"
        )
    return Learned(sites, chosen - plan.stuck, plan, frozenset(silent), frozenset(noise))


_PROBES = 8  # at most, of a model that skips layers at random in training


def _probed(model: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Probe]:
    """Run a model in both modes, until all that runs in evaluation has been run in training too.

    Returns:
        What was seen; nothing if the model cannot be run in training mode on these inputs.
    """
    found: list[Probe] = []
    missing: set[str] = set()
    for attempt in range(_PROBES):
        with _seeded(attempt):
            try:
                probe = Probe(unwrapped(model), runnable(model), args, kwargs)
            except UnsupportedError as error:
                cause = error.__cause__
                if cause is None or isinstance(cause, UnsupportedError):
                    raise cause or error from None
                if found:
                    break
                return []
        ran = set(probe.evaluation.runs)
        missing = (missing if found else ran) - set(probe.train.runs)
        found.append(probe)
        if not missing:
            break
    return found


@contextmanager
def _in_evaluation(model: Module) -> Iterator[None]:
    """Let the mode in which a model has to run be that of passes, meanwhile."""
    flags = [(module, module.training) for module in model.modules()]
    set_mode(model, False)
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def _seeded(attempt: int) -> Iterator[None]:
    """Let every attempt after the first skip other layers."""
    if not attempt:
        yield
        return
    numpy_state, state = np.random.get_state(), random.getstate()  # noqa: NPY002  # models use the global generator
    with torch.random.fork_rng():
        torch.manual_seed(attempt)
        np.random.seed(attempt)  # noqa: NPY002  # as above
        random.seed(attempt)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002  # as above
            random.setstate(state)


_REMEDY = (
    "Draw dropout by layers of torch.nn or dropkit.nn, by their functions, or as a product with a mask of "
    "torch.bernoulli, divided by 1 - p where it drops whole examples, as gates do not; for noise of another kind "
    "nothing has to be done."
)


def _nothing(model: Module, uncertain: list[str], noise: list[Noise], silent: set[str]) -> str:
    surely = "surely " if uncertain or noise else ""
    what = (
        f"mc: nothing in this {type(model).__name__} {surely}drops on these inputs, so that all passes would be equal."
    )
    if surely:
        shown = listed(noise) or ", ".join(uncertain)
        return f"{what} It draws {shown}, which may be dropout, but cannot be told from other noise. {_REMEDY}"
    if silent:
        names = ", ".join(sorted(silent))
        return (
            f"{what} The dropout of {names} is off in training mode, too, where a method `train`, or the code around "
            "it, keeps it off. Let it drop there, and train with it."
        )
    return (
        f"{what} Give its dropout a rate above 0; or put some in (dropkit.sites.convert shows where) and train with "
        "it. dropkit.sites.find(model, ...) lists what drops."
    )
