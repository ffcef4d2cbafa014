"""Where examples lie in what each site drops, which may be along another axis than in the inputs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.uncertainty import mc

LOOPS = pytest.mark.filterwarnings("ignore:mc. passes over")
WIDTH, TIME = 16, 5


class LastState(nn.Module):
    """A classifier by the last state of a recurrent network, which has the examples along axis 0."""

    def __init__(self, batch_first: bool = False, coupling: float = 0.0) -> None:
        super().__init__()
        self.lstm, self.drop = nn.LSTM(8, WIDTH, batch_first=batch_first), nn.Dropout(0.5)
        self.head, self.coupling = nn.Linear(WIDTH, 3), coupling

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.drop(self.lstm(x)[1][0][-1]))
        return y - self.coupling * y.mean(0) if self.coupling else y


class Fixed(LastState):
    """The same, for batches of one size alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(TIME, 6, 8))


class Places(nn.Module):
    """Drops places of a grid, which have no examples."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.drop = nn.Embedding(6, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.places(torch.arange(6)))


def samples(model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    return mc(model, 9, seed=0, keep_samples=True, **options)(x).samples


@pytest.mark.parametrize("options", [{}, {"batch_dim": 1}, {"masks": "shared"}], ids=["found", "said", "shared"])
@pytest.mark.parametrize("count", [1, 4, TIME, WIDTH])
def test_a_last_state_has_the_masks_of_its_examples(count: int, options: dict[str, Any]) -> None:
    """They are those of the same network with the batch first, with which every axis is the first."""
    model, other = LastState(), LastState(batch_first=True)
    other.load_state_dict(model.state_dict())
    x = torch.randn(TIME, count, 8)
    result = mc(model, 9, seed=0, keep_samples=True, **options)(x)
    options.pop("batch_dim", None)
    assert result.facts["engine"] == "prefix"
    torch.testing.assert_close(result.samples, samples(other, x.transpose(0, 1), **options))


@pytest.mark.parametrize("masks", ["per_example", "shared"])
@pytest.mark.parametrize("coupling", [0.0, 0.5])
@pytest.mark.parametrize("count", [4, TIME, WIDTH])
@LOOPS
def test_engines_have_the_same_networks_of_last_states(count: int, coupling: float, masks: str) -> None:
    model, x = LastState(coupling=coupling), torch.randn(TIME, count, 8)
    torch.testing.assert_close(*(samples(model, x, masks=masks, engine=engine) for engine in ("auto", "loop")))


@pytest.mark.parametrize("sizes", [[5, 5, 5, 2], [8, 8, 1], [16, 1]], ids=str)
def test_batches_of_last_states_have_the_masks_of_one(sizes: list[int]) -> None:
    model, x = LastState(), torch.randn(TIME, 17, 8)
    batches = x[:, : sum(sizes)].split(sizes, 1)
    predict = mc(model, 9, seed=0, keep_samples=True)
    torch.testing.assert_close(predict.batches(batches).samples, predict(torch.cat(batches, 1)).samples)


@pytest.mark.parametrize("count", [4, TIME, WIDTH])
@LOOPS
def test_an_axis_that_is_said_and_is_that_of_time_is_refused(count: int) -> None:
    with pytest.raises(ArgumentError, match=r"`batch_dim` must be an axis .* got 0"):
        mc(LastState(), 3, batch_dim=0)(torch.randn(TIME, count, 8))


@LOOPS
def test_lengths_tell_where_a_model_takes_batches_of_one_size() -> None:
    x = torch.randn(TIME, 6, 8)
    model, fixed = LastState(), Fixed()
    fixed.load_state_dict(model.state_dict())
    torch.testing.assert_close(samples(fixed, x, batch_dim=1), samples(model, x))


@pytest.mark.parametrize("count", [2, 3, 4, 6])
@LOOPS
def test_places_that_are_as_many_as_examples_are_none(count: int) -> None:
    x = torch.randn(count, 1, 8).expand(count, 6, 8)
    assert samples(Places(), x).shape == (9, count, 6, 8)
    with pytest.raises(UnsupportedError, match="cannot share masks"):
        samples(Places(), x, masks="shared")


class TimeFirst(nn.Module):
    """Tokens that have time first, and a mask of padding that has the examples first."""

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=batch_first)
        self.embedding, self.head, self.batch_first = nn.Embedding(20, 8), nn.Linear(8, 3), batch_first
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        hidden = self.encoder(self.embedding(tokens), src_key_padding_mask=padding)
        return self.head(hidden.mean(int(self.batch_first)))


class Packed(nn.Module):
    """Tokens that have time first, their lengths, and a head on the last state."""

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        self.embedding, self.drop, self.head = nn.Embedding(20, 8), nn.Dropout(0.3), nn.Linear(12, 3)
        self.gru, self.batch_first = nn.GRU(8, 12, 2, dropout=0.4, batch_first=batch_first), batch_first

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(tokens), lengths, self.batch_first, enforce_sorted=False)
        return self.head(self.drop(self.gru(packed)[1][-1]))


def beside(kind: type[nn.Module], count: int) -> Tensor:
    lengths = torch.arange(count) % TIME + 1
    lengths[0] = TIME
    return lengths if kind is Packed else torch.arange(TIME) >= lengths[:, None]


@pytest.mark.parametrize("said", [None, 1, (1, 0)], ids=["found", "said", "of each"])
@pytest.mark.parametrize("masks", ["per_example", "shared"])
@pytest.mark.parametrize("count", [4, TIME])
@pytest.mark.parametrize("kind", [TimeFirst, Packed])
def test_inputs_may_have_their_examples_along_other_axes(kind: Any, count: int, masks: str, said: Any) -> None:
    """The networks are those of the same model with the batch first."""
    model, other = kind(), kind(batch_first=True)
    other.load_state_dict(model.state_dict())
    tokens, more = torch.randint(0, 20, (TIME, count)), beside(kind, count)
    result = mc(model, 9, seed=0, masks=masks, keep_samples=True, batch_dim=said)(tokens, more)
    expected = mc(other, 9, seed=0, masks=masks, keep_samples=True)(tokens.T.contiguous(), more)
    assert result.facts["engine"] != "loop"
    torch.testing.assert_close(result.samples, expected.samples)


@pytest.mark.parametrize("kind", [TimeFirst, Packed])
def test_batches_of_such_inputs_have_the_masks_of_one(kind: Any) -> None:
    tokens, more = torch.randint(0, 20, (TIME, 6)), beside(kind, 6)
    predict = mc(kind(), 9, seed=0, keep_samples=True)
    parts = [((tokens[:, each], more[each]), 0) for each in (slice(0, 4), slice(4, 6))]
    torch.testing.assert_close(predict.batches(parts).samples, predict(tokens, more).samples)


@LOOPS
def test_the_axis_of_what_has_its_examples_first_gives_the_same_networks() -> None:
    model, tokens, more = Packed(), torch.randint(0, 20, (TIME, 4)), beside(Packed, 4)
    found = [
        mc(model, 9, seed=0, keep_samples=True, batch_dim=said)(tokens, more).samples for said in (0, (None, 0), 1)
    ]
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[2])


def test_axes_that_do_not_fit_the_inputs_are_refused() -> None:
    inputs = torch.randint(0, 20, (TIME, 4)), beside(Packed, 4)
    with pytest.raises(ArgumentError, match=r"`batch_dim` must be .* one for each tensor .* got \(1,\).*These have 2"):
        mc(Packed(), 3, batch_dim=(1,))(*inputs)
    for said in ((0, 0), (1, 3)):
        with pytest.raises(ArgumentError, match=r"`batch_dim` must be axes .* one length.*shapes are \(5, 4\), \(4,\)"):
            mc(Packed(), 3, batch_dim=said)(*inputs)
    square = torch.randint(0, 20, (TIME, TIME)), beside(TimeFirst, TIME)
    with pytest.raises(ArgumentError, match=r"`batch_dim` must be an axis .* got \(0, 0\).* It is none"):
        mc(TimeFirst(), 3, batch_dim=(0, 0))(*square)


class Sorted(nn.Module):
    """Tokens and their lengths, which have to be sorted, as `pack_padded_sequence` asks unless it is told."""

    def __init__(self, batch_first: bool = False, is_sorted: bool = True) -> None:
        super().__init__()
        self.embedding, self.first, self.last = nn.Embedding(20, 8), nn.Dropout(0.3), nn.Dropout(0.5)
        self.lstm, self.head = nn.LSTM(8, 12, batch_first=batch_first), nn.Linear(12, 3)
        self.batch_first, self.is_sorted = batch_first, is_sorted

    def forward(self, tokens: Tensor, lengths: Any) -> Tensor:
        hidden = self.first(self.embedding(tokens))
        packed = pack_padded_sequence(hidden, lengths, self.batch_first, enforce_sorted=self.is_sorted)
        return self.head(self.last(self.lstm(packed)[1][0][-1]))


@pytest.mark.parametrize("masks", ["per_example", "shared"])
@pytest.mark.parametrize("said", [None, 1, (1, 0), "list"], ids=["found", "said", "of each", "list"])
@pytest.mark.parametrize(("time", "count"), [(7, 4), (9, 3), (12, 6)])
@LOOPS
def test_lengths_that_have_to_be_sorted(time: int, count: int, said: Any, masks: str) -> None:
    """The networks are those of a model that takes lengths in any order."""
    model, other = Sorted(), Sorted(is_sorted=False)
    other.load_state_dict(model.state_dict())
    tokens, lengths = torch.randint(0, 20, (time, count)), torch.arange(time, time - count, -1)
    given = (tokens, lengths.tolist() if said == "list" else lengths)
    found = mc(model, 9, seed=0, masks=masks, keep_samples=True, batch_dim=1 if said == "list" else said)(*given)
    want = mc(other, 9, seed=0, masks=masks, keep_samples=True, batch_dim=(1, 0))(tokens, lengths)
    torch.testing.assert_close(found.samples, want.samples)


@pytest.mark.parametrize("said", [None, 0])
@LOOPS
def test_batches_of_lengths_that_have_to_be_sorted_are_joined(said: int | None) -> None:
    predict = mc(Sorted(batch_first=True), 9, seed=0, keep_samples=True, batch_dim=said)
    tokens, lengths = torch.randint(0, 20, (10, 7)), torch.tensor([7, 7, 7, 6, 6, 5, 5, 3, 2, 1])
    parts = [((tokens[each], lengths[each]), 0) for each in map(slice, (0, 4, 8), (4, 8, 10))]
    torch.testing.assert_close(predict.batches(parts).samples, predict(tokens, lengths).samples)


def test_lengths_that_have_to_be_sorted_are_said_to_be_right() -> None:
    """And with the option that the warning names passes run together, where they drop after packing."""
    model, given = Sorted(batch_first=True), (torch.randint(0, 20, (4, 7)), torch.tensor([7, 6, 4, 2]))
    model.first.p = 0.0
    with pytest.warns(UserWarning, match=r"one after another.*Your lengths are right.*pack with enforce_sorted=False"):
        mc(model, 3, seed=0, engine="auto")(*given)
    model.is_sorted = False
    assert mc(model, 3, seed=0)(*given).facts["engine"] != "loop"


@LOOPS
def test_examples_that_depend_on_their_places_are_found_by_no_order() -> None:
    class Placed(Sorted):
        def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
            return super().forward(tokens, lengths) * torch.arange(1, lengths.numel() + 1)[:, None]

    with pytest.raises(UnsupportedError, match="cannot share masks"):
        mc(Placed(), 3, seed=0, masks="shared")(torch.randint(0, 20, (7, 4)), torch.tensor([7, 6, 4, 2]))
