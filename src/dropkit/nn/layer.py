"""What layers have in common: the generator, the switch, and a checked rate, which a schedule may move."""

from typing import Any, ClassVar, Never, Self

import torch
from torch import Tensor

from dropkit._checks import PROBABILITY, Choice, Number, argument_type_error
from dropkit.errors import UnsupportedError
from dropkit.random import threshold

__all__ = ["SWITCH", "GeneratorMixin", "MaskMixin", "NoiseMixin", "RateMixin", "check_bool", "check_generator"]

SWITCH = Choice(("auto", "on", "off"))
_THRESHOLD = "_threshold"


def check_bool(where: str, name: str, value: object) -> bool:
    """Return a flag, or raise."""
    if not isinstance(value, bool):
        raise argument_type_error(where, name, "True or False", value)
    return value


def check_generator(where: str, generator: object) -> None:
    """Raise unless a generator, if there is any, is one; to be called before a layer draws its weights."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise argument_type_error(where, "generator", "a torch.Generator", generator)


class _Shared:
    """A generator that deep copies share, as they share PyTorch's own; a pickle has one of its own."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class GeneratorMixin(torch.nn.Module):
    """A module that may draw keys from a generator of the user's."""

    @property
    def generator(self) -> torch.Generator | None:
        """Where keys are drawn, or None for PyTorch's own generator; copies of the module share it."""
        return self._generator.generator

    @generator.setter
    def generator(self, generator: torch.Generator | None) -> None:
        check_generator(type(self).__name__, generator)
        self._generator = _Shared(generator)


class NoiseMixin(GeneratorMixin):
    """A module that draws noise: from which generator, and when."""

    def _set_source(self, generator: torch.Generator | None) -> None:
        """Set what every layer keeps, to be called once `torch.nn.Module` has been set up."""
        self.generator = generator
        self._switch = "auto"

    @property
    def switch(self) -> str:
        """``"auto"`` follows `train` and `eval`; ``"on"`` and ``"off"`` do not, and leave all other modules alone."""
        return self._switch

    @switch.setter
    def switch(self, switch: str) -> None:
        self._switch = SWITCH.check(type(self).__name__, "switch", switch)

    @property
    def is_on(self) -> bool:
        """Whether noise is drawn at the next call."""
        return self.training if self._switch == "auto" else self._switch == "on"

    def _source(self, key: Any, mask: Any = None) -> torch.Generator | None:
        """Return the generator, unless the call says where its noise comes from."""
        return self.generator if key is None and mask is None else None

    def _parts(self) -> list[str]:
        """Return what a representation shows of the noise where it is not the default."""
        parts = ["generator=..."] if self.generator is not None else []
        return parts + ([f"switch={self._switch!r}"] if self._switch != "auto" else [])

    def __prepare_scriptable__(self) -> Never:
        raise UnsupportedError(
            f"{type(self).__name__}: TorchScript cannot express addressed masks. Use torch.compile or torch.export, or "
            "script a model with torch.nn.Dropout."
        )


class RateMixin(NoiseMixin):
    """A module whose noise has a rate `p`.

    A rate is a number, or, once a schedule moves it, a threshold in an int64 tensor, which compiled code reads at every
    step. That tensor is no part of the `state_dict`: a schedule saves its own state.
    """

    RATE: ClassVar[Number] = PROBABILITY

    def _set_noise(self, p: float, generator: torch.Generator | None) -> None:
        """Set what every layer keeps, to be called once `torch.nn.Module` has been set up."""
        self._set_source(generator)
        self.p = p

    @property
    def p(self) -> float:
        """Probability of dropping, or whatever the class says its rate is."""
        moved = self._buffers.get(_THRESHOLD)
        return self._p if moved is None else int(moved) / 2**32

    @p.setter
    def p(self, p: float) -> None:
        checked = self.RATE.check(type(self).__name__, "p", p)
        moved = self._buffers.get(_THRESHOLD)
        if moved is not None:
            moved.fill_(self._threshold_of(checked))
        self._p = checked

    @property
    def rate(self) -> float | Tensor:
        """The rate as functions take it: a number, or a float64 tensor where a schedule moves it."""
        moved = self._buffers.get(_THRESHOLD)
        return self._p if moved is None else moved.to(torch.float64) * 2.0**-32

    def follow(self) -> None:
        """Keep the rate in a tensor from now on, so that no new value makes `torch.compile` compile again."""
        if _THRESHOLD not in self._buffers:
            self.register_buffer(_THRESHOLD, torch.tensor(self._threshold_of(self._p), device="cpu"), persistent=False)

    def unfollow(self) -> None:
        """Keep the rate as a number again."""
        moved = self._buffers.pop(_THRESHOLD, None)
        if moved is not None and int(moved) != self._threshold_of(self._p):  # else the number is what was set
            self._p = int(moved) / 2**32
        self._non_persistent_buffers_set.discard(_THRESHOLD)

    def _threshold_of(self, p: float) -> int:
        """Return the threshold of a rate; of one that may not be 1, none that rounds to it."""
        return min(threshold(p), 2**32 - 1) if self.RATE.open_high else threshold(p)

    def _shown(self, *names: str, **defaults: object) -> str:
        """Return what a representation shows: the rate, attributes, and such as differ from their defaults."""
        shown = (*names, *(name for name, default in defaults.items() if getattr(self, name) != default))
        return ", ".join([f"p={self.p}", *(f"{name}={getattr(self, name)!r}" for name in shown), *self._parts()])

    def extra_repr(self) -> str:
        """Show the rate."""
        return self._shown()


class MaskMixin(RateMixin):
    """A layer of one input whose noise is a mask: it can be given, and read."""

    def forward(
        self,
        input: Tensor,
        *,
        key: int | Tensor | None = None,
        mask: Tensor | None = None,
        return_mask: bool = False,
        stream: int | Tensor = 0,
    ) -> Any:
        """Apply the layer.

        Args:
            input: Tensor of a shape and type that the layer's function in `dropkit.functional` takes.
            key: As for that function. Default: drawn from the generator.
            mask: A bool tensor to use instead, True = kept. Default: drawn.
            return_mask: Whether to return ``(output, mask)``. Default: False.
            stream: Number of the pass. Default: 0.

        Returns:
            A tensor of the input's shape and type; with `return_mask`, a pair.

        Raises:
            ArgumentError: As that function.
            ArgumentTypeError: As that function.
        """
        source = self._source(key, mask)
        return self._drop(input, generator=source, key=key, mask=mask, return_mask=return_mask, stream=stream)

    def _drop(self, input: Tensor, **noise: Any) -> Any:
        """Call the layer's function with its rate, its options, and where the noise of this call comes from."""
        raise NotImplementedError  # each class calls its own
