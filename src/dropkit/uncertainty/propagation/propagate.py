"""A forward whose tensors are random: every function that it calls is answered by its rule."""

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map

from dropkit.errors import UnsupportedError
from dropkit.sites.calls.functions import INFERENCE, Call, find_call
from dropkit.sites.handwritten.draws import RANDOM, is_random
from dropkit.sites.interception.names import module_names
from dropkit.uncertainty.propagation.handle import Handle, can_be_handled, handles_among, without_handles
from dropkit.uncertainty.propagation.masks import HandDrawn
from dropkit.uncertainty.propagation.noise import COMPOSED, NOISE, Masking, dropped
from dropkit.uncertainty.propagation.rules import CONVERSIONS, FROM_SHAPE, LEAVES_FRESH, METADATA, RULES
from dropkit.uncertainty.propagation.variables import Sources, Variable, widened
from dropkit.uncertainty.results.outputs import flatten

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["REMEDY", "Propagation"]

_SWITCH = 3  # place of the argument of a random rectifier that says whether it draws
_PAIRS = frozenset([torch.native_dropout])  # it returns its mask, too
_DISTRIBUTIONS = torch.distributions.__file__.removesuffix("__init__.py")
_COMPARISONS = frozenset(
    getattr(place, spelled)
    for name in ("lt", "gt", "le", "ge", "eq", "ne")
    for place, spelled in ((torch, name), (Tensor, name), (Tensor, f"__{name}__"))
)
_PARAMETERS = "Return the distribution's parameters, such as logits, in its place."
_BY_HAND = "Drop by dropkit.nn.Dropout or dropkit.nn.DropPath in its place."
REMEDY = "Sample instead: dropkit.uncertainty.mc."


