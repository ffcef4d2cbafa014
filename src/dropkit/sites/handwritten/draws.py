"""Random operators of PyTorch: which there are, what one call's elements may be, and the same call at an address."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit.errors import UnsupportedError
from dropkit.functional.address import signed
from dropkit.functional.examples import numbers_of
from dropkit.functional.noise import Noise
from dropkit.functional.overrides import overridable
from dropkit.kernels import fields
from dropkit.random.layout import layout
from dropkit.sites.handwritten.values import Discrete, Uniform, Values, constant
from dropkit.sites.interception.places import Frame, Place

__all__ = ["MASKING", "RANDOM", "Draw", "drawn", "find_draw", "is_random"]

_OPERATORS = {
    torch: (
        "bernoulli", "binomial", "multinomial", "normal", "poisson", "rand", "rand_like", "randint", "randint_like",
        "randn", "randn_like", "randperm", "rrelu", "rrelu_", "_sample_dirichlet", "_standard_gamma",
    ),
    Tensor: (
        "bernoulli", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "multinomial", "normal_",
        "random_", "uniform_",
    ),
    F: ("gumbel_softmax", "rrelu", "rrelu_"),
    nn.init: ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_"),
}  # fmt: skip


def _operators() -> Iterator[tuple[Callable[..., Any], str]]:
    for owner, names in _OPERATORS.items():
        for name in names:
            yield getattr(owner, name), name
            operator = getattr(torch.ops.aten, name, None)
            if operator is not None:  # by which programs call it
                yield operator, name
                yield from ((getattr(operator, overload), name) for overload in operator.overloads())


# No read-only view of it, which torch.compile could not look up functions in.
RANDOM: Mapping[Callable[..., Any], str] = dict(_operators())
"""Every random operator that is no dropout, with its name: those that the names of hand-written masks count."""

_MOST_VALUES = 4096  # of a random integer; of more nothing is known


@dataclass(frozen=True)
class Draw:
    """A call of a random operator.

    Args:
        place: Where in the model it is called; its name is that of the site, should the result become a mask.
        function: The operator.
        args: Its positional arguments.
        kwargs: Its arguments by name.
        address: What another handler has had it drawn at: what `at` takes; nothing for a draw from the generator.
    """

    place: Place
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    address: tuple[Any, ...] = ()

    @property
    def operator(self) -> str:
        """Name of the operator."""
        return RANDOM[self.function]

    @property
    def has_address(self) -> bool:
        """Whether `at` can draw it: uniforms, Bernoulli variables and integers, which masks are made of."""
        return self.operator in _FIELDS and self.kwargs.get("out") is None

    @property
    def shape(self) -> torch.Size:
        """Shape of the result, where it `has_address`."""
        return self.args[0].shape if self.operator.endswith("_") else _like(self).shape

    @property
    def fills_weights(self) -> bool:
        """Whether it is a function for the first values of weights, which have no axis of examples."""
        return getattr(self.function, "__module__", "") == nn.init.__name__

    @property
    def device(self) -> torch.device:
        """Where the result is."""
        return self.args[0].device if self.operator.endswith("_") else _device(self)

    @property
    def values(self) -> Values | None:
        """What its elements may be; None of noise that no mask is made of."""
        read = _VALUES.get(self.operator)
        return None if read is None else read(self)

    @property
    def is_centred(self) -> bool:
        """Whether it is noise around 0."""
        if self.operator in ("normal", "normal_"):
            return constant(self.argument(self.operator == "normal_", "mean", 0.0)) == 0
        return self.operator in ("cauchy_", "randn", "randn_like")

    @property
    def is_data(self) -> bool:
        """Whether the result is what the operator was given, with noise: data of the model, as they were."""
        if self.operator == "normal":
            return constant(self.argument(0, "mean", 0.0)) is None
        return self.operator in ("gumbel_softmax", "poisson", "rrelu", "rrelu_")

    def run(self) -> Any:
        """Draw as the model asks."""
        if self.address:
            return drawn(self.function, self.args, self.kwargs, *self.address)
        return self.function(*self.args, **self.kwargs)

    def at(self, key: int | Tensor, stream: int | Tensor = 0, offset: Any = None, full_shape: Any = None) -> Any:
        """Draw the same at an address: no generator moves.

        Elements of Bernoulli variables are 1 where the definition of masks keeps; uniforms are those of its fields.

        Args:
            key: The key, which may number a pass; or an int64 tensor of one for each slice of axis 0.
            stream: Number of the pass, or an int64 tensor of one for each slice of axis 0.
            offset: Where the result begins in the whole tensor that it is a shard of.
            full_shape: Shape of that whole tensor.

        Raises:
            UnsupportedError: If the operator has no address.
        """
        return drawn(self.function, self.args, self.kwargs, key, stream, offset, full_shape)

    @property
    def has_one_law(self) -> bool:
        """Whether all elements have the same law: only probabilities may be those of one each."""
        return not self.operator.startswith("bernoulli") or constant(self.probability()) is not None

    def slices(self, axis: int, first: int, length: int, passes: int = 1) -> "Draw":
        """Return the same draw for some of the slices along an axis, which is brought to axis 0.

        Args:
            axis: The axis.
            first: The first of the slices.
            length: How many there are.
            passes: How many equal parts that axis has; of several these slices are taken of each, and the parts lie
                along an axis before all others.
        """
        like = self.args[0] if self.operator.endswith("_") else _like(self)
        device = like.device if self.operator.endswith("_") else _device(self)
        shape = (length, *like.shape[:axis], *like.shape[axis + 1 :])
        if passes > 1:
            shape = (passes, *shape)
        tensor = torch.empty(shape, dtype=like.dtype, device=device)
        if self.operator.startswith("bernoulli"):
            chance = constant(self.probability())
            if chance is None:  # one for each element
                chances = self.probability().expand(like.shape).movedim(axis, 0).unflatten(0, (passes, -1))
                chance = chances[:, first : first + length].reshape(shape)
            return Draw(self.place, Tensor.bernoulli_, (tensor, chance), {})
        if self.operator.endswith("_"):
            return replace(self, args=(tensor, *self.args[1:]))
        if self.operator.startswith("randint"):
            return Draw(self.place, torch.randint_like, (tensor, *self.integers()), {})
        return Draw(self.place, torch.rand_like, (tensor,), {})

    def put(self, values: Tensor) -> Tensor:
        """Return values as the operator returns what it draws."""
        if self.operator.endswith("_"):
            with torch.no_grad():
                return self.args[0].copy_(values)
        return values.requires_grad_() if self.kwargs.get("requires_grad") else values

    def aside(self) -> Any:
        """Draw the same law without moving a generator, where nothing depends on the values; else as the model asks."""
        return self.at(0) if self.has_address else self.run()

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument by its position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def integers(self) -> tuple[int, int]:
        """Return the bounds of random integers, the upper one excluded; (0, 0) where they are the type's own."""
        names = ("from", "to") if self.operator == "random_" else ("low", "high")
        given = self.args[self.operator != "randint" :]
        numbers = [value for value in given if isinstance(value, int)]
        if names[0] in self.kwargs:
            numbers.insert(0, self.kwargs[names[0]])
        if self.kwargs.get(names[1]) is not None:
            numbers.append(self.kwargs[names[1]])
        if not numbers:
            return 0, 0
        return (0, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])

    def probability(self) -> Any:
        """Return the probability of a 1 of Bernoulli variables, a number or a tensor."""
        given = self.argument(1, "p", 0.5 if self.operator == "bernoulli_" else None)
        return self.argument(0, "input") if given is None else given


