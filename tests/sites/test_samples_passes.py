"""Monte Carlo passes along the axis of examples: in models, what every pass draws alone; and calls of one pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from dropkit import random
from dropkit.errors import UnsupportedError
from dropkit.functional.examples import NumberedKey
from dropkit.nn.variants import VARIANTS
from dropkit.random import call_key, field, keep_mask
from dropkit.sites import address, samples
from dropkit.sites.calls.functions import find_call
from dropkit.sites.calls.replacement import replaced
from dropkit.sites.handwritten.draws import Draw
from dropkit.sites.interception.places import Frame, Place
from dropkit.sites.samples import Numbers, set_current
from tests.sites.test_replacement import CALLS
from tests.sites.test_samples_functions import FUNCTIONS_OF_ROWS, Forward, addressed, numbers, several
from tests.sites.test_samples_functions import SHARED as SHARED_BY_EXAMPLES
from tests.sites.test_samples_variants import CASES, Weighed, of_row

SEED, KEY, STREAMS, BATCH = 5, 0x5EED_0000_0000_0009, (2, 9, 1), 6
RUNS = {
    "in order": ((0, BATCH),),
    "from 7 on": ((7, BATCH),),
    "unordered": ((9, 2), (0, 1), (4, 2), (3, 1)),
    "one for all": ((3, 1),) * BATCH,
}


@contextmanager
def passes(runs: tuple[tuple[int, int], ...], streams: tuple[int, ...], axis: int = 0) -> Iterator[None]:
    """Number the examples of passes; the calls of a step are counted from 0."""
    with samples([0]), set_current(Numbers(runs, axis, streams=streams)):
        yield


def assert_passes_are_those_of_one(model: nn.Module, batches: list[list[Tensor]], axis: int, runs: Any) -> None:
    """Assert that a model gives every pass, along an axis, what it gives that pass alone.

    Args:
        model: An addressed model.
        batches: The inputs of each pass.
        axis: Where they have the examples.
        runs: The numbers of the examples of a pass.
    """
    with passes(runs, STREAMS, axis):
        together = several(model(*(torch.cat(each, axis) for each in zip(*batches, strict=True))))
    for number, (stream, batch) in enumerate(zip(STREAMS, batches, strict=True)):
        with passes(runs, (stream,), axis):
            alone = several(model(*batch))
        for found, wanted in zip(together, alone, strict=True):
            own = found.chunk(len(STREAMS), axis)[number]
            torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-10)


def by_hand(x: Tensor) -> tuple[Tensor, ...]:
    return (
        x * (torch.rand(x.shape) < 0.5),
        x * (torch.rand_like(x) < 0.5),
        x * torch.empty_like(x).uniform_(-1, 1),
        x * torch.bernoulli(torch.full_like(x, 0.5)),
        x * x.new_empty(*x.shape[:-1], 1).bernoulli_(0.3),
        x * torch.randint(0, 2, x.shape),
        x * torch.randint_like(x, 3),
        x * torch.empty_like(x).random_(0, 3),
    )


BY_HAND: dict[str, Callable[[Tensor], Any]] = {**FUNCTIONS_OF_ROWS, "by hand": by_hand}
BY_HAND.pop("dropout, of a stream")


@pytest.mark.parametrize("order", RUNS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", BY_HAND)
def test_functions(name: str, axis: int, order: str) -> None:
    shape = (BATCH, 5, 3) if axis == 0 else (5, BATCH, 3)
    batches = [[each] for each in numbers(len(STREAMS), *shape)]
    assert_passes_are_those_of_one(addressed(BY_HAND[name]), batches, axis, RUNS[order])


STOCK: dict[str, tuple[Callable[[], Any], tuple[int, ...], int]] = {
    "maps with one axis": (lambda: nn.Dropout1d(0.5), (BATCH, 4, 3), 0),
    "maps with two axes": (lambda: nn.Dropout2d(0.5), (BATCH, 4, 3, 2), 0),
    "maps with three axes": (lambda: nn.Dropout3d(0.5), (BATCH, 4, 1, 3, 2), 0),
    "alpha": (lambda: nn.AlphaDropout(0.5), (BATCH, 4), 0),
    "alpha, time first": (lambda: nn.AlphaDropout(0.5), (3, BATCH, 4), 1),
    "alpha of maps": (lambda: nn.FeatureAlphaDropout(0.5), (BATCH, 4, 5), 0),
    "LSTM": (lambda: nn.LSTM(3, 4, 3, dropout=0.5, batch_first=True), (BATCH, 5, 3), 0),
    "LSTM, time first": (lambda: nn.LSTM(3, 4, 2, dropout=0.5, bidirectional=True), (5, BATCH, 3), 1),
    "GRU": (lambda: nn.GRU(3, 4, 2, dropout=0.5, batch_first=True), (BATCH, 5, 3), 0),
    "RNN": (lambda: nn.RNN(3, 4, 2, dropout=0.5, batch_first=True), (BATCH, 5, 3), 0),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.5, batch_first=True), (BATCH, 5, 8), 0),
    "encoder, time first": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.5), (5, BATCH, 8), 1),
}


@pytest.mark.parametrize("order", RUNS)
@pytest.mark.parametrize("name", STOCK)
def test_layers_of_pytorch(name: str, order: str) -> None:
    build, shape, axis = STOCK[name]
    torch.manual_seed(0)
    layer = build().double()
    model = addressed(Forward(lambda x: found[0] if isinstance(found := layer(x), tuple) else found, layer))
    assert_passes_are_those_of_one(model, [[each] for each in numbers(len(STREAMS), *shape)], axis, RUNS[order])


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "WeightDrop"])
def test_layers_of_the_registry(name: str) -> None:
    layer, inputs = of_row(name)
    model = Weighed(layer.double())
    address(model, SEED)
    batches = [[x.roll(turn, 0) for x in inputs] for turn in range(len(STREAMS))]
    assert_passes_are_those_of_one(model, batches, 0, RUNS["unordered"])


@pytest.mark.parametrize("name", [name for name in CASES if name != "DropConnect, averaged in evaluation"])
def test_layers_of_any_layout(name: str) -> None:
    build, made, axis = CASES[name]
    torch.manual_seed(1)
    model, x = Weighed(build().double()), made()
    address(model, SEED)
    batches = [[x.roll(turn, axis)] for turn in range(len(STREAMS))]
    assert_passes_are_those_of_one(model, batches, axis % x.dim(), RUNS["unordered"])


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_packed_sequences(name: str) -> None:
    torch.manual_seed(0)
    parts = [numbers(length, 3) for length in (3, 5, 2, 5)]
    model = addressed(Forward(getattr(nn, name)(3, 4, 2, dropout=0.5).double()))

    def run(several: list[Tensor], streams: tuple[int, ...]) -> list[Tensor]:
        with passes(((8, 1), (2, 2), (0, 1)), streams):
            return unpack_sequence(model(pack_sequence(several, enforce_sorted=False))[0])

    together = run(parts * len(STREAMS), STREAMS)
    alone = [each for stream in STREAMS for each in run(parts, (stream,))]
    for found, wanted in zip(together, alone, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
def test_masks_are_those_of_the_definition(axis: int) -> None:
    model, x = addressed(lambda x: (F.dropout(x, 0.5), (torch.rand_like(x) < 0.5) * x)), torch.ones(3, 3, 4)
    key, by_hand = call_key(SEED, "#0", 0), call_key(SEED, "~0", 0)
    with passes(((5, 1), (2, 2)), (1,), axis):
        dropped, masked = model(x)
    for found, own in ((dropped, key), (masked, by_hand)):
        whole = torch.from_numpy(keep_mask(own, (6, 3, 4), 0.5, stream=1))[[5, 2, 3]].movedim(0, axis)
        assert torch.equal(found != 0, whole if own == key else ~whole)


def of_parameter() -> nn.Module:
    """A linear map whose weights are dropped out by the function, as they are of no example."""
    linear = nn.Linear(4, 2)
    return Forward(lambda x: F.linear(x, F.dropout(linear.weight, 0.5)), linear)


SHARED = {**SHARED_BY_EXAMPLES, "a parameter": of_parameter}


@pytest.mark.parametrize("name", SHARED)
def test_what_examples_share_is_drawn_in_one_pass_alone(name: str) -> None:
    function = SHARED[name]()
    modules = [function.double()] if isinstance(function, nn.Module) else []
    model = addressed(Forward(lambda x: several(function(x))[0], *modules))
    x, seen = numbers(BATCH, 3, 4), []
    for stream in range(6):
        with passes(((0, BATCH),), (stream,)):
            seen.append(model(x))
        with passes(((9, 2), (0, 4)), (stream,)):
            assert torch.equal(model(x), seen[-1])
    with samples(range(BATCH)):
        assert torch.equal(model(x), seen[0])
    assert any(not torch.equal(one, seen[0]) for one in seen)
    with passes(((0, 3),), (1, 2)), pytest.raises(UnsupportedError, match="one after another"):
        model(x)


def test_a_part_of_the_examples_of_several_passes() -> None:
    numbers = Numbers(((0, 3),), 0, streams=(1, 2))
    assert (len(numbers), list(numbers)) == (6, [0, 1, 2, 0, 1, 2])
    with pytest.raises(UnsupportedError, match="one after another"):
        numbers.part(0, 2)


def masks_of(name: str, mask: Any) -> list[Tensor]:
    """The masks that the definition gives one pass of a call, like those that the call returns."""
    if not isinstance(mask, tuple):
        return [torch.from_numpy(keep_mask(KEY, tuple(mask.shape), 0.3, stream=7))]
    return [
        torch.from_numpy(
            keep_mask(
                field(KEY, number),
                tuple(each.shape),
                0.3,
                stream=7,
                offset=(0, 0, 0),
                full_shape=(3, 2**32, each.size(2)),
            )
        )
        for number, each in enumerate(mask)
    ]


@pytest.mark.filterwarnings("ignore:dropout2d")
@pytest.mark.parametrize("name", CALLS)
def test_every_call_of_pytorch_in_one_pass(name: str) -> None:
    torch.manual_seed(0)
    function, args, kwargs = CALLS[name]()
    call = find_call(function, tuple(args), kwargs)
    assert call is not None
    found, mask = replaced(call, key=NumberedKey(KEY, (), (7,)), return_mask=True)
    wanted = masks_of(name, mask)
    for one, each in zip(mask if isinstance(mask, tuple) else (mask,), wanted, strict=True):
        assert torch.equal(one, each)
    by_mask = replaced(call, mask=tuple(wanted) if isinstance(mask, tuple) else wanted[0])
    alone = replaced(call, key=NumberedKey(KEY, (), (7,)))
    for one, other, third in zip(*map(leaves, (found, by_mask, alone)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one, third, rtol=1e-10, atol=1e-10)


def leaves(found: Any) -> list[Tensor]:
    return [each for each in torch.utils._pytree.tree_leaves(found) if isinstance(each, Tensor)]


def test_draws_of_one_pass() -> None:
    place = Place("", Frame(nn.Identity(), "", 0), 0)
    found = Draw(place, torch.rand, ((3, 4),), {"dtype": torch.float64}).at(NumberedKey(KEY, (), (7,)))
    assert torch.equal(found, torch.from_numpy(random.uniform(KEY, (3, 4), stream=7)))
    number = Draw(place, torch.rand, ([],), {"dtype": torch.float64}).at(NumberedKey(KEY, (), (7,)))
    assert torch.equal(number, torch.from_numpy(random.uniform(KEY, (), stream=7)))
    with pytest.raises(UnsupportedError, match="a draw by hand has no axis of examples"):
        Draw(place, torch.rand, ((3, 4),), {}).at(NumberedKey(KEY, ((0, 3),), (7,)))
