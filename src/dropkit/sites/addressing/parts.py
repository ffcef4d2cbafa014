"""Parts: which part of a whole tensor this worker has at a site, and its calls with the mask of that part."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_map_only

from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.sites.addressing.batches import has_all_examples, numbers_given
from dropkit.sites.addressing.comparison import check_parts
from dropkit.sites.addressing.declared import Declared
from dropkit.sites.addressing.distributed import is_distributed, local_arguments, offset_of, placements_of, whole_of
from dropkit.sites.addressing.keys import Keys
from dropkit.sites.addressing.mesh import others, position
from dropkit.sites.addressing.numbered import is_weight, numbered, numbered_draw
from dropkit.sites.calls.functions import Call
from dropkit.sites.calls.replacement import replaced
from dropkit.sites.handwritten.draws import Draw
from dropkit.sites.interception.places import Place
from dropkit.sites.samples import Numbers, current
from dropkit.sites.workers import Workers

__all__ = ["Parts"]


_NOTHING: Mapping[int, tuple[int, int]] = MappingProxyType({})


class Parts:
    """Gives the calls of a model the masks of what this worker has.

    Args:
        workers: What each worker has.
        keys: The model's keys, and what they depend on.
    """

    def __init__(self, workers: Workers, keys: Keys) -> None:
        self._workers, self._declared, self._keys = workers, Declared(workers), keys
        self._numbers: Numbers | None = None
        self._entry = 0  # the module that is called from outside
        self._settled: set[tuple[int, str, int]] = set()  # calls: that module, the site, and the number in a forward

    @property
    def numbers(self) -> Numbers | None:
        """The numbers of the examples of this forward: given, or those of this worker's part of the batch."""
        given = _given()
        return self._numbers if given is None else given

    def snapshot(self) -> tuple[Numbers | None, int]:
        """Return the numbers of this worker's part of the batch that the forward was given, and what it began with."""
        return self._numbers, self._entry

    @contextmanager
    def resumed(self, state: tuple[Numbers | None, int] | None) -> Iterator[None]:
        """Let a forward of before go on, meanwhile, with its part of the batch."""
        before = self._numbers, self._entry
        self._numbers, self._entry = state or (None, 0)
        try:
            yield
        finally:
            self._numbers, self._entry = before

    def begin(self, module: Module, inputs: Any, named: Mapping[str, Any]) -> None:
        """Number the examples that an outermost forward, of a module, is given."""
        self._declared.look(module)
        self._numbers, self._entry = None, id(module)
        if _given() is None:
            self._numbers = numbers_given(self._workers, inputs, named)

    def dropout(self, place: Place, call: Call, key: int, is_repeated: bool = False) -> Any:
        """Run an active call with a key, and the mask of this worker's part; one that is repeated was compared."""
        if any(map(is_distributed, call.arguments.values())):
            return self._distributed(place, call, key)
        declared = self._declared.axes(place)
        which = self._entry, place.name, place.frame.run
        is_settled = is_repeated or which in self._settled
        if not is_settled and check_parts(self._workers, place, self._keys, call.input, declared):
            self._settled.add(which)
        return _run(place, call, key, self._numbers_of(place, call, declared))

    def draw(self, draw: Draw, key: int) -> Any:
        """Draw random numbers with a key, those of this worker's part."""
        if any(map(is_distributed, (*draw.args, *draw.kwargs.values()))):
            raise UnsupportedError(
                f"address: {draw.place.name} draws a mask for a DTensor by hand. Use torch.nn.functional.dropout."
            )
        shape, declared = draw.shape, self._declared.axes(draw.place)
        if not shape:
            return draw.at(key)
        numbers = self._numbers_at(declared, shape, self._axis(declared))
        return draw.at(key) if numbers is None else numbered_draw(draw, key, numbers)

    def several(self, place: Place) -> Numbers | None:
        """Return the numbers of examples for a layer that draws one key for several masks."""
        declared = self._declared.axes(place)
        if any(name not in self._workers.examples for name in declared):
            raise UnsupportedError(
                f"address: {place.name} draws one key for several masks: workers have no parts of them but of examples."
            )
        return None if self._axis(declared) is None else self._known()

    def _axis(self, declared: Mapping[str, int | None]) -> int | None:
        """Return the axis of examples at a site; None if it has none."""
        if not self._workers.examples:
            return None if self.numbers is None else self.numbers.axis
        axes = [declared[name] for name in self._workers.examples if name in declared]
        given = current()
        return axes[0] if axes else self._workers.dim if given is None else given.axis

    def _known(self) -> Numbers:
        """Return the numbers of the examples."""
        numbers = self.numbers
        if numbers is None:
            rule = f"no tensor with an axis {self._workers.dim} of examples"
            remedy = "Number them: with dropkit.sites.samples(ids)."
            raise ArgumentError(
                f"address: the forward was given {rule}, so that a part of a batch cannot be told. {remedy}"
            )
        return numbers

    def _numbers_of(self, place: Place, call: Call, declared: Mapping[str, int | None]) -> Numbers | None:
        """Return the numbers of the examples of a call on plain tensors, and where those begin along other axes."""
        axis, kind = self._axis(declared), call.function.kind
        if call.input.is_nested:
            return self._numbers_of_nested(place, axis, declared)
        shape = _shape(call)
        if kind in _BATCHED:  # which know where their batch is
            return None if axis is None else replace(self._known(), shards=self._shards({}, declared, shape))
        if _is_attention(call):
            return self._numbers_at(declared, shape, axis, 0)
        if axis is not None and is_weight(call.input, axis):
            axis = None
        is_first = axis is None or current() is not None or not shape or axis % len(shape) == 0
        if kind not in _ELEMENTWISE and not is_first:
            raise UnsupportedError(
                f"address: {place.name or 'the model'} draws the noise of {kind} for examples along axis {axis}, which "
                "has no parts. Bring them to axis 0, or number them by dropkit.sites.samples."
            )
        return self._numbers_at(declared, shape, axis)

    def _numbers_of_nested(self, place: Place, axis: int | None, declared: Mapping[str, int | None]) -> Numbers | None:
        """Return the numbers of the examples of a nested tensor, whose other axes have no one length."""
        if any(name not in self._workers.examples for name in declared):
            raise UnsupportedError(
                f"address: {place.name or 'the model'} drops from a nested tensor: workers have no parts of it but of "
                "examples."
            )
        return None if axis is None else replace(self._known(), axis=axis)

    def _numbers_at(
        self,
        declared: Mapping[str, int | None],
        shape: Sequence[int],
        axis: int | None,
        batch: int | None = None,
        shards: Mapping[int, tuple[int, int]] = _NOTHING,
    ) -> Numbers | None:
        """Return the numbers of the examples of a tensor, and where it begins along other axes.

        Args:
            declared: The axes that are declared for the site.
            shape: The tensor's.
            axis: Its axis of examples; None if it has none.
            batch: Where that is in any case, as in attention.
            shards: Where it begins along axes that are known without that, and how long the whole is.
        """
        if axis is None:
            return _sharded(None, {**shards, **self._shards({}, declared, shape)}, shape)
        numbers: Numbers | None = replace(known := self._known(), axis=axis)
        examples = self._workers.examples
        own, is_declared = axis if batch is None else batch, any(name in declared for name in examples)
        is_within = current() is None and -len(shape) <= own < len(shape)
        if is_within and (is_declared or (own % len(shape) and shape[own] == len(known))):
            # One part after another along that axis, as in one process, which has never heard of numbers.
            numbers, parts = None, self._shards(dict.fromkeys(examples, own), declared, shape)
        else:
            parts = self._shards({}, declared, shape)
        return _sharded(numbers, {**shards, **parts}, shape, batch)

    def _shards(
        self, examples: Mapping[str, int], declared: Mapping[str, int | None], shape: Sequence[int]
    ) -> dict[int, tuple[int, int]]:
        """Return where a plain tensor begins, and how long the whole is, along the axes that workers have parts of."""
        names: dict[int, list[str]] = {}
        rest = {name: declared[name] for name in others(self._workers) if declared.get(name) is not None}
        for name, axis in {**examples, **rest}.items():
            if axis is None or not -len(shape) <= axis < len(shape):
                raise ArgumentError(f"Workers: `shards` names axis {axis} of a tensor of shape {tuple(shape)}.")
            names.setdefault(axis % len(shape), []).append(name)
        places = {axis: position(self._workers, along) for axis, along in names.items()}
        return {axis: (number * shape[axis], count * shape[axis]) for axis, (number, count) in places.items()}

    def _distributed(self, place: Place, call: Call, key: int) -> Any:
        """Run a call on a DTensor, or several, by what this worker has of them."""
        whole: Any = call.input
        if not is_distributed(whole) or not (_is_attention(call) or call.function.kind in _ELEMENTWISE):
            raise UnsupportedError(
                f"address: {place.name} calls {call.function.kind} on a DTensor, which has no mask of its parts. Use "
                "torch.nn.functional.dropout or scaled_dot_product_attention, or plain tensors."
            )
        inner = 2 if _is_attention(call) else 0  # it takes whole sequences
        mesh, placements = whole.device_mesh, placements_of(whole, whole.dim() - inner)
        local, first = offset_of(whole, placements)
        axes = {axis for axis in range(whole.dim()) if any(each.is_shard(axis) for each in placements)}
        is_own = has_all_examples(self._workers, whole) and _given() is None
        shards = {axis: (first[axis], whole.shape[axis]) for axis in axes}
        own = call.changed(**local_arguments(call, mesh, placements, shards, local))
        known = self._declared.axes(place)
        declared = {name: axis for name, axis in known.items() if name in self._workers.examples}
        axis, batch = None if is_own else self._axis(declared), 0 if _is_attention(call) else None
        numbers = self._numbers_at(declared, _shape(own), axis, batch, shards)
        result = _run(place, own, key, numbers)
        if own.arguments.get("inplace") is not call.arguments.get("inplace"):
            return whole.copy_(whole_of(result, whole, mesh, placements, local))
        return tree_map_only(Tensor, lambda part: whole_of(part, whole, mesh, placements, local), result)


