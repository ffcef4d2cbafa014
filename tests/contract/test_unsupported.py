"""Nested input and shards: every layer of the registry and its function take them, or say that they do not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dropkit.errors import ArgumentTypeError
from dropkit.nn.variants import VARIANTS
from tests.contract.test_bad_input import GOOD

STRIDED, JAGGED = torch.strided, torch.jagged
NESTED = {name: {STRIDED, JAGGED} for name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "LockedDropout")}
NESTED |= {"DropPath": {STRIDED, JAGGED}, "TransformerEncoderLayer": {STRIDED}}
SHARDS = {"Dropout"}
# Weight drop hands its input to whatever module it was given.
LAYERS = {name: row for name, row in VARIANTS.items() if name != "WeightDrop"}


def of_first(function: Callable[..., Any]) -> tuple[Callable[..., Any], Tensor]:
    """A function of the first of its tensors alone, and a good one."""
    good = GOOD[f"dropkit.functional.{function.__name__}"]
    first = next(argument for argument, value in good.items() if isinstance(value, Tensor))
    return lambda given, **options: function(**good | {first: given}, **options), good[first]


CALLS: dict[str, tuple[str, Callable[..., Any], list[Tensor]]] = {}
for name, row in LAYERS.items():
    CALLS[name] = name, row.build(0.5), [torch.ones(shape, dtype=row.dtype) for shape in row.inputs]
    if row.function is not None:
        call, given = of_first(row.function)
        CALLS[row.function.__name__] = name, call, [given]

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


@pytest.mark.parametrize("layout", [STRIDED, JAGGED], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_nested_input(name: str, layout: torch.layout) -> None:
    layer, call, given = CALLS[name]
    nested = [torch.nested.nested_tensor([*x.unbind()], dtype=x.dtype, layout=layout) for x in given]
    if layout in NESTED.get(layer, ()):
        found = call(*nested)
        assert found.is_nested
        assert found.layout == layout
        return
    state = torch.get_rng_state()
    with pytest.raises(ArgumentTypeError, match=r"^\w+: `(input|query|new|src)` must be (a )?dense.*, got torch\."):
        call(*nested)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", CALLS)
def test_shards(name: str) -> None:
    layer, call, given = CALLS[name]
    shape = tuple(given[0].shape)
    shard: dict[str, tuple[int, ...]] = {"offset": (0,) * len(shape), "full_shape": shape}
    if layer in SHARDS:
        assert torch.equal(call(*given, key=7, **shard), call(*given, key=7))
        return
    for argument, value in shard.items():
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{argument}'"):
            call(*given, **{argument: value})
