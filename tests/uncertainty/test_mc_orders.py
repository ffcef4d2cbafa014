"""Monte Carlo passes of forwards that put examples into an order of their values: as in a plain loop.

Equal values, such as lengths of sequences that are cut, keep their order in small batches, and in those of few passes.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from dropkit.errors import UnsupportedError
from dropkit.uncertainty import mc

MASKS = ("per_example", "shared")
LATER = torch.tensor([3, 7, 5, 2, 6, 7, 4, 1])


def samples(model: nn.Module, x: Tensor, lengths: Tensor, n: int = 40, **options: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = mc(model, n, seed=0, keep_samples=True, **options)(x, lengths).samples
    assert isinstance(found, Tensor)
    return found


def inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


class Ordered(nn.Module):
    """Orders examples, drops, and undoes the order."""

    def __init__(self, order: Callable[[Tensor], tuple[Any, Any]]) -> None:
        super().__init__()
        self.order = order
        self.first, self.drop, self.last = nn.Linear(5, 8), nn.Dropout(0.4), nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        there, back = self.order(lengths)
        return self.last(self.drop(self.first(x[there])))[back]


def by_sort(lengths: Tensor) -> tuple[Any, Any]:
    order = lengths.sort(descending=True).indices
    return order, order.argsort()


def by_stable_sort(lengths: Tensor) -> tuple[Any, Any]:
    order = torch.argsort(lengths, dim=0, descending=True, stable=True)
    return order, inverse(order)


def by_topk(lengths: Tensor) -> tuple[Any, Any]:
    order = lengths.topk(len(lengths)).indices
    return order, inverse(order)


def by_unique(lengths: Tensor) -> tuple[Any, Any]:
    _, kind = torch.unique(lengths, return_inverse=True)
    order = (kind * len(lengths) + torch.arange(len(lengths))).sort().indices
    return order, inverse(order)


def by_kinds(lengths: Tensor) -> tuple[Any, Any]:
    is_long = lengths > 4
    order = torch.cat([is_long.nonzero()[:, 0], torch.where(~is_long)[0]])
    return order, inverse(order)


def by_python(lengths: Tensor) -> tuple[Any, Any]:
    values = lengths.tolist()
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return order, [order.index(i) for i in range(len(order))]


def by_python_in_tensors(lengths: Tensor) -> tuple[Any, Any]:
    there, back = by_python(lengths)
    return torch.tensor(there), torch.as_tensor(back)


def by_numpy(lengths: Tensor) -> tuple[Any, Any]:
    order = (-lengths.numpy()).argsort()
    return order, order.argsort()


def by_numpy_in_tensors(lengths: Tensor) -> tuple[Any, Any]:
    there, back = by_numpy(lengths)
    return torch.from_numpy(there), torch.from_numpy(back)


GIVEN = r"getitem\(\), with an index that Python computes"
ORDERS = {
    by_sort: r"(arg)?sort\(\)", by_stable_sort: r"argsort\(\)", by_topk: r"topk\(\)", by_unique: r"unique\(\)",
    by_kinds: r"cat\(\)", by_python: GIVEN, by_python_in_tensors: GIVEN, by_numpy: GIVEN, by_numpy_in_tensors: GIVEN,
}  # fmt: skip  # and what messages name of them


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [1, 8, 20])
@pytest.mark.parametrize("masks", MASKS)
def test_an_order_of_equal_values_is_not_taken_for_none(order: Callable[[Tensor], Any], count: int, masks: str) -> None:
    torch.manual_seed(0)
    model, x, lengths = Ordered(order), torch.randn(count, 5), torch.full((count,), 7)
    options = {"masks": masks, "batch_dim": 0}  # which of 20 equal lengths in an order of its own is not to be told
    want = samples(model, x, lengths, engine="loop", **options)
    assert torch.equal(samples(model, x, lengths, **options), want)
    if masks == "shared":
        same = samples(model, x[:1].expand(count, -1), lengths, **options)
        assert bool((same - same[:, :1]).abs().max() < 1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_the_message_names_what_orders(order: Callable[[Tensor], Any]) -> None:
    model, x, lengths = Ordered(order), torch.randn(8, 5), torch.full((8,), 7)
    named = f"examples depend on others by their order, by {ORDERS[order]}"
    with pytest.warns(UserWarning, match=f"one after another, .*{named}"):
        assert mc(model, 3, seed=0)(x, lengths).facts["engine"] == "loop"
    with pytest.raises(UnsupportedError, match=f"engine='batched' is not right for this model: {named}"):
        mc(model, 3, seed=0, engine="batched")(x, lengths)


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_of_equal_values_is_not_taken_for_that_of_others(order: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(0)
    model, x = Ordered(order), torch.randn(8, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predict = mc(model, 40, seed=0, keep_samples=True)
        predict(x, torch.full((8,), 7))
        kept = predict(x, LATER).samples
    torch.testing.assert_close(kept, samples(model, x, LATER, engine="loop"))


class Undone(nn.Module):
    """Orders sequences to pack them, and undoes that before it drops."""

    def __init__(self, kind: type[nn.RNNBase], undone: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.undone = undone
        self.recurrent, self.drop, self.last = kind(5, 8, batch_first=True), nn.Dropout(0.4), nn.Linear(8, 3)  # type: ignore[call-arg]  # which PyTorch's base leaves to its kinds

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        lengths, order = lengths.sort(descending=True)
        _, states = self.recurrent(pack_padded_sequence(x[order], lengths, batch_first=True))
        hidden = (states[0] if isinstance(states, tuple) else states)[-1]
        return self.last(self.drop(hidden[self.undone(order)]))


class Packing(nn.Module):
    """Lets PyTorch order what it packs, and drops inside."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.last = nn.LSTM(5, 8, 2, dropout=0.4, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.last(self.recurrent(packed)[1][0][-1])