def _given() -> Numbers | None:
    """Return the numbers that examples are given by `samples`."""
    given = current()
    if given is not None and given.streams != (0,):
        raise UnsupportedError("address: workers have no parts of Monte Carlo passes. Leave `workers` out for them.")
    return given


def _run(place: Place, call: Call, key: int, numbers: Numbers | None) -> Any:
    if numbers is None:
        return replaced(call, key=key, order=place.order)
    return numbered(place, call, key, numbers)


def _is_attention(call: Call) -> bool:
    return call.function.kind == "scaled_dot_product_attention"


# Kinds whose mask is that of their input, element by element or with shared axes.
_ELEMENTWISE = frozenset(
    {
        "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "feature_alpha_dropout",
        "locked_dropout", "drop_path",
    }
)  # fmt: skip

# Kinds that know where their batch is.
_BATCHED = frozenset({"multi_head_attention", "lstm", "gru", "rnn_tanh", "rnn_relu"})


def _shape(call: Call) -> Sequence[int]:
    """Return the shape of what is dropped from: the weights of attention, else the input."""
    if not _is_attention(call):
        return call.input.shape
    query, keys = call.arguments["query"], call.arguments["key"]
    return (*query.shape[:-1], keys.size(-2))


def _sharded(
    numbers: Numbers | None, shards: dict[int, tuple[int, int]], shape: Sequence[int], batch: int | None = None
) -> Numbers | None:
    """Add to the numbers of examples where a part begins along other axes, and how long those are in the whole.

    Args:
        numbers: The numbers of examples.
        shards: First index and length of the whole, by axis.
        shape: Shape of the part.
        batch: The axis of examples. Default: that of the numbers.
    """
    if not shards:
        return numbers
    if numbers is None:
        first, _ = shards.pop(0, (0, 0))
        return Numbers(((first, shape[0]),), 0, shards)
    axis = numbers.axis % len(shape) if batch is None else batch
    if axis in shards:
        first, whole = shards.pop(axis)
        if whole != len(numbers):
            known = f"{numbers.origin} has {len(numbers)}" if numbers.origin else f"there are {len(numbers)} numbers"
            raise ArgumentError(
                f"address: workers that have the same examples have parts of {whole} in all at a site, and {known}. "
                "Give the forward, or `samples`, all examples of these workers; or if they are given different ones, "
                "say so: Workers(mesh, examples=...)."
            )
        numbers = numbers.part(first, shape[axis])
    return replace(numbers, shards=shards)