class Propagation(TorchFunctionMode):
    """One pass of means and covariances through a model.

    Args:
        model: The model, whose forward runs within.
        rank: As for `Sources`.
        drops: Whether dropout drops; else nothing is random. Default: yes.
    """

    def __init__(self, model: Module, rank: int | None, drops: bool = True) -> None:
        super().__init__()
        self.drops = drops
        self.sources = Sources(rank, self._where)
        self.calls = 0  # of functions that dropped
        self.keeps = False  # whether one of them keeps anything
        self.is_over = False
        self.has_inactive = False  # whether one was asked not to that has a rate
        self.refusal: UnsupportedError | None = None  # by code that may have made another error of it
        self._masks = HandDrawn(self)
        self._names = {id(module): name for name, module in module_names(model).items()}

    def __exit__(self, *error: Any) -> None:
        self.is_over = True  # what a model keeps of the pass goes on as it is, but makes no more of its kind
        super().__exit__(*error)

    def wrapped(self, value: Any) -> Any:
        """Return a value with a handle for every tensor of one axis or more."""
        leaves, rebuild = flatten(value)
        return rebuild([self._wrap(leaf) for leaf in leaves])

    def _wrap(self, value: Any, dtype: torch.dtype | None = None, memory: list[int] | None = None) -> Any:
        if isinstance(value, Variable):
            return Handle.of(value, self, dtype, memory)
        return Handle.of(self.sources.variable(value), self, None, memory) if can_be_handled(value) else value

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer a call: by a rule if something random is among its arguments, else as it is."""
        named = kwargs or {}
        if function in METADATA:
            return function(*args, **named)
        if function not in FROM_SHAPE and self._masks.concern(function, (args, dict(named))):
            self._check_current(function, handles_among(args, named))
            return self._masks.answer(function, args, named)
        self._check_noise(function, args, named)
        call = find_call(function, args, named)
        if call is not None and not call.is_active and call.switched(True).is_active:
            self.has_inactive = True
        if call is not None and call.function.kind in NOISE and (call.is_active or function not in _PAIRS):
            return self._noise(call)
        handles = handles_among(args, named)
        if function in FROM_SHAPE and len(handles) == 1 and handles[0] is _first(args, named):
            given, by_name = tree_map(_emptied, (args, dict(named)))
            return self.run(function, given, by_name, [])
        self._check_current(function, handles)
        if not any(handle.variable.is_random for handle in handles) or _is_validation(function):
            return self.run(function, args, named, handles)
        if function in CONVERSIONS and args:
            return self._converted(function, args, named)
        return self._random(function, args, named, handles)

    def _converted(self, function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Answer a call that makes a tensor of another type: of other tensors it asks for theirs alone."""
        given = args[0]
        (target, *rest), by_name = tree_map(_emptied, (args, dict(named)))
        if not (isinstance(given, Handle) and given.variable.is_random):
            return self.run(function, (given, *rest), by_name, handles_among(given))
        made = function(target, *rest, **by_name)
        if made is target:  # nothing is converted, and what works in place on the result works on the tensor
            return given
        return self._random(function, (given, *rest), by_name, [given]) if isinstance(made, Tensor) else made

    def _random(
        self, function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any], handles: list[Handle]
    ) -> Any:
        """Answer a call by its rule."""
        rule = RULES.get(function)
        if rule is None:
            raise self._refusal(_name(function), "has no rule for random tensors")
        target = _first(args, named) if _is_in_place(function, args, named) else None
        if target is not None and not isinstance(target, Handle):
            raise self._refusal(_name(function), "into a tensor from outside of the pass, as buffers are, has no rule")
        given, by_name = tree_map(_variable, (args, dict(named)))
        if function not in LEAVES_FRESH:
            for each in tree_leaves((given, by_name)):
                if isinstance(each, Variable):
                    self.sources.settle(each)
        try:
            with _precisely(handles[0].device.type):
                result = rule(self.sources, *given, **by_name)
        except UnsupportedError as error:
            raise self._refusal(_name(function), f"{error} has no rule") from error
        except TypeError as error:
            raise self._refusal(_name(function), f"with these arguments has no rule ({error})") from error
        if target is not None:
            if result.mean.shape != target.shape:
                raise self._refusal(_name(function), "that changes a shape in place has no rule")
            return target.overwrite(result)
        memory = handles[0].memory if len(handles) == 1 and _is_view(function) else None
        dtype = _narrow_type(function, args, named)
        return tree_map(lambda made: self._wrap(made, dtype, memory) if isinstance(made, Variable) else made, result)

    def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any], handles: list[Handle]
    ) -> Any:
        """Run a function of tensors of which none is random, and take hold of what it makes.

        So all that a model's code makes of its inputs, and of nothing, can become random in place. What shares its
        values with parameters, buffers and the like cannot, and is left alone.
        """
        others = [leaf for leaf in tree_leaves((args, dict(named))) if type(leaf) is not Handle]
        places = {_place(handle.variable.mean): handle.memory for handle in handles}
        outside = {_place(leaf) for leaf in others if isinstance(leaf, Tensor)}

        def wrap(leaf: Any) -> Any:
            place = _place(leaf) if can_be_handled(leaf) else None
            is_left = self.is_over or place is None or place in outside
            return leaf if is_left else self._wrap(leaf, None, places.get(place))

        result = without_handles(function, args, named, handles, wrap)
        if any(handle.shape != handle.variable.mean.shape for handle in handles):
            with torch._C._DisableTorchDispatch():  # a function that changes a shape in place: the handle follows
                function(*args, **named)
        return result

    def _noise(self, call: Call) -> Any:
        """Answer a call of a function that may drop."""
        given, kind = call.arguments, call.function.kind
        if call.function.function in _PAIRS:
            raise self._refusal(_name(call.function.function), "returns its mask, too, and so has no rule")
        if any(given.get(name) is not None for name in ("mask", "noise")) or given.get("return_mask"):
            raise self._refusal(kind, "with a mask of its own has no rule")
        is_active = call.is_active and self.drops
        if not is_active and kind not in COMPOSED:
            return given["input"]
        handle = given["input"]
        if not isinstance(handle, Handle):
            raise self._refusal(kind, "of what is no example's, such as weights, has no rule")
        self.calls += is_active
        self.keeps |= is_active and (isinstance(call.p, Tensor) or call.p != 1)
        self._check_current(call.function.function, handles_among(dict(given)))
        variables = {name: _variable(value) for name, value in given.items()} | {"input": _widened(handle.variable)}
        if not is_active:  # and does more than drop
            variables[str(call.function.rate)] = 0.0
        try:
            with _precisely(handle.device.type):
                made = NOISE[kind](self.sources, call.changed(**variables))
        except UnsupportedError as error:
            raise self._refusal(kind, f"{error}") from error
        is_in_place = given.get("inplace") or call.function.function.__name__.endswith("_")
        return handle.overwrite(made) if is_in_place else self._wrap(made, handle.dtype)

    def masked(self, handle: Handle, mask: Masking, shared: tuple[int, ...], dtype: torch.dtype) -> Any:
        """Return a tensor with a mask that was drawn by hand."""
        self.calls += self.drops
        self.keeps |= mask.rate < 1
        if not self.drops:
            return handle
        with _precisely(handle.device.type):
            made = dropped(self.sources, _widened(handle.variable), mask, shared)
        return self._wrap(made, dtype if dtype in (torch.float16, torch.bfloat16) else None)

    def refuse_by_hand(self, why: str) -> UnsupportedError:
        """Return the error about a mask that was drawn by hand."""
        return self._refusal("a mask drawn by hand", f"{why} has no rule", _BY_HAND)

    def refuse_noise(self) -> UnsupportedError:
        """Return the error about noise that is no mask, or a mask that does more than drop."""
        why = "draws other noise than dropout, or makes more of a mask drawn by hand than to drop by it"
        return self._refusal("the model", f"{why}, which has no rule")

    def _check_noise(self, function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Raise where a function draws what is no dropout: one draw of it is no constant."""
        if find_call(function, args, named, INFERENCE) is not None or _draws(function, args, named):
            raise self._refusal(_name(function), "draws other noise than dropout, which has no rule")

    def _check_current(self, function: Callable[..., Any], handles: list[Handle]) -> None:
        if not all(handle.is_current for handle in handles):
            raise self._refusal(_name(function), "of a view of what was overwritten in place has no rule")

    def refuse_below(self, name: str) -> UnsupportedError:
        """Return the error about an operation that met a random tensor where no rule can answer; and remember it."""
        where = "in TorchScript, under a transform such as torch.func.vmap, or in compiled code"
        self.refusal = self._refusal(name, f"met a random tensor {where}, where nothing has a rule")
        return self.refusal

    def _refusal(self, what: str, why: str, remedy: str = "") -> UnsupportedError:
        where = self._where()
        remedy = remedy or (_PARAMETERS if _distribution_files() else "")
        place = f", in module {where!r}" if where else ""
        return UnsupportedError(" ".join(filter(None, (f"moments: {what} {why}{place}.", remedy, REMEDY))))

    def _where(self) -> str:
        """Return the name of the innermost module whose code runs."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            name = self._names.get(id(frame.f_locals.get("self")))
            if name is not None:
                return name
            frame = frame.f_back
        return ""


def _variable(value: Any) -> Any:
    """Return what a rule is given for an argument, in single precision or better: a variable if it is random."""
    if isinstance(value, Handle):
        return _widened(value.variable) if value.variable.is_random else widened(value.variable.mean)
    return widened(value) if isinstance(value, Tensor) else value


def _widened(variable: Variable) -> Variable:
    """Return a variable in single precision or better; noise begins there, so one in less has none yet."""
    return variable if variable.is_random else Variable(widened(variable.mean))


def _precisely(device: str) -> AbstractContextManager[Any]:
    """Compute in the types that tensors have: sums of variances need more room than the sums that they are of."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _first(args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Return the first argument of a call."""
    return next(iter((*args, *named.values())), None)


def _emptied(value: Any) -> Any:
    """Return a tensor like a handle, of any values."""
    if not isinstance(value, Handle):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _narrow_type(function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]) -> torch.dtype | None:
    """Return the type of a result in the model, if it is less than single precision, in which rules compute."""
    if function in CONVERSIONS:
        given, by_name = tree_map(_emptied, (args, dict(named)))
        types = {function(*given, **by_name).dtype}
    else:
        leaves = tree_leaves((args, dict(named)))
        types = {x.dtype for x in leaves if isinstance(x, Tensor) and x.dim() > 0 and x.is_floating_point()}
    return types.pop() if len(types) == 1 and types <= {torch.float16, torch.bfloat16} else None


