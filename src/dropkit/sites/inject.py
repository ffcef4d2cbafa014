"""Masks read out of a model's forwards, and handed in: a step replayed exactly."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from dropkit._checks import argument_error, argument_type_error
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.functional.address import draw_key, signed
from dropkit.functional.examples import NumberedKey
from dropkit.sites.calls.functions import Call
from dropkit.sites.calls.replacement import replaced, replacement
from dropkit.sites.handwritten.draws import Draw, find_draw
from dropkit.sites.interception.attachment import Attachment
from dropkit.sites.interception.counts import Counts
from dropkit.sites.interception.interceptor import Handler
from dropkit.sites.interception.names import module_names, unwrapped
from dropkit.sites.interception.places import Place
from dropkit.sites.interception.underneath import check_no_script

__all__ = ["inject", "record"]

Name = tuple[str, int]
Masks = dict[Name, Any]


@contextmanager
def record(model: Module) -> Iterator[Masks]:
    """Collect every mask of a model's forwards within a ``with`` statement, so that `inject` can replay them.

    Dropout is drawn by dropkit's operations meanwhile, and runs in eager code. The results of random operators are
    collected too, whatever they are for, since hand-written masks are among them. A backward pass through activation
    checkpoints belongs inside the statement.

    Args:
        model: The model, wrapped or not.

    Yields:
        A dict that fills: of each site's name, as `find` gives it, and the number of the call, counted from 0 by the
        runs of its module, the mask, True = kept. That is a bool tensor of length 1 on axes that share a draw; a tuple
        of them for a recurrent network, one a gap between layers; a tensor of numbers for noise that is no mask; and
        for a function or a layer of dropkit's that has no one mask to give, the key of its noise.

    Raises:
        ArgumentTypeError: If `model` is no module.
        UnsupportedError: If a TorchScript module of it draws dropout, or a call has an input that masks are not for.

    Examples:
        >>> import torch, dropkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
        >>> x = torch.ones(3, 4)
        >>> with dropkit.sites.record(model) as masks:
        ...     y = model(x)
        >>> {name: tuple(mask.shape) for name, mask in masks.items()}
        {('1', 0): (3, 8)}
        >>> with dropkit.sites.inject(model, masks):
        ...     same = model(x)
        >>> torch.equal(y, same)
        True
    """
    recorder = _Recorder()
    with _attached("record", model, recorder):
        yield recorder.masks


@contextmanager
def inject(model: Module, masks: Mapping[Any, Any], *, strict: bool = True) -> Iterator[None]:
    """Run a model's forwards within a ``with`` statement with given masks.

    Rates stay the model's own, so survivors are scaled as ever. At p = 0 and in evaluation nothing drops, and a mask
    for such a call is one that is not used.

    Args:
        model: The model, wrapped or not.
        masks: What `record` has collected, or the like: masks by name and number of the call, or by name alone for the
            first. One of length 1 on an axis is shared along it.
        strict: Whether a call that drops and has no mask is an error; if not, it draws. Default: True.

    Yields:
        Nothing.

    Raises:
        ArgumentError: If a name is none of the model's, a mask does not fit or was not used, or one is missing.
        ArgumentTypeError: If an argument or a mask has a wrong type.
        UnsupportedError: If a TorchScript module of the model draws dropout.

    Examples:
        >>> import torch, dropkit
        >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5))
        >>> with dropkit.sites.inject(model, {"0": torch.tensor([[True, False, True]])}):
        ...     model(torch.ones(2, 3))
        tensor([[2., 0., 2.],
                [2., 0., 2.]])
    """
    if type(strict) is not bool:
        raise argument_type_error("inject", "strict", "True or False", strict)
    injector = _Injector(_checked(model, masks), strict)
    with _attached("inject", model, injector):
        yield
    unused = [name for name in injector.masks if name not in injector.used]
    if unused:
        remedy = "Is the model in training mode, and did it run as often as when they were recorded?"
        raise argument_error("inject", "masks", "all used", _shown(unused), remedy)


def _shown(names: list[Name]) -> str:
    listed = ", ".join(f"{name!r} (call {call})" for name, call in names[:5])
    return f"no use of {listed}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@contextmanager
def _attached(where: str, model: Module, handler: "_Recorder") -> Iterator[None]:
    """Attach a handler, in eager code, for as long as the statement lasts."""
    if not isinstance(model, Module):
        raise argument_type_error(where, "model", "a torch.nn.Module", model)
    model = unwrapped(model)
    check_no_script(where, model)
    attachment = Attachment(model, handler)
    handler.attachment, attachment.interceptor.counts = attachment, Counts()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        attachment.remove()


def _checked(model: Module, masks: Mapping[Any, Any]) -> Masks:
    """Return masks by name and call; raise where one is for no module of the model."""
    if not isinstance(masks, Mapping):
        raise argument_type_error("inject", "masks", "a dict of masks by name and number of the call", masks)
    paths = set(module_names(unwrapped(model))) if isinstance(model, Module) else set()
    found: Masks = {}
    for key, mask in masks.items():
        name, call = key if isinstance(key, tuple) and len(key) == 2 else (key, 0)
        if not isinstance(name, str) or type(call) is not int:
            raise argument_type_error("inject", "masks", "a dict by name, or by (name, number of the call)", key)
        if paths and re.sub(r"[#~]\d+$", "", name) not in paths:
            remedy = "dropkit.sites.find lists the names; that of the model's own forward begins with # or ~."
            raise argument_error("inject", "masks", "for sites of the model", name, remedy)
        if (name, call) in found:
            raise argument_error("inject", "masks", "one for each call", (name, call))
        _check_mask(key, mask)
        found[name, call] = mask
    return found


def _check_mask(key: Any, mask: Any) -> None:
    """Raise where something is neither a mask, nor several, nor a key."""
    where, rule = f"masks[{key!r}]", "a dense tensor, a tuple of them for a recurrent network, or a key"
    for part in mask if isinstance(mask, tuple | list) else (mask,):
        if not isinstance(part, Tensor | NumberedKey) and type(mask) is not int:
            raise argument_type_error("inject", where, rule, part)
        if isinstance(part, Tensor) and part.layout not in (torch.strided, torch.jagged):
            raise argument_error("inject", where, rule, f"one of layout {part.layout}", "Convert it by `to_dense()`.")


class _Recorder(Handler):
    """Notes what is drawn; a forward that is recomputed gets what it got before."""

    attachment: Attachment

    def __init__(self) -> None:
        self.masks: Masks = {}
        self._states: dict[Name, _Generator] = {}

    def dropout(self, place: Place, call: Call) -> Any:
        if not call.is_active:
            return call.run()
        name = place.name, place.run
        if name in self._states:  # again, as it was: a checkpoint wants the same tensors saved as before
            with self._states[name].resumed():
                return replaced(call, return_mask=True, order=place.order)[0]
        if name in self.masks:
            return _given(name, place, call, self.masks[name])
        own = replacement(call)
        if own is not None and own.function.returned is None:
            key = _own_key(own)
            if key is not None:
                self.masks[name] = key
            return _given(name, place, call, key)
        self._states[name] = _Generator(call.input.device)
        result, self.masks[name] = replaced(call, return_mask=True, order=place.order)
        return result

    def other(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if function is draw_key:  # of a layer of dropkit's that draws several masks
            return self.key(self.attachment.interceptor.place(), *args)
        draw = find_draw(function, args, kwargs, self.attachment.interceptor.random_place)
        return function(*args, **kwargs) if draw is None else self.draw(draw)

    def begin(self, module: Module, inputs: Any, named: Any) -> None:
        """Raise in an export, whose program would have these masks for ever."""
        if torch.compiler.is_exporting():
            raise UnsupportedError("dropkit.sites: no program is exported while masks are recorded or injected.")

    def key(self, place: Place, *args: Any) -> Tensor | NumberedKey:
        """Note the key that a layer draws."""
        name = place.name, place.run
        if name not in self.masks:
            self.masks[name] = _number(draw_key(*args))
        return _as_key(name, self.masks[name], args[2].device)

    def draw(self, draw: Draw) -> Any:
        """Note what a random operator draws."""
        name = draw.place.name, draw.place.run
        if name in self.masks:
            return _drawn(name, draw, self.masks[name])
        result = draw.run()
        if isinstance(result, Tensor):
            self.masks[name] = result.detach().clone()
        return result


class _Injector(_Recorder):
    """Hands masks in."""

    def __init__(self, masks: Masks, strict: bool) -> None:
        super().__init__()
        self.masks, self.strict = masks, strict
        self.used: set[Name] = set()

    def dropout(self, place: Place, call: Call) -> Any:
        name = place.name, place.run
        if not call.is_active or not self._has(name, has_source=_has_key(call)):
            return call.run()
        return _given(name, place, call, self.masks[name])

    def key(self, place: Place, *args: Any) -> Tensor | NumberedKey:
        name = place.name, place.run
        return _as_key(name, self.masks[name], args[2].device) if self._has(name) else draw_key(*args)

    def draw(self, draw: Draw) -> Any:
        name = draw.place.name, draw.place.run
        return _drawn(name, draw, self.masks[name]) if self._has(name) else draw.run()

    def _has(self, name: Name, has_source: bool = False) -> bool:
        if name in self.masks:
            self.used.add(name)
            return True
        if self.strict and not has_source:
            remedy = "Give one, or pass strict=False to have it drawn."
            raise argument_error("inject", "masks", f"a mask for {name[0]!r}, call {name[1]}", "none", remedy)
        return False


class _Generator:
    """The state of PyTorch's generator on a device."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [] if device.type in ("cpu", "meta") else [device]
        self.state = torch.get_rng_state()
        self.of_device = [torch.get_device_module(each).get_rng_state(each) for each in self.devices]

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Draw again, meanwhile, what was drawn from this state on."""
        kind = {"device_type": self.devices[0].type} if self.devices else {}
        with torch.random.fork_rng(self.devices, **kind):
            torch.set_rng_state(self.state)
            for device, state in zip(self.devices, self.of_device, strict=True):
                torch.get_device_module(device).set_rng_state(state, device)
            yield


def _number(key: Tensor | NumberedKey) -> int:
    """Return a key that was drawn as a number, which keeps the numbers of examples if it has any."""
    return key if isinstance(key, NumberedKey) else int(key) % 2**64


def _as_key(name: Name, key: Any, device: torch.device) -> Tensor | NumberedKey:
    if isinstance(key, NumberedKey):
        return key
    if type(key) is not int:
        remedy = "This layer draws several masks, which its key stands for."
        raise argument_type_error("inject", f"masks[{name!r}]", "a key, an integer in [0, 2**64)", key, remedy)
    return torch.tensor(signed(key), device=device)


def _has_key(call: Call) -> bool:
    """Tell whether the user has given a function of dropkit's a key, and it has no mask that could be recorded."""
    row = call.function
    return row.key is not None and row.returned is None and call.arguments.get(row.key) is not None