class Last(nn.Module):
    """Takes what an example has at a place of its own, or in an order of its own."""

    def __init__(self, take: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.take = take
        self.first, self.drop, self.last = nn.Linear(5, 8), nn.Dropout(0.4), nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.last(self.take(self.drop(self.first(x)), lengths))


def by_argmax(hidden: Tensor, lengths: Tensor) -> Tensor:
    is_last = lengths[:, None] == torch.arange(1, 8)
    return hidden[torch.arange(len(hidden)), is_last.int().argmax(-1)]


def by_places(hidden: Tensor, lengths: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden)), [each - 1 for each in lengths.tolist()]]


def by_gather(hidden: Tensor, lengths: Tensor) -> Tensor:
    places = torch.tensor([each - 1 for each in lengths.tolist()])
    return hidden.gather(1, places[:, None, None].expand(-1, 1, 8))[:, 0]


def by_ends(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Take them as classifiers do that check the ends of sequences."""
    is_last = lengths[:, None] == torch.arange(1, 8)
    if len(torch.unique_consecutive(is_last.sum(1))) > 1:
        raise ValueError
    return hidden[is_last].view(len(hidden), -1, 8)[:, -1]


def by_largest(hidden: Tensor, lengths: Tensor) -> Tensor:
    largest = (lengths[:, None] % torch.arange(2, 9)).topk(2, 1).indices
    ordered = hidden.gather(1, largest.sort(1).values[..., None].expand(-1, -1, 8))
    return ordered.mean(1) / torch.tensor(lengths.tolist())[:, None]


@pytest.mark.parametrize(
    ("model", "engine"),
    [
        (partial(Undone, nn.LSTM, Tensor.argsort), "prefix"),
        (partial(Undone, nn.LSTM, inverse), "prefix"),
        (partial(Undone, nn.GRU, Tensor.argsort), "batched"),
        (Packing, "batched"),
        *((partial(Last, take), "prefix") for take in (by_argmax, by_places, by_gather, by_ends, by_largest)),
    ],
    ids=["undone", "undone_by_hand", "undone_unshared", "packing", "argmax", "places", "gather", "ends", "largest"],
)
@pytest.mark.parametrize("count", [1, 8, 20])
def test_what_leaves_examples_in_their_places_runs_together(
    model: Callable[[], nn.Module], engine: str, count: int
) -> None:
    torch.manual_seed(0)
    net, x = model(), torch.randn(count, 7, 5)
    predict = mc(net, 40, seed=0, keep_samples=True)
    for lengths in (torch.full((count,), 7), torch.randint(1, 8, (count,))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = predict(x, lengths)
        assert found.facts["engine"] == engine
        torch.testing.assert_close(found.samples, samples(net, x, lengths, engine="loop"))


def test_an_order_that_is_undone_by_hand_is_right_where_passes_share_it_alone() -> None:
    with pytest.raises(UnsupportedError, match=r"'batched' is not right .* by their order, by sort\(\)"):
        mc(Undone(nn.LSTM, inverse), 3, seed=0, engine="batched")(torch.randn(8, 7, 5), torch.full((8,), 7))


@pytest.mark.parametrize(
    "undone", [Tensor.clone, partial(torch.argsort, descending=True), lambda order: (2 * order).argsort().argsort()]
)
def test_an_order_of_equal_values_is_not_taken_for_one_that_is_undone(undone: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Undone(nn.GRU, undone), torch.randn(8, 7, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predict = mc(model, 40, seed=0, keep_samples=True)
        predict(x, torch.full((8,), 7))
        kept = predict(x, LATER).samples
    torch.testing.assert_close(kept, samples(model, x, LATER, engine="loop"))


def test_where_examples_are_said_to_lie_masks_may_follow_their_order_all_the_same() -> None:
    torch.manual_seed(0)
    model, x, lengths = Ordered(by_sort), torch.randn(6, 5), torch.tensor([3, 1, 2, 6, 5, 4])
    with pytest.warns(UserWarning, match="masks may follow the order in which the forward puts them"):
        mc(model, 3, seed=0, batch_dim=0, engine="loop")(x, lengths)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mc(model, 3, seed=0, batch_dim=0, masks="shared")(x, lengths)
    assert not any("masks may follow" in str(each.message) for each in caught)