def _draws(function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    """Tell whether a call of any function draws what is no dropout."""
    if not is_random(function):
        return False
    if not RANDOM[function].startswith("rrelu"):
        return True
    return bool(args[_SWITCH] if len(args) > _SWITCH else named.get("training"))


def _distribution_files() -> list[str]:
    """Return the names of the files of `torch.distributions` whose code runs now, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    found = []
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_DISTRIBUTIONS):
            found.append(name.removeprefix(_DISTRIBUTIONS))
        frame = frame.f_back
    return found


def _is_validation(function: Callable[..., Any]) -> bool:
    """Tell whether a distribution checks its parameters, of which the means are checked then."""
    files = _distribution_files()
    return bool(files) and (files[0] == "constraints.py" or function in _COMPARISONS)


def _place(value: Tensor) -> int | None:
    """Return what tell tensors that share their values from others; None of those that have no memory of their own."""
    try:
        return value.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def _name(function: Callable[..., Any]) -> str:
    return resolve_name(function) or getattr(function, "__name__", repr(function))


def _is_in_place(function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    name = getattr(function, "__name__", "")
    is_method = name.endswith("_") and not name.endswith("__")
    is_operator = name.startswith("__i") and name.endswith("__")
    if is_method or is_operator or named.get("inplace"):
        return True
    place = _position(function)
    return place is not None and len(args) > place and bool(args[place])


@cache
def _position(function: Callable[..., Any]) -> int | None:
    """Return which argument of a Python function says that it works in place, if one does."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code is not None else ()
    return names.index("inplace") if "inplace" in names else None


_VIEWS = frozenset(
    ("flatten", "unflatten", "reshape", "view", "permute", "transpose", "swapaxes", "movedim", "squeeze", "unsqueeze",
     "contiguous", "chunk", "split", "unbind", "select", "narrow", "expand", "__getitem__", "detach")
)  # fmt: skip


def _is_view(function: Callable[..., Any]) -> bool:
    return getattr(function, "__name__", "") in _VIEWS
