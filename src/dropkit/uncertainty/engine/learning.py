"""Learning which sites of a model drop, and how to turn on those that evaluation mode turns off."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.nn import Module

from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.sites.find import Site
from dropkit.sites.interception.names import runnable, unwrapped
from dropkit.sites.interception.telling import warn
from dropkit.sites.switching.planning import planned
from dropkit.sites.switching.probe import Probe
from dropkit.sites.switching.rewriting import Plan
from dropkit.sites.switching.selection import Selection

__all__ = ["Learned", "learn"]


@dataclass(frozen=True)
class Learned:
    """What is known of a model's sites.

    Args:
        known: All sites, by name.
        chosen: Names of those that drop in Monte Carlo passes.
        plan: What has to be done to turn them on.
    """

    known: Mapping[str, Site]
    chosen: set[str]
    plan: Plan

    def joined(self, other: "Learned") -> "Learned":
        """Return what is known from these inputs and from others."""
        known = {**other.known, **self.known}
        return Learned(known, self.chosen | other.chosen, other.plan.joined(self.plan))


def learn(model: Module, selection: Selection, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Learned:
    """Run a model on inputs, in training and in evaluation mode, and learn its sites.

    Raises:
        ArgumentError: If there is none, or none that is chosen.
        UnsupportedError: If none of them can be turned on.
    """
    probe = Probe(unwrapped(model), runnable(model), args, kwargs)
    sites = {name: site for name, site in probe.sites.items() if site.is_certain}
    chosen = {name for name, site in sites.items() if site in selection}
    if not sites:
        raise ArgumentError(_nothing(model, [name for name in probe.sites if name not in sites]))
    if not chosen:
        raise selection.mismatch("mc", sites.values())
    plan = planned(probe, "on", chosen)
    if plan.stuck:
        names = ", ".join(f"{name} ({sites[name].kind})" for name in sites if name in plan.stuck)
        if chosen <= plan.stuck:
            raise UnsupportedError(f"mc: the model's dropout cannot be turned on in evaluation: {names}.")
        warn(f"mc: these sites cannot be turned on, and do not drop: {names}.")
    return Learned(probe.sites, chosen - plan.stuck, plan)


def _nothing(model: Module, uncertain: list[str]) -> str:
    names = ", ".join(uncertain)
    perhaps = f" What {names} draws may be dropout, but cannot be told from other noise." if uncertain else ""
    return (
        f"mc: nothing in this {type(model).__name__} drops on these inputs, so that all passes would be equal."
        f"{perhaps} Give its dropout a rate above 0; or put some in (dropkit.sites.convert shows where) and train with "
        "it. dropkit.sites.find(model, ...) lists what drops."
    )