def is_random(function: Callable[..., Any]) -> bool:
    """Tell whether any function is a random operator that is no dropout."""
    try:
        return function in RANDOM
    except TypeError:  # it has no hash
        return False


def find_draw(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], place: Callable[[], Place]
) -> Draw | None:
    """Return what a call of any function is as a draw, whose place is asked for and counted; None if it is none."""
    if function is drawn:
        return Draw(place(), args[0], args[1], args[2], args[3:])
    if not is_random(function):
        return None
    if not args and "tensor" in kwargs:  # as the functions that fill weights hand theirs on
        args, kwargs = (kwargs["tensor"],), {name: value for name, value in kwargs.items() if name != "tensor"}
    return Draw(place(), function, args, kwargs)


def _uniform_bounds(draw: Draw) -> tuple[Any, Any]:
    if draw.operator != "uniform_":
        return 0.0, 1.0
    low = draw.kwargs.get("from", draw.argument(1, "a", 0.0))
    return low, draw.kwargs.get("to", draw.argument(2, "b", 1.0))


def _uniform_values(draw: Draw) -> Values | None:
    return Uniform(*map(float, _uniform_bounds(draw)))


def _bernoulli_values(draw: Draw) -> Values | None:
    chance = constant(draw.probability())
    return Discrete((0.0, 1.0), (float("nan"),) * 2 if chance is None else (1 - chance, chance))


def _integer_values(draw: Draw) -> Values | None:
    low, high = draw.integers()
    count = high - low
    return Discrete.of(map(float, range(low, high)), (1 / count,) * count) if 0 < count <= _MOST_VALUES else None


_VALUES: Mapping[str, Callable[[Draw], Values | None]] = MappingProxyType(
    {
        **dict.fromkeys(("rand", "rand_like", "uniform_"), _uniform_values),
        **dict.fromkeys(("bernoulli", "bernoulli_"), _bernoulli_values),
        **dict.fromkeys(("randint", "randint_like", "random_"), _integer_values),
    }
)


