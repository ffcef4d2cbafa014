"""Placing dropout in a model that has none, or has it wrong, by a recipe."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.jit import ScriptModule
from torch.nn import Module

from dropkit._checks import Choice, Number, argument_error, argument_type_error
from dropkit.errors import UnsupportedError
from dropkit.sites.interception.attachment import attached_to
from dropkit.sites.interception.names import module_names, unwrapped
from dropkit.sites.placing.flow import trace
from dropkit.sites.placing.places import is_placed
from dropkit.sites.placing.recipes import RECIPES, Rates
from dropkit.sites.placing.resolution import Planned, Resolution

__all__ = ["Plan", "Planned", "convert"]

_RATE = Number(0.0, 1.0, open_high=True, remedy="p is the probability of dropping a unit.")


class Plan(list[Planned]):
    """What a recipe does to a model, place by place; printed, a table."""

    def __init__(self, model: Module, resolution: Resolution, check: Callable[[], dict[str, float]]) -> None:
        super().__init__(resolution.rows)
        self._model, self._changes, self._rates = model, resolution.changes, resolution.rates
        self._check = check
        self._applied: list[Any] = []
        self._is_applied = False

    @property
    def is_applied(self) -> bool:
        """Whether the model is as the plan has it."""
        return self._is_applied

    @property
    def rates(self) -> dict[str, float]:
        """The rate of every site that drops in training, once the plan is applied, by name, as `find` has it."""
        return dict(self._rates)

    def apply(self) -> None:
        """Change the model, and see by one forward in training mode that it drops where the plan says, and only there.

        Raises:
            UnsupportedError: If it does not, or the model was converted since; it is then as it was before.
        """
        if self._is_applied:
            raise UnsupportedError("Plan.apply: the plan is applied already. Call undo() before applying it again.")
        _check_plain(self._model)
        self._is_applied = True
        try:
            for change in self._changes:
                change.apply()
                self._applied.append(change)
            self._verify()
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Put the model back as it was before the plan was applied; nothing happens if it is not applied."""
        while self._applied:
            self._applied.pop().undo()
        self._is_applied = False

    def _verify(self) -> None:
        found = self._check()
        if found != self._rates:
            wrong = {name for name in {*found, *self._rates} if found.get(name) != self._rates.get(name)}
            name = min(wrong)
            raise UnsupportedError(
                f"convert: `{name}` was to drop at the rate {self._rates.get(name, 0.0):g} and drops at "
                f"{found.get(name, 0.0):g}, so the model was left as it was. Does its forward differ from run to run?"
            )

    def __str__(self) -> str:
        rows = [("place", "now", "planned", "why"), *((row.place, row.now, row.then, row.why) for row in self)]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def convert(
    model: Module,
    recipe: str,
    *args: Any,
    p: float | Mapping[str, Any] | None = None,
    dry_run: bool = False,
    **kwargs: Any,
) -> Plan:
    """Place dropout in a model that has none, or has it wrong, by a recipe.

    Which layer comes first, which last, and what BatchNorm follows is seen by running the model once in training mode.
    Rates that are there, in dropout layers, attention and recurrent networks, are set; elsewhere a layer of
    `dropkit.nn` becomes a child of a module, named `input_dropout` or `output_dropout`, and a hook calls it with what
    the module takes or gives. Code, `state_dict`, parameters and answers in evaluation stay as they are; copies and
    pickles of the model keep the layers. Between the layers of a recurrent network masks are locked by making it a
    subclass of its class. PyTorch's fused ways through encoders, which look for hooks, are not taken where one is.

    The recipes:

    - ``"srivastava"``: for fully connected networks, ``input`` 0.2 and ``hidden`` 0.5.
    - ``"cnn"``: ``channels`` of maps between convolutions, 0.1 at the first to 0.25 at the last, and ``dense`` 0.5
      before the last dense layer.
    - ``"rnn"``: one mask for all steps, on ``inputs``, ``between`` layers and on ``outputs``, each 0.25.
    - ``"transformer"``: ``attention`` weights, the output of each ``sublayer``, and inside the ``feed_forward``,
      each 0.1.
    - ``"vit"``: the branches of residual blocks, ``path`` from 0 at the first to 0.1 at the last.

    None drops from the output, and only the last drops where a BatchNorm follows.

    Args:
        model: The model, wrapped or not.
        recipe: Name of the recipe.
        *args: What the model's forward takes: an example, of two rows or more where BatchNorm needs them.
        p: Other rates, in ``[0, 1)``: a number for all places, or for the last where rates grow; or a dict from the
            names of the recipe above, or of places in the plan, to numbers, or a pair (first, last) where rates grow.
            Default: the recipe's.
        dry_run: Whether to leave the model alone and only plan. Default: False.
        **kwargs: What the forward takes by name.

    Returns:
        The plan, which prints as a table; `Plan.apply` carries out that of a dry run, and `Plan.undo` puts the model
        back.

    Raises:
        ArgumentError: If the recipe is unknown, a rate out of range, or no example is given.
        ArgumentTypeError: If `model` is no module, or `dry_run` no bool.
        UnsupportedError: If the recipe does not fit the model, the model is converted already, or its calls are
            intercepted.

    Examples:
        >>> import torch, dropkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = dropkit.sites.convert(model, "srivastava", torch.ones(5, 4))
        >>> print(plan)
        place            now      planned      why
        0.input_dropout  nothing  Dropout 0.2  the input
        2.input_dropout  nothing  Dropout 0.5  a hidden layer
        (output)         nothing  nothing      nothing comes after the output to make up for it
        >>> plan.undo()
    """
    if not isinstance(model, Module):
        raise argument_type_error("convert", "model", "a torch.nn.Module", model)
    chosen = RECIPES[Choice(tuple(RECIPES)).check("convert", "recipe", recipe)]
    if not args and not kwargs:
        remedy = "Give what the model's forward takes: convert(model, recipe, x)."
        raise argument_error("convert", "args", "example inputs", args, remedy)
    if type(dry_run) is not bool:
        raise argument_type_error("convert", "dry_run", "True or False", dry_run)
    rates, overrides = _rates(chosen.rates, p)
    model = unwrapped(model)
    _check_plain(model)
    flow = trace(model, args, kwargs, probing=True)
    chosen.check(recipe, flow)
    resolution = Resolution(flow, list(chosen.plan(flow, rates)), overrides)
    unknown = sorted(set(overrides) - resolution.names)
    if unknown:
        known = ", ".join([*rates, *sorted(resolution.names)])
        raise argument_error("convert", "p", "a dict of rates by role or place", unknown[0], f"Known are {known}.")
    plan = Plan(model, resolution, lambda: trace(model, args, kwargs).active())
    if not dry_run:
        plan.apply()
    return plan


