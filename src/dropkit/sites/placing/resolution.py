"""From what a recipe wants to changes of a model: what is there is used, changed or removed; what is not is placed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.nn import Module

from dropkit.nn import Dropout, LockedDropout
from dropkit.sites.placing.flow import Flow, Knob, Port, Step, Value
from dropkit.sites.placing.places import BetweenLayers, Change, Placement, RateChange
from dropkit.sites.placing.recipes import BATCH_NORM, CURVED, PATHS, Want
from dropkit.sites.placing.walks import downstream, is_before_batch_norm, is_on_output, upstream

__all__ = ["Planned", "Resolution"]

_OUTPUT = "nothing comes after the output to make up for it"
_NOTHING = "nothing"


@dataclass(frozen=True)
class Planned:
    """What a plan does at one place.

    Args:
        place: Name of the site, as `find` has it.
        now: What is there.
        then: What will be there.
        why: The reason.
    """

    place: str
    now: str
    then: str
    why: str


class Resolution:
    """How a model gets what a recipe wants.

    Args:
        flow: The flow through the model, whose rates were probed.
        wants: What the recipe wants.
        overrides: Rates of single places.
    """

    def __init__(self, flow: Flow, wants: list[Want], overrides: Mapping[str, float]) -> None:
        self.flow = flow
        self.changes: list[Change] = []
        self._active: dict[str, float] = {}
        self.names: set[str] = set()
        self._targets: dict[Step, tuple[float, str]] = {}
        self._users: dict[Step, Want] = {}
        self._order = {step: number for number, step in enumerate(flow.steps)}
        self._rows: list[tuple[float, Planned]] = []
        self._skipped: dict[str, list[str]] = {}
        self._drops = [step for step in flow.steps if step.site]
        for want in wants:
            if want.p and not set(want.kinds) & set(PATHS) and want.site is None and is_before_batch_norm(want.value):
                want.p, want.why = 0.0, BATCH_NORM
        self._wants = list(wants)
        self._ports = self._all_ports(wants)
        for want in wants:
            self._use_what_is_there(want, overrides)
        self._forbid()
        for knob in {id(step.knob): step.knob for step in self._drops}.values():
            self._turn(knob, [step for step in self._drops if step.knob is knob])
        used = set(map(id, self._users.values()))
        self._place([want for want in self._wants if id(want) not in used])

    @property
    def rates(self) -> dict[str, float]:
        """The rate of every site that then drops, in the order of the flow."""
        return {row.place: self._active[row.place] for row in self.rows if row.place in self._active}

    @property
    def rows(self) -> list[Planned]:
        """What is done at each place, in the order of the flow."""
        rows = [row for _, row in sorted(self._rows, key=lambda pair: pair[0])]
        for why, names in self._skipped.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            rows.append(Planned(f"{names[0]}{more}", _NOTHING, _NOTHING, why))
        return [*dict.fromkeys(rows), Planned("(output)", _NOTHING, _NOTHING, _OUTPUT)]

    def _use_what_is_there(self, want: Want, overrides: Mapping[str, float]) -> None:
        near = [step for step in upstream(want.value) if step.kind == "dropout"]
        if want.role in ("outputs", "attention"):
            near += downstream(want.value)
        same = [want.site] if want.site else [step for step in near if step.draws in want.kinds]
        same.sort(key=lambda step: step.knob is None)
        same = same or sorted(_on_all_ways(want.value, want.kinds), key=self._order.__getitem__)
        if want.p and not same and not set(want.kinds) & set(PATHS):
            for step in [step for step in near if self._is_fixed(step)][:1]:
                why = f"cannot make way, for it is written into code, and stays in place of another: {want.why}"
                self._targets[step], self._users[step] = (step.p, why), want
        port = self._ports.get(id(want))
        name = same[0].site if same else self._name(want) if port is None else _site(port[0].path, port[1])
        self.names.add(name)
        want.p = overrides.get(name, want.p)
        if same:
            self._targets[same[0]], self._users[same[0]] = (want.p, want.why), want
        for step in same[1:]:
            is_behind = same[0] in upstream(step.outputs[0]) or step in upstream(same[0].outputs[0])
            why = f"{same[0].site} drops there already"
            self._targets[step] = (0.0, why) if is_behind else (want.p, want.why)
        for step in near:
            if step.draws in want.wrong and step not in self._users:
                self._targets[step] = (0.0, f"makes way for another kind: {want.why}")
        if want.network is not None and want.value.step is not None and want.value.step.p:
            self._targets[want.value.step] = (0.0, "draws anew at every step")

    def _is_fixed(self, step: Step) -> bool:
        """Tell whether a step drops at a rate that is written into code, and not for another want."""
        return bool(step.p) and step.knob is None and step.draws not in PATHS and step not in self._users

    def _forbid(self) -> None:
        """Remove what no recipe has: dropout of the output, and before BatchNorm."""
        for step in self._drops:
            if step.p and step not in self._targets and step.kind == "dropout" and step.outputs:
                if is_on_output(step.outputs[0], self.flow):
                    self._targets[step] = (0.0, _OUTPUT)
                elif step.draws not in PATHS and is_before_batch_norm(step.outputs[0]):
                    self._targets[step] = (0.0, BATCH_NORM)

    def _turn(self, knob: Knob | None, steps: list[Step]) -> None:
        """Set the rate that some sites have in common, or give each a layer of its own where they differ."""
        wanted = {self._targets[step][0] for step in steps if step in self._targets} or {step.p for step in steps}
        kept = [step for step in steps if step.p and step not in self._targets]
        if knob is not None and (len(wanted) > 1 or (kept and wanted == {0.0})):
            self._share_out(knob, steps)
            return
        for step in steps:
            p, why = self._targets.get(step, (step.p, "kept: not in this recipe"))
            if knob is not None and wanted != {p}:
                p, why = next(iter(wanted)), "it shares its layer with places that get this rate"
            is_refused = knob is None and p != step.p
            if is_refused:
                code = f"the code of {f'`{step.path}`' if step.path else 'the model'}"
                p, why = step.p, f"cannot be changed: {code} has the rate, not an attribute"
                if not p:
                    why = f"cannot be had: {code} calls {step.name} with no rate from an attribute"
            if p:
                self._active.setdefault(step.site, _as_found(step, p))
            if p or step.p or is_refused:
                self._row(step, p, why)
        if knob is not None and wanted != {knob.p} and wanted:
            self.changes.append(RateChange(knob, wanted.pop()))

    def _share_out(self, knob: Knob, steps: list[Step]) -> None:
        """Give places of several rates that have one layer a layer each."""
        self.changes.append(RateChange(knob, 0.0))
        why = "it shares its layer with places of other rates, and gets one of its own"
        for step in steps:
            is_used = self._users.pop(step, None) is not None
            if not step.inputs and step.p and step not in self._targets:
                self._row(
                    step, 0.0, "it shares its layer with places of other rates, and no module makes what it drops from"
                )
                continue
            if step not in self._targets and step.p and step.draws == "dropout":
                want = Want("kept", step.p, step.inputs[0], None, Dropout, (), (), "as it was, in a layer of its own")
                self._ports |= self._all_ports([want])
                self._wants.append(want)
                is_used = True
            if step.p:
                self._row(step, 0.0, why if is_used else self._targets.get(step, (0.0, why))[1])

    def _row(self, step: Step, p: float, why: str) -> None:
        if why:
            now, then = (f"{step.draws} {rate:.3g}" if rate else _NOTHING for rate in (step.p, p))
            self._rows.append((self._order[step], Planned(step.site, now, then, why)))

    def _place(self, wants: list[Want]) -> None:
        chosen: dict[tuple[int, str], Want] = {}
        for want in sorted(wants, key=self._position):
            port = self._ports.get(id(want))
            if not want.p:
                self._skipped.setdefault(want.why, []).append(self._name(want) if port is None else port[0].path)
            elif port is None:
                why = f"{want.why}: no module takes or gives that tensor alone, so nothing can be placed"
                self._skipped.setdefault(why, []).append(self._name(want))
            else:  # of the runs of one module the highest rate counts
                before = chosen.setdefault((id(port[0].module), port[1]), want)
                counts = max(before, want, key=lambda want: want.p)
                chosen[id(port[0].module), port[1]] = counts
                other = before if counts is want else want
                if other.p != counts.p:
                    why = f"{other.why}: {other.p:.3g} cannot be had, for other runs of the module want {counts.p:.3g}"
                    self._skipped.setdefault(why, []).append(_site(port[0].path, port[1]))
        for want in chosen.values():
            self._add(want, *self._ports[id(want)])

    def _add(self, want: Want, port: Port, child: str) -> None:
        layer, site = want.layer(want.p), _site(port.path, child)
        if want.network is not None and isinstance(layer, LockedDropout):
            self.changes.append(BetweenLayers(want.network, layer))
        else:
            self.changes.append(Placement(port, layer, child))
        self._active[site] = want.p
        row = Planned(site, _NOTHING, f"{type(layer).__name__} {want.p:.3g}", want.why)
        self._rows.append((self._position(want), row))

    def _position(self, want: Want) -> float:
        if want.reader is not None:
            return self._order[want.reader] - 0.5
        return -1.0 if want.value.step is None else self._order[want.value.step] + (0.25 if want.network else 0.5)

    def _name(self, want: Want) -> str:
        step = want.reader if want.reader is not None else want.value.step
        return "(input)" if step is None else step.path

    def _all_ports(self, wants: list[Want]) -> dict[int, tuple[Port, str]]:
        """Return where each want can be placed: at a tensor that a module takes or gives, whenever it runs."""
        offered = {id(want): list(self._offers(want, wants)) for want in wants}
        values: dict[tuple[str, str], set[int]] = {}
        for want in wants:
            for port, child in offered[id(want)]:
                values.setdefault((port.path, child), set()).add(id(want.value))
        chosen = {}
        for want in wants:
            for port, child in offered[id(want)]:
                if len(values[port.path, child]) == self.flow.runs.get(port.path, 0):
                    chosen[id(want)] = port, child
                    break
        return chosen

    def _offers(self, want: Want, wants: list[Want]) -> Iterator[tuple[Port, str]]:
        """Yield ports for a want, the best first."""
        if want.network is not None:
            if BetweenLayers.fits(want.network) and want.value.step is not None:
                yield Port(want.value.step.path, want.network, True), BetweenLayers.child
            return
        entered = [port for port in want.value.ports if port.is_input and want.reader and port.path == want.reader.path]
        others = {id(other.reader) for other in wants if other.value is want.value and other.reader}
        given = [port for port in want.value.ports if not port.is_input]
        given = given[::-1] if want.kinds == PATHS else given
        is_shared = len(others) > 1 and others >= {id(step) for step in want.value.readers}
        found = [*given, *entered] if is_shared else entered if want.reader else given
        if want.reader and not entered and set(map(id, want.value.readers)) <= others:
            found += given
        for step in [] if entered else upstream(want.value):
            is_other = step.name in CURVED or (want.kinds == PATHS and step.kind != "dropout")
            if is_other or len(step.inputs[0].readers) > 1:
                break
            found += [port for port in step.inputs[0].ports if not port.is_input]
        for port in found:
            if _can_hold(port.module):
                kind = "drop_path" if want.kinds == PATHS else "dropout"
                yield port, _child(port, f"{'input' if port.is_input else 'output'}_{kind}")


def _on_all_ways(value: Value, kinds: tuple[str, ...]) -> list[Step]:
    """Return the steps of some kinds that drop before a value, if there is one on every way from the layers before."""
    found: dict[Step, None] = {}
    seen: set[Step] = set()
    waiting = [value]
    while waiting:
        step = waiting.pop().step
        if step is None or step.is_layer or step.kind in ("sum", "batch_norm"):
            return []
        if step.kind == "dropout" and step.draws in kinds and step.p:
            found[step] = None
        elif step not in seen:
            seen.add(step)
            waiting += [before for before in step.inputs if before.is_floating]
    return list(found)


def _as_found(step: Step, p: float) -> float:
    """Return a rate as `find` gives it: that of a hand-written mask to what single precision resolves."""
    return float(f"{p:.7g}") if step.is_mask else p


def _can_hold(module: Module) -> bool:
    """Tell whether a module can have one more child: a container would run it as one of its own."""
    containers = torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict, torch.jit.ScriptModule
    return not isinstance(module, containers)


def _child(port: Port, name: str) -> str:
    number, free = 1, name
    while hasattr(port.module, free):
        number, free = number + 1, f"{name}_{number + 1}"
    return free


def _site(path: str, child: str) -> str:
    return f"{path}.{child}" if path else child
