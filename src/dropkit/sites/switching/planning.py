"""Planning a switch: which modules have to see another mode so that every chosen site is switched, and nothing else."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from dropkit.errors import UnsupportedError
from dropkit.nn.layer import NoiseMixin
from dropkit.sites.interception.names import module_names
from dropkit.sites.switching.probe import Probe, Witness
from dropkit.sites.switching.rewriting import Plan, Rewriting

__all__ = ["planned"]


def planned(probe: Probe, mode: str, chosen: set[str]) -> Plan:
    """Find what has to be done besides rewriting calls, and try it.

    Args:
        probe: The probe.
        mode: The wanted mode, on or off.
        chosen: Names of the sites to switch.

    Returns:
        The plan.

    Raises:
        UnsupportedError: If anything else would change.
    """
    return _Planner(probe, mode, chosen).plan()


class _Planner:
    def __init__(self, probe: Probe, mode: str, chosen: set[str]) -> None:
        self.probe, self.mode, self.chosen, self.on = probe, mode, chosen, mode == "on"
        self.base = probe.evaluation if self.on else probe.train
        self.layers = self._layers()
        self.gates: dict[str, set[str]] = {}
        self.masks: set[str] = set()
        self.barred: set[str] = set()  # modules that do more in the other mode than to drop

    def plan(self) -> Plan:
        pending, other = self._pending(), self.probe.evaluation
        while True:
            is_new = self._add_gates(pending, other)
            trial = self._try()
            sites = self.probe.sites
            others = {sites[name].path for name in sites if self._differs(name, trial) and name not in self.chosen}
            others |= self._other_draws(trial)
            if others and self.gates:
                self._bar(others)
                pending, other = self._pending(), self.probe.evaluation
                continue
            if not (is_new and self.on):
                break
            pending, other = [name for name in pending if name not in trial.active], trial
        self._check(trial)
        stuck = {name for name in self.probe.sites if name in self.chosen and (name in trial.active) != self.on}
        return replace(self._now(), stuck=frozenset(stuck))

    def _layers(self) -> dict[str, NoiseMixin]:
        modules = module_names(self.probe.model)
        owners = {name: modules.get(self.probe.sites[name].path) for name in self.chosen}
        return {name: module for name, module in owners.items() if isinstance(module, NoiseMixin)}

    def _pending(self) -> list[str]:
        """Return the chosen sites that another mode of a module has to switch."""
        train = self.probe.train
        there = set(train.matched(self.probe.evaluation).values())
        wanted = [name for name in train.sites if name in train.active & self.chosen - self.layers.keys()]
        missing = [name for name in wanted if name not in there]
        if self.on:
            return missing
        missing = [name for name in missing if name not in train.rewritable]
        self.masks = {name for name in wanted if name not in train.rewritable and self.probe.sites[name].kind == "mask"}
        return missing

    def _add_gates(self, names: Iterable[str], other: Witness) -> bool:
        """Find the gates of sites that are missing in a forward, and return whether there is any that was not known."""
        is_new = False
        for name in names:
            tried = {gate for gate, gated in self.gates.items() if name in gated}
            gate = self.probe.gate(self.probe.sites[name], other, tried)
            if gate is not None and gate not in self.barred:
                self.gates.setdefault(gate, set()).add(name)
                is_new = True
        return is_new

    def _other_draws(self, trial: Witness) -> set[str]:
        """Return the names of the modules that draw more or less in a trial, apart from masks that are switched.

        Draws are told apart by their lines, for their numbers are others where one before them comes or goes.
        """
        own = {self.probe.train.draws.get(name) for name in self.chosen if self.probe.sites[name].in_train}
        own |= {self.probe.evaluation.draws.get(name) for name in self.chosen if not self.probe.sites[name].in_train}
        now, before = Counter(trial.draws.values()), Counter(self.base.draws.values())
        return {draw[0] for draw in {**now, **before} if now[draw] != before[draw] and draw not in own}

    def _bar(self, paths: set[str]) -> None:
        """Let modules alone that in the wanted mode draw anything else than before, or whose children do."""
        barred = self.gates.keys() & paths or self.gates.keys()
        self.barred |= barred
        self.gates.clear()

    def _now(self) -> Plan:
        gated = {name for names in self.gates.values() for name in names}
        can_follow = {name for name in self.masks - gated if self.probe.sites[name].is_rewritable}
        names = self.probe.names
        return Plan(dict(self.gates), self.layers, frozenset(can_follow), frozenset(), names)

    def _try(self) -> Witness:
        return self.probe.run(not self.on, Rewriting(self.mode, self.probe.sites, self.chosen, self._now()))

    def _check(self, trial: Witness) -> None:
        """Raise if anything else changes than chosen sites."""
        base, remedy = self.base, "Choose other sites with `where`, or let the module pass `training` to dropout."
        if base.moved != trial.moved:
            modules, names = ", ".join(map(repr, sorted(self.gates))), ", ".join(sorted(base.moved ^ trial.moved))
            raise UnsupportedError(
                f"switch: the modules {modules} have to see another mode to be switched {self.mode!r}, and then other "
                f"buffers change: {names}. {remedy}"
            )
        for name in sorted(self.gates):
            if name in base.outputs and base.outputs[name] != trial.outputs.get(name):
                raise UnsupportedError(
                    f"switch: the module {name!r} has to see another mode to be switched {self.mode!r}, and then "
                    f"returns something of another structure. {remedy}"
                )

    def _differs(self, name: str, trial: Witness) -> bool:
        site = self.probe.sites[name]
        return (name in trial.active) != (site.in_eval if self.on else site.in_train)