def _rates(rates: Rates, p: Any) -> tuple[Rates, dict[str, float]]:
    """Return the rates of all roles, and those of single places."""
    if p is None:
        return rates, {}
    if not isinstance(p, Mapping):
        p = _RATE.check("convert", "p", p)
        return {role: (p * low / high, p) for role, (low, high) in rates.items()}, {}
    changed, places = dict(rates), {}
    for name, rate in p.items():
        label = f"p[{name!r}]"
        if name not in rates:
            places[name] = _RATE.check("convert", label, rate)
        elif isinstance(rate, tuple | list) and len(rate) == 2 and rates[name][0] != rates[name][1]:
            changed[name] = _RATE.check("convert", label, rate[0]), _RATE.check("convert", label, rate[1])
        else:
            high = _RATE.check("convert", label, rate)
            changed[name] = high * rates[name][0] / rates[name][1], high
    return changed, places


def _check_plain(model: Module) -> None:
    """Raise if a model is converted, its calls cannot be seen, or are intercepted by names that would not be all."""
    if isinstance(model, ScriptModule):
        remedy = "Convert the module that it was compiled from."
        raise UnsupportedError(f"convert: the model is a TorchScript module, whose forward cannot be seen. {remedy}")
    for name, module in module_names(model).items():
        if is_placed(module):
            remedy = "Call undo() of its plan first, or set the rates of its dropout layers."
            raise UnsupportedError(f"convert: the model is converted already, in `{name or 'itself'}`. {remedy}")
    if attached_to(model):
        raise UnsupportedError(
            "convert: the model is addressed, switched or accelerated already, by the names of its modules. Undo that, "
            "convert, and do it again."
        )
