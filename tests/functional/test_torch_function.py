"""Modes and tensor subclasses see dropout as they see PyTorch's functions: always, and first."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import dropkit
from dropkit.functional import dropout
from tests.helpers.ids import by_name

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Recorder(TorchFunctionMode):
    """Notes every function that reaches it, then runs it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    @property
    def dropouts(self) -> list[dict[str, Any]]:
        signature = inspect.signature(dropout)
        bound = [signature.bind(*args, **kwargs) for func, args, kwargs in self.calls if func is dropout]
        return [call.arguments for call in bound]


@pytest.mark.parametrize(
    "options",
    [{"p": 0.3}, {"p": 0.0}, {"p": 1.0}, {"training": False}, {"key": 3}, {"inplace": True}, {"return_mask": True},
     {"mask": torch.ones(4, 6, dtype=torch.bool)}, {"generator": torch.Generator()}, {"broadcast_dims": (1,)},
     {"stream": 4, "key": 2}, {"offset": (0, 0), "full_shape": (9, 9), "key": 1}, {"scale_at": "eval"}],
    ids=by_name,
)  # fmt: skip
def test_a_mode_sees_every_call_with_its_arguments(options: dict[str, Any]) -> None:
    x = X.clone()
    with Recorder() as mode:
        dropkit.functional.dropout(x, **options)
    (call,) = mode.dropouts
    assert mode.calls[0][0] is dropkit.functional.dropout
    assert call["input"] is x
    for name, value in options.items():
        assert call[name] is value or call[name] == value


def test_a_mode_sees_calls_before_their_arguments_are_checked() -> None:
    with Recorder() as mode, pytest.raises(ValueError, match="`p` must be"):
        dropout(X, 7.0)
    assert len(mode.dropouts) == 1


def test_a_mode_sees_the_layer() -> None:
    layer = dropkit.nn.Dropout(0.3)
    with Recorder() as mode:
        layer(X)
        layer.eval()(X)
    assert [(call["p"], call["training"]) for call in mode.dropouts] == [(0.3, True), (0.3, False)]


def test_a_mode_may_answer_instead() -> None:
    class Off(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if func is dropout else func(*args, **(kwargs or {}))

    state = torch.get_rng_state()
    with Off():
        assert dropout(X, 0.5) is X
        assert dropkit.nn.Dropout(1.0)(X) is X
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_nest_and_change_nothing() -> None:
    want = dropout(X, 0.4, key=3)
    with Recorder() as outer, Recorder() as inner:
        assert torch.equal(dropout(X, 0.4, key=3), want)
    assert len(inner.dropouts) == len(outer.dropouts) == 1


class Tagged(Tensor):
    """A subclass that notes what reaches it."""

    seen: list[Any] = []  # noqa: RUF012  # one list for all instances is the point

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("name", ["input", "p", "key", "mask", "stream"])
@pytest.mark.parametrize("training", [True, False])
def test_a_subclass_sees_calls_in_any_argument(name: str, training: bool) -> None:
    plain: dict[str, Any] = {
        "input": X,
        "p": torch.tensor(0.4, dtype=torch.float64),
        "key": torch.tensor(3),
        "stream": torch.tensor(1),
        "mask": X > 0,
    }
    options = {"input": X, "p": 0.4, name: plain[name].as_subclass(Tagged)}
    Tagged.seen.clear()
    out = dropout(**options, training=training)
    assert Tagged.seen[0] is dropout
    assert out.shape == X.shape


def test_a_plain_subclass_keeps_its_class_and_its_mask() -> None:
    class Plain(Tensor):
        pass

    x = X.as_subclass(Plain)
    out, keep = dropout(x, 0.4, key=3, return_mask=True)
    want, mask = dropout(X, 0.4, key=3, return_mask=True)
    assert type(out) is Plain
    assert torch.equal(out.as_subclass(Tensor), want)
    assert torch.equal(keep.as_subclass(Tensor), mask)
    assert dropout(x, 0.4, False) is x
    assert dropout(x, 0.0) is x


def test_who_returns_not_implemented_is_an_error() -> None:
    class Deaf(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return NotImplemented

    with pytest.raises(TypeError, match=r"dropkit\.functional\.dropout"):
        dropout(torch.ones(3).as_subclass(Deaf))
