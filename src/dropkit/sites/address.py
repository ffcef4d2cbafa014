"""Addressed models: masks that are a function of seed, place, step and call, and of nothing else."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

from dropkit._checks import KEY, argument_error, argument_type_error
from dropkit.errors import UnsupportedError
from dropkit.functional.address import draw_key, signed
from dropkit.functional.examples import NumberedKey
from dropkit.sites.addressing.declared import check_patterns
from dropkit.sites.addressing.drawing import check_batched, check_drawing, is_real
from dropkit.sites.addressing.keys import Keys
from dropkit.sites.addressing.numbered import numbered, numbered_draw, numbered_key
from dropkit.sites.addressing.parts import Parts
from dropkit.sites.addressing.state import STEP, checked_state, state_of
from dropkit.sites.calls.functions import INFERENCE, Call, find_call
from dropkit.sites.calls.replacement import has_source, replaced
from dropkit.sites.handwritten.draws import Draw, find_draw
from dropkit.sites.interception.attachment import Attachment, attached_to
from dropkit.sites.interception.checkpoints import is_recomputing, uncompiled
from dropkit.sites.interception.compiler import called, while_compiling
from dropkit.sites.interception.interceptor import Handler, Interceptor
from dropkit.sites.interception.names import is_dropout_layer, module_names
from dropkit.sites.interception.places import Frame, Place
from dropkit.sites.interception.telling import warn
from dropkit.sites.interception.underneath import check_no_script
from dropkit.sites.samples import current, is_numbering
from dropkit.sites.workers import Workers

__all__ = ["Addressing", "address"]


def address(model: Module, seed: int = 0, workers: Workers | None = None) -> "Addressing":
    """Give a model masks that can be drawn again: each a function of the seed, its place, the step and the call.

    From then on every dropout of the model, whatever draws it, has the key ``dropkit.random.call_key(seed, name, step,
    call)``: no generator is read, so that neither the order of calls, nor other random numbers, nor the device enter
    into a mask, and a run that is stopped and goes on has the masks it would have had. The name is that of the site, as
    `dropkit.sites.find` prints it; the call counts how often its module ran before in the step, in
    forwards that drew something, also in one that raised. A call that has a key,
    a mask or a generator of its own keeps it. So do uniform, Bernoulli and integer draws by hand, which masks are made
    of; other random numbers are left to PyTorch. Activation checkpointing of PyTorch recomputes the same masks.

    Fused ways through attention and encoders are not taken, also in evaluation. Compiled models draw the same masks, in
    one graph for all steps; what is checkpointed, or hides its draws from the compiler, runs as it was written, and
    raises under ``fullgraph=True``. The model's `state_dict` neither gains nor loses a key, and a deep copy of the
    model is a plain one.

    Args:
        model: The complete model, wrapped or not: names are those of its modules. Modules that are added later have no
            names of their own.
        seed: The seed, in ``[0, 2**64)``. Default: 0.
        workers: Of a model that many processes train, what each of them has: their masks are those of one process
            then. Default: this process has everything.

    Returns:
        The handle, which has the step: call its `step` after each update, or let it `follow` an optimizer. It holds
        until it is closed, as it is at the end of a ``with`` block.

    Raises:
        ArgumentError: If the seed is out of range, two names have one number, no module has a name that `workers` ask
            for, or the model, a part of it or a whole that it is part of is addressed already.
        ArgumentTypeError: If `model` is no module, the seed no integer, or `workers` of another type.
        UnsupportedError: If a compiled TorchScript module of it draws dropout.

    Examples:
        >>> import torch, dropkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = dropkit.sites.address(model, seed=7)
        >>> hook = handle.follow(optimizer)
        >>> first = model(torch.ones(3, 4))
        >>> first.sum().backward()
        >>> optimizer.step()
        >>> handle.state_dict()
        {'mask_version': 1, 'seed': 7, 'last_step': 1, 'runs': ()}
    """
    if not isinstance(model, Module):
        raise argument_type_error("address", "model", "a torch.nn.Module", model)
    if workers is not None and not isinstance(workers, Workers):
        raise argument_type_error("address", "workers", "dropkit.sites.Workers or None", workers)
    if isinstance(seed, Workers):
        rule = "an integer; workers go by their name, address(model, seed=..., workers=...)"
        raise argument_type_error("address", "seed", rule, seed)
    return Addressing(model, KEY.check("address", "seed", seed), workers)


class Addressing(Handler):
    """The handle of an addressed model: its seed, its step, and how often modules have run in it.

    It is made by `address`, is saved apart from the model, and stays in force until it is closed, also where nobody
    keeps it.
    """

    turn = 2  # so that nothing that it has run draws a mask

    def __init__(self, model: Module, seed: int, workers: Workers | None = None) -> None:
        _check_plain(model)
        if workers is not None:
            check_patterns(workers, module_names(model))
        self._has_warned = False
        modules = module_names(model)
        self._keys = Keys(model, len(modules), seed)
        self._parts = None if workers is None else Parts(workers, self._keys)
        for name, module in modules.items():
            if is_dropout_layer(module):
                self._keys.site(name)
        self._attachment = Attachment(model, self)
        self._interceptor = self._attachment.interceptor
        self._interceptor.counts = self._keys
        self._eager = ExitStack()
        self._is_open = True
        self._followed: tuple[weakref.ref[torch.optim.Optimizer], RemovableHandle] | None = None

    @property
    def is_uncompiled(self) -> bool:  # type: ignore[override]  # read alone
        """Whether its masks are those of examples, which compiled code would have to be told."""
        return self._parts is not None or is_numbering()

    @property
    def seed(self) -> int:
        """The seed of all masks."""
        return self._keys.seed

    @property
    def last_step(self) -> int:
        """The step whose masks the model draws: how many updates there were."""
        return self._keys.step

    @_disable_dynamo
    def step(self) -> None:
        """Go on to the masks of the next step, to be called once for each update of the weights.

        Raises:
            UnsupportedError: After `close`, or inside the model's forward.
        """
        self._move("step", self._keys.seed, self._keys.step + 1, {})

    def follow(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Go on by one step whenever an optimizer has applied an update.

        Batches whose gradients are accumulated belong to one step then, and so do all closures of one update; a step
        that a gradient scaler leaves out does not count.

        Args:
            optimizer: The optimizer; of several for one model, the one that is stepped once for each update.

        Returns:
            A handle whose `remove` ends it; the same one as before, if that optimizer is followed already.

        Raises:
            ArgumentError: If another optimizer is followed.
            ArgumentTypeError: If it is no optimizer.
            UnsupportedError: After `close`.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise argument_type_error("Addressing.follow", "optimizer", "a torch.optim.Optimizer", optimizer)
        self._check_open("follow")
        known, hook = self._followed or (lambda: None, None)
        if hook is not None and hook.id in (hook.hooks_dict_ref() or {}):  # neither removed nor gone with its optimizer
            if known() is optimizer:
                return hook
            rule, remedy = "the optimizer that is followed", "Each update counts once: remove() the other's handle."
            raise argument_error("Addressing.follow", "optimizer", rule, type(optimizer).__name__, remedy)
        hook = optimizer.register_step_post_hook(lambda *_: self.step() if self._is_open else None)
        self._followed = weakref.ref(optimizer), hook
        return hook

    @_disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """Return what has to be saved to go on: seed, step, the runs in it, and the version of the definition.

        It has the same keys at any time, and its runs are pairs of a module's name and their number.
        """
        keys = self._keys
        return state_of(keys.seed, keys.step, keys.lasting)

    @_disable_dynamo
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where another run was saved, with its seed.

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            ArgumentError: If it has other keys, names modules that the model has not, or is of another version of the
                masks' definition; nothing has changed then.
            ArgumentTypeError: If it is no mapping, or a number is no integer.
            UnsupportedError: After `close`, or inside the model's forward.
        """
        self._check_open("load_state_dict")
        state = checked_state("Addressing.load_state_dict", state_dict, self._interceptor.names.values())
        self._move("load_state_dict", *state)

    def close(self) -> None:
        """Let the model draw from PyTorch's generator again; after the backward passes of checkpointed forwards."""
        if self._is_open:
            self._check_idle("close")
            self._attachment.remove()
        self._is_open = False

    def __enter__(self) -> Self:
        """Return the handle, which closes at the end of a ``with`` block."""
        self._check_open("a with block")
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a copy, or one that is loaded again, be a closed handle: it belongs to no model."""
        return _closed, (self.seed, self.last_step, dict(self._keys.lasting))

    def __repr__(self) -> str:
        """Show the seed, the step, and whether it is closed."""
        return f"Addressing(seed={self.seed}, last_step={self.last_step}{'' if self._is_open else ', closed'})"

    def dropout(self, place: Place, call: Call) -> Any:
        """Run a call with the key of its place."""
        if not call.is_active:
            return call.run()
        if not has_source(call):
            check_batched(place)
        if torch.compiler.is_compiling():
            return replaced(call, key=self._keys.compiled(place, call.input.device), order=place.order)
        check_drawing()
        key, numbers = self._keys.key(place, is_real(call.input)), current()
        has_branch = call.arguments.get("branch") is not None  # which is code of the model
        seen = nullcontext() if has_branch else self._interceptor.as_one(Interceptor.place)
        if self._parts is not None:
            with seen:
                return self._parts.dropout(place, call, key, is_recomputing())
        if numbers is not None:
            with seen:
                return numbered(place, call, key, numbers)
        return replaced(call, key=key, order=place.order)

    def other(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Answer a layer that draws one key for several masks, and whoever draws a mask by hand; let all else run."""
        call = find_call(function, args, kwargs, INFERENCE)
        if call is not None:
            return self.dropout(self._interceptor.place(), call)
        if function is not draw_key:
            draw = find_draw(function, args, kwargs, self._interceptor.random_place)
            return called(function, args, kwargs) if draw is None else self._drawn_by_hand(draw)
        _, generator, tensor, *_ = args
        if generator is not None or self._interceptor.is_over():
            return function(*args, **kwargs)
        return self._drawn_key(tensor)

    def _drawn_by_hand(self, draw: Draw) -> Any:
        """Run a random operator, of which a mask may be made, with the key of its place."""
        has_source = draw.address or draw.kwargs.get("generator") is not None
        if not draw.has_address or has_source or self._interceptor.is_over():
            return draw.run()
        check_batched(draw.place)
        if torch.compiler.is_compiling():
            return draw.at(self._keys.compiled(draw.place, draw.device))
        check_drawing()
        key, numbers = self._keys.key(draw.place, draw.device.type != "meta"), current()
        seen = self._interceptor.as_one(Interceptor.random_place)
        if self._parts is not None:
            with seen:
                return self._parts.draw(draw, key)
        if numbers is not None:
            with seen:
                return numbered_draw(draw, key, numbers)
        return draw.at(key)

    def _drawn_key(self, examples: Tensor) -> Tensor | NumberedKey:
        """Return the key of a layer's masks, whose examples are along axis 0 of a tensor."""
        place = self._interceptor.place()
        check_batched(place)
        if torch.compiler.is_compiling():
            return self._keys.compiled(place, examples.device).to(examples.device)
        check_drawing()
        key = self._keys.key(place, is_real(examples))
        numbers = current() if self._parts is None else self._parts.several(place)
        if numbers is not None:
            return numbered_key(place, examples, key, numbers)
        return torch.tensor(signed(key), device="cpu")  # whose number kernels read without waiting

    def begin(self, module: Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Raise in an export, before anything has changed."""
        if torch.compiler.is_exporting():
            raise UnsupportedError("address: an exported program would have one mask for ever. Close the handle first.")
        if self._interceptor.frames:
            return
        if torch.compiler.is_compiling():
            if module.training:
                _warn_of_others()
            return
        self._attachment.tell_of_parts(module)
        if self._parts is not None:
            self._parts.begin(module, inputs, named)
        elif module.training and current() is None and not self._has_warned:
            self._has_warned = _warn_of_others()

    def entered(self, frame: Frame) -> None:
        """Let nothing compiled run in the outermost forward."""
        if self.is_uncompiled and len(self._interceptor.frames) == 1:
            self._eager.enter_context(uncompiled())

    def left(self, frame: Frame, output: Any) -> None:
        """Let compiled code run again after the outermost forward."""
        if self.is_uncompiled and not self._interceptor.frames:
            self._eager.close()

    def snapshot(self) -> Any:
        """Return what this worker's part of the batch is."""
        return None if self._parts is None else self._parts.snapshot()

    @contextmanager
    def resumed(self, state: Any) -> Iterator[None]:
        """Draw, meanwhile, the masks that were drawn at a snapshot."""
        with self._keys.drawing_again(), nullcontext() if self._parts is None else self._parts.resumed(state):
            yield

    def _move(self, method: str, seed: int, step: int, runs: dict[str, int]) -> None:
        self._check_open(method)
        self._check_idle(method)
        self._keys.move(seed, STEP.check(f"Addressing.{method}", "step", step), runs)

    def _check_open(self, method: str) -> None:
        if not self._is_open:
            raise UnsupportedError(f"Addressing.{method}: it was closed. Address the model again.")

    def _check_idle(self, method: str) -> None:
        self._interceptor.settle()
        if self._interceptor.frames:
            raise UnsupportedError(f"Addressing.{method}: the model's forward is running. Call it after the forward.")


def _closed(seed: int, step: int, runs: dict[str, int]) -> Addressing:
    """Return a handle that was closed in a step."""
    handle = Addressing.__new__(Addressing)
    handle._keys, handle._is_open = Keys(None, 0, seed), False
    handle._keys.move(seed, step, runs)
    return handle


@while_compiling
def _warn_of_others() -> bool:
    """Warn if this is one of many processes, whose masks nobody has told apart."""
    library = torch.distributed
    count = library.get_world_size() if library.is_available() and library.is_initialized() else 1
    if count > 1:
        warn(
            f"address: this is one of {count} processes, and draws the masks of one that has the whole batch. Say what "
            "it has, by address(model, workers=dropkit.sites.Workers(mesh, ...)), or number its examples by "
            "dropkit.sites.samples(ids)."
        )
    return count > 1


def _check_plain(model: Module) -> None:
    """Raise if a model, or a part of it, is addressed, or has dropout that nobody can see."""
    if any(isinstance(other.handler, Addressing) for other in attached_to(model)):
        remedy = "Close that handle first, or load a state into it."
        raise argument_error(
            "address", "model", "not addressed already, nor a part of it", type(model).__name__, remedy
        )
    check_no_script("address", model)
