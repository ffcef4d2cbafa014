"""Where examples lie in what each site drops, which may be along another axis than in the inputs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