MASKING: Mapping[Callable[..., Any], str] = {function: name for function, name in RANDOM.items() if name in _VALUES}
"""Those random operators that masks are made of, with their names."""


@overridable
def drawn(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    key: int | Tensor,
    stream: int | Tensor = 0,
    offset: Any = None,
    full_shape: Any = None,
) -> Any:
    """Call a random operator at an address; other interceptors take this call for that of the operator."""
    draw = Draw(Place("", Frame(nn.Identity(), "", 0), 0), function, args, kwargs)
    if not draw.has_address:
        remedy = "Draw the mask by torch.rand, torch.bernoulli or torch.randint, or in place by their like."
        raise UnsupportedError(f"dropkit.sites: {draw.operator} cannot be drawn at an address. {remedy}")
    is_in_place = draw.operator.endswith("_")
    like = args[0] if is_in_place else _like(draw)
    device = like.device if is_in_place else _device(draw)
    noise = _noise(key, stream, device)
    place = layout("dropkit.sites", like.shape, (), offset, full_shape, noise.key.dim())
    place = place._replace(row_strides=tuple(map(signed, place.row_strides)), first_row=signed(place.first_row))
    return draw.put(_FIELDS[draw.operator](draw, noise, place, like.dtype))


def _noise(key: int | Tensor, stream: int | Tensor, device: torch.device) -> Noise:
    """Return the noise of a draw for a whole tensor."""
    numbers = numbers_of(key)
    if numbers is not None:
        if numbers.runs:
            remedy = "Draw for the examples of each run at its place."
            raise UnsupportedError(f"dropkit.sites: a draw by hand has no axis of examples. {remedy}")
        stream = numbers.streams[0] or stream
    key = key if isinstance(key, Tensor) else torch.tensor(signed(int(key)), device="cpu")
    stream = stream if isinstance(stream, Tensor) else torch.tensor(stream, device="cpu")
    slices = max(key.dim(), stream.dim())
    return Noise("dropkit.sites", key.reshape((-1,) * slices), stream.reshape((-1,) * slices), device)


def _like(draw: Draw) -> Tensor:
    """Return a tensor without values, of the shape and the type of what an operator returns."""
    # No random operator, not even one without values: compiled code would have it draw.
    dtype = draw.kwargs.get("dtype")
    if draw.operator.endswith("_like") or draw.operator == "bernoulli":
        return torch.empty_like(draw.argument(0, "input"), dtype=dtype, device="meta")
    if draw.operator == "randint":
        size = next(value for value in (*draw.args, draw.kwargs.get("size")) if isinstance(value, Sequence))
        return torch.empty(size, dtype=torch.int64 if dtype is None else dtype, device="meta")
    size = draw.kwargs.get("size", draw.args)
    return torch.empty(*size, dtype=dtype, device="meta")


def _device(draw: Draw) -> torch.device:
    given = draw.kwargs.get("device")
    if given is not None:
        return torch.device(given)
    first = draw.args[0] if draw.args else draw.kwargs.get("input")
    return (first if isinstance(first, Tensor) else torch.empty(0)).device  # compiled code cannot ask for the default


def _uniform_field(draw: Draw, noise: Noise, place: Any, dtype: torch.dtype) -> Tensor:
    low, high = _uniform_bounds(draw)
    unit = fields.uniform(noise.key, noise.stream, place, noise.device, dtype)
    return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit


def _bernoulli_field(draw: Draw, noise: Noise, place: Any, dtype: torch.dtype) -> Tensor:
    chance = draw.probability()
    if isinstance(chance, Tensor):
        chance = chance.detach().to(noise.device, torch.float64)
    else:
        chance = torch.tensor(chance, dtype=torch.float64, device="cpu")
    threshold = ((1.0 - chance) * 2.0**32 + 0.5).floor()
    if threshold.dim() == 0:
        return fields.keep_mask(noise.key, noise.stream, threshold.long(), place, noise.device).to(dtype)
    return (fields.integers(noise.key, noise.stream, place, noise.device) >= threshold).to(dtype)


def _integer_field(draw: Draw, noise: Noise, place: Any, dtype: torch.dtype) -> Tensor:
    low, high = draw.integers()
    if not 0 < high - low < 2**31:
        raise UnsupportedError("dropkit.sites: only integers of a range under 2**31 can be drawn at an address.")
    integers = fields.integers(noise.key, noise.stream, place, noise.device)
    return (low + ((integers * (high - low)) >> 32)).to(dtype)


_FIELDS: Mapping[str, Callable[[Draw, Noise, Any, torch.dtype], Tensor]] = {
    **dict.fromkeys(("rand", "rand_like", "uniform_"), _uniform_field),
    **dict.fromkeys(("bernoulli", "bernoulli_"), _bernoulli_field),
    **dict.fromkeys(("randint", "randint_like", "random_"), _integer_field),
}