def _own_key(call: Call) -> int | None:
    """Return a key for a call that has no mask to give, drawn as it would draw it; None where the user gave one."""
    if _has_key(call):
        return None
    return _number(draw_key("record", call.arguments.get("generator"), call.input))


def _given(name: Name, place: Place, call: Call, mask: Any) -> Any:
    """Run a call with its mask, or with its key."""
    if mask is None:
        return call.run()
    try:
        if type(mask) is not int and not isinstance(mask, NumberedKey):
            return replaced(call, mask=mask, order=place.order)
        own = replacement(call)
        if own is None or own.function.returned is not None:
            raise argument_type_error("inject", "mask", "a tensor", mask)
        sources = {source: None for source in ("generator",) if source in own.arguments}
        return own.changed(**sources, **{str(own.function.key): mask}).run()
    except (ArgumentError, ArgumentTypeError) as error:
        raise type(error)(f"inject: the mask of {name[0]!r}, call {name[1]}: {error}") from error


def _drawn(name: Name, draw: Draw, value: Any) -> Any:
    """Return what a random operator would return, with given values."""
    where = f"masks[{name!r}]"
    if not isinstance(value, Tensor):
        raise argument_type_error("inject", where, "a tensor, for a random operator", value)
    result = draw.run()
    if not isinstance(result, Tensor) or result.shape != value.shape:
        rule = f"of shape {tuple(getattr(result, 'shape', ()))}, that of what {draw.operator} draws"
        raise argument_error("inject", where, rule, tuple(value.shape))
    if result.device != value.device or result.dtype != value.dtype:
        rule = f"of {result.dtype} on {result.device}, as what {draw.operator} draws"
        raise argument_error("inject", where, rule, f"{value.dtype} on {value.device}")
    with torch.no_grad():
        return result.copy_(value)
