"""What the tests of the compiled kernels share: addresses, the reference, and the choice of an instruction set."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from dropkit import kernels, random
from dropkit.kernels.native import operations
from dropkit.kernels.native.library import library
from dropkit.random.layout import Layout, layout

CPU = torch.device("cpu")
LENGTHS = (1, 2, 3, 7, 8, 9, 63, 64, 65, 130, 600)
RATES = (0.0, 2.0**-32, 1e-6, 0.1, 1 / 3, 0.5, 0.9, 1 - 2.0**-32, 1.0)


def available() -> list[str]:
    """Return the instruction sets that this processor and build have; none where there is no compiled library."""
    if kernels.info().kernel == "portable":
        return []
    native = library()
    before = native.kernel()
    found = [name for name in ("avx512", "avx2", "neon", "scalar") if native.use(name.encode())]
    native.use(before)
    return found


@contextmanager
def using(name: str) -> Iterator[None]:
    """Let an instruction set serve."""
    native = library()
    before = native.kernel()
    assert native.use(name.encode()), name
    try:
        yield
    finally:
        native.use(before)


def signed(value: int) -> Tensor:
    """Return the int64 with the bits of an integer in ``[0, 2**64)``."""
    return torch.tensor(value if value < 2**63 else value - 2**64)


class Address(NamedTuple):
    """A key and the places of a tensor, as the reference takes them and as operators do."""

    key: int
    shape: tuple[int, ...]
    stream: int = 0
    offset: tuple[int, ...] | None = None
    full_shape: tuple[int, ...] | None = None
    broadcast_dims: tuple[int, ...] = ()

    def place(self) -> Layout:
        found = layout("test", self.shape, self.broadcast_dims, self.offset, self.full_shape)
        rows = [int(signed(value % 2**64)) for value in (*found.row_strides, found.first_row)]
        return found._replace(row_strides=tuple(rows[:-1]), first_row=rows[-1])

    def tensors(self, threshold: int) -> tuple[Tensor, Tensor, Tensor]:
        return signed(self.key), torch.tensor(self.stream), torch.tensor(threshold)


@st.composite
def addresses(draw: st.DrawFn) -> Address:
    """Addresses of every form: of shards too, and with shared axes."""
    rank = draw(st.integers(0, 4))
    shape = draw(st.tuples(*[st.integers(0, (1, 600, 40, 9, 5)[rank])] * rank))
    axes = draw(st.lists(st.integers(0, rank - 1), unique=True)) if rank else []
    offset = full_shape = None
    if draw(st.booleans()):
        sizes = [64 // max(rank - 1, 1)] * (rank - 1) + [34] if rank else []
        full_shape = tuple(2**b for b in sizes)
        offset = tuple(draw(st.integers(0, 2**b - n)) for b, n in zip(sizes, shape, strict=True))
    key, stream = draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 2**30 - 1))
    return Address(key, shape, stream, offset, full_shape, tuple(axes))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Tensors of every type that the kernels take, in any order in memory."""
    rank = draw(st.integers(1, 5))
    lengths: list[int] = []
    for _ in range(rank):
        lengths.append(draw(st.sampled_from(LENGTHS)))
        if torch.Size(lengths).numel() > 60_000:
            lengths[-1] = 2
    x = torch.randn(lengths).to(draw(st.sampled_from(list(operations.TYPES))))
    x = x.permute(draw(st.permutations(range(rank))))
    form = draw(st.sampled_from(("dense", "gaps", "overlap", "view")))
    if form == "gaps":
        x = x[..., ::2]
    elif form == "overlap":
        x = x[..., :1].expand(x.shape)
    elif form == "view":
        x = x[..., x.shape[-1] // 2 :]
    return x


def keep_mask(address: Address, t: int) -> np.ndarray:
    """Return the mask that the compiled kernels draw."""
    return operations.keep_mask(*address.tensors(t), address.place(), CPU).numpy()


def dropped(x: Tensor, address: Address, t: int, scaled: bool = True) -> Tensor:
    """Return a tensor that the compiled kernels have dropped out."""
    return operations.dropout(x, *address.tensors(t), address.place(), scaled)


def bits(x: Tensor) -> Tensor:
    """Return the bits of numbers as integers of their length."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(integers[x.element_size()])


def reference(address: Address, p: float) -> np.ndarray:
    """Return the mask that NumPy draws."""
    places: dict[str, Any] = address._asdict()
    return random.keep_mask(places.pop("key"), places.pop("shape"), p, **places)
