"""Where Monte Carlo dropout finds a batch's examples, with every engine the same; and where it cannot."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.uncertainty import mc

LOOPS = pytest.mark.filterwarnings("ignore:mc. passes over")
ENGINES = ("auto", "loop")


class Recurrent(nn.Module):
    """Has time along axis 0, and, where it is coupled, a mean over the examples behind its dropout."""

    def __init__(self, coupling: float = 0.0) -> None:
        super().__init__()
        self.lstm, self.drop, self.last, self.coupling = nn.LSTM(8, 8), nn.Dropout(0.5), nn.Linear(8, 3), coupling

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.drop(self.lstm(x)[0]))
        return y - self.coupling * y.mean(1, keepdim=True) if self.coupling else y


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.3), 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.encoder(x, mask=mask)


def samples(model: nn.Module, *inputs: Tensor, **options: Any) -> Tensor:
    return mc(model, 9, seed=0, keep_samples=True, **options)(*inputs).samples


def by_example(values: Tensor, axis: int) -> Tensor:
    """Return how far the examples of one pass are apart, where all inputs are the same."""
    return (values - values.narrow(axis + 1, 0, 1)).abs().max()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("coupling", [0.0, 0.5])
@pytest.mark.parametrize(("length", "count"), [(5, 4), (4, 4), (4, 1)])
@LOOPS
def test_examples_of_sequences_that_have_time_first(engine: str, coupling: float, length: int, count: int) -> None:
    model = Recurrent(coupling)
    x = torch.randn(length, 1, 8).expand(length, count, 8).contiguous()
    shared = samples(model, x, masks="shared", engine=engine)
    assert float(by_example(shared, 1)) < 1e-6
    assert coupling or float(shared.std(0).max()) > 0.01
    apart = samples(model, x, engine=engine)
    assert count == 1 or float(by_example(apart, 1)) > 0.01


@pytest.mark.parametrize("masks", ["per_example", "shared"])
@pytest.mark.parametrize("coupling", [0.0, 0.5])
@LOOPS
def test_engines_have_the_same_networks_with_time_first(masks: str, coupling: float) -> None:
    model, x = Recurrent(coupling), torch.randn(5, 4, 8)
    torch.testing.assert_close(*(samples(model, x, masks=masks, engine=engine) for engine in ENGINES))


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_have_the_masks_of_one_with_time_first(engine: str) -> None:
    model, x = Recurrent(), torch.randn(5, 6, 8)
    predict = mc(model, 9, seed=0, keep_samples=True, engine=engine)
    torch.testing.assert_close(predict.batches(x.split([3, 2, 1], 1)).samples, predict(x).samples)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_causal_mask_as_long_as_the_batch_has_no_examples(engine: str) -> None:
    x = torch.randn(4, 1, 16).expand(4, 4, 16).contiguous()
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    assert float(by_example(samples(Encoder(), x, mask, masks="shared", engine=engine), 1)) < 1e-5


class Timed(nn.Module):
    """Takes what is no batch before what is one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.drop(self.first(x)) + t.sum()


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_first_input_that_is_no_batch(count: int, engine: str) -> None:
    t, x = torch.ones(count), torch.randn(1, 8).expand(6, 8).contiguous()
    dropped = (samples(Timed(), t, x, masks="shared", engine=engine) - count).abs() < 1e-6
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert not torch.equal(dropped[..., 1:], dropped[..., :-1])


@pytest.mark.parametrize("engine", ENGINES)
@LOOPS
def test_a_single_vector_is_one_example(engine: str) -> None:
    """A unit alone is dropped by half, and two that draw for themselves are dropped together by a quarter."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    dropped = mc(model, 400, seed=0, masks="shared", keep_samples=True, engine=engine)(torch.randn(8)).samples == 0
    together = (dropped[:, :, None] & dropped[:, None]).double().mean(0)
    want = torch.full((8, 8), 0.25, dtype=torch.float64).fill_diagonal_(0.5)
    assert bool(((together - want).abs() < 5 * (want * (1 - want) / 400).sqrt()).all())


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bags, self.drop = nn.EmbeddingBag(20, 8), nn.Dropout(0.5)

    def forward(self, words: Tensor, offsets: Tensor) -> Tensor:
        return self.drop(self.bags(words, offsets))


@LOOPS
def test_two_vectors_are_more_than_one_example() -> None:
    words, offsets = torch.randint(20, (10,)), torch.tensor([0, 3, 5, 9])
    with pytest.raises(UnsupportedError, match="cannot share masks"):
        samples(Bags(), words, offsets, masks="shared")
    dropped = samples(Bags(), words, offsets, masks="shared", batch_dim=0) == 0
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))


class Standardised(nn.Module):
    """Takes statistics of its batch behind its dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.drop(self.first(x)))
        return (y - y.mean(0)) / (1 + y.std(0, correction=0))


@pytest.mark.parametrize("engine", ENGINES)
@LOOPS
def test_examples_that_depend_on_one_another_are_found_by_their_order(engine: str) -> None:
    x = torch.randn(6, 8)
    x[3:] = x[:3]
    found = samples(Standardised(), x, masks="shared", engine=engine)
    torch.testing.assert_close(found[:, 3:], found[:, :3])
    apart = samples(Standardised(), x, engine=engine)
    assert float((apart[:, 3:] - apart[:, :3]).abs().max()) > 0.01


class Alone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x)


class Recursive(nn.Module):
    """Adds the rows before it to each row, so that no axis of its input has examples."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.weight = nn.Dropout(0.5), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return (self.drop(x) @ self.weight).cumsum(0)


@pytest.mark.parametrize("engine", ENGINES)
@LOOPS
def test_examples_that_nothing_tells_cannot_share_masks(engine: str) -> None:
    model, x = Recursive(), torch.randn(6, 8)
    with pytest.raises(UnsupportedError, match=r"cannot be told apart.*by `batch_dim`.*masks=\"per_example\""):
        samples(model, x, masks="shared", engine=engine)
    assert samples(model, x, engine=engine).shape == (9, 6, 8)
    dropped = samples(Alone(), x, masks="shared") == 0
    said = samples(model, x, masks="shared", engine=engine, batch_dim=0)
    scaled = x * ~dropped * 2
    torch.testing.assert_close(said, (scaled @ model.weight).cumsum(1).detach())


@pytest.mark.parametrize("engine", ENGINES)
def test_an_axis_that_is_said_is_taken(engine: str) -> None:
    """Every place of every sequence goes its own way, so that either axis may have the examples."""
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), torch.randn(5, 4, 8)
    for axis in (0, 1):
        dropped = samples(model, x, masks="shared", engine=engine, batch_dim=axis) == 0
        assert torch.equal(dropped, dropped.narrow(axis + 1, 0, 1).expand_as(dropped))
        other = 2 - axis
        assert not torch.equal(dropped, dropped.narrow(other, 0, 1).expand_as(dropped))
    torch.testing.assert_close(samples(model, x, engine=engine), samples(model, x, engine=engine, batch_dim=0))


def test_an_axis_that_no_input_has() -> None:
    with pytest.raises(ArgumentError, match=r"`batch_dim` must be an axis .* got 3 .* no input has an axis"):
        mc(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), 3, batch_dim=3)(torch.randn(6, 8))


class Ragged(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.drop, self.kind = nn.Linear(8, 8), nn.Dropout(0.5), kind

    def forward(self, x: Tensor) -> Any:
        y = self.drop(self.first(x))
        return {"y": y.to_sparse() if self.kind == "sparse" else y}


OF_LENGTHS = torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(3, 8)], layout=torch.jagged)


@pytest.mark.parametrize(("kind", "remedy"), [("nested", "to_padded_tensor"), ("sparse", "to_dense")])
def test_outputs_that_are_not_dense_are_refused_by_name(kind: str, remedy: str) -> None:
    x = OF_LENGTHS if kind == "nested" else torch.randn(6, 8)
    with pytest.raises(UnsupportedError, match=rf"mc: output.y is a {kind} tensor.*{remedy}"):
        mc(Ragged(kind), 3, seed=0)(x)


class Keeping(nn.Module):
    """Keeps what its first forward has computed."""

    kept: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.drop(self.first(x))
        return self.kept


def test_a_model_that_keeps_what_it_dropped_is_told_to_let_go() -> None:
    with pytest.raises(UnsupportedError, match=r"none of the sites drop drops.*let it keep nothing"):
        mc(Keeping(), 3, seed=0)(torch.randn(6, 8))


@pytest.mark.parametrize("task", [None, "classification", "regression"])
def test_passes_stop_where_the_error_will_never_be_a_number(task: str | None) -> None:
    x = torch.randn(6, 8)
    x[2] = math.nan
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    with pytest.warns(UserWarning, match=r"passes stop after \d+, for some outputs are not finite"):
        result = mc(model, "auto", task=task, seed=0)(x)
    assert result.n < 100
    assert result.facts["reached"] is False
    assert bool(result.mean[[0, 1, 3, 4, 5]].isfinite().all())


def test_a_single_vector_is_nothing_to_be_warned_of() -> None:
    """Pytest turns warnings into errors."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    assert mc(model, 3, seed=0)(torch.randn(8)).facts["engine"] == "loop"


class Unbatched(nn.Module):
    """Takes a sequence, of which no axis has examples."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.gru, self.last = nn.Dropout(0.5), nn.GRU(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gru(self.drop(x))[0])


@pytest.mark.parametrize(
    ("engine", "said"), [("auto", "run one after another, and have masks"), ("loop", "over this model have masks")]
)
def test_masks_that_belong_to_places_are_warned_of(engine: str, said: str) -> None:
    with pytest.warns(UserWarning, match=rf"{said} that belong to places .*other batches.*by `batch_dim`, or give a"):
        mc(Unbatched(), 3, seed=0, engine=engine)(torch.randn(5, 8))


def test_a_model_that_takes_no_longer_inputs_is_told_of_in_words() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Flatten(0), nn.Linear(64, 3))
    reason = r"for the model does not run on inputs that are longer along axis 0 \(RuntimeError: mat1 and mat2"
    with pytest.warns(UserWarning, match=reason):
        mc(model, 3, seed=0)(torch.randn(4, 8))


@pytest.mark.parametrize("shape", [(7, 8), (1, 8), (7, 5, 8)], ids=str)
def test_classes_along_the_axis_of_examples_are_refused(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    for axis in (0, -len(shape)):
        with pytest.raises(ArgumentError, match=r"`class_dim` must be the axis of classes, got .* lie the examples"):
            mc(model, 3, task="classification", class_dim=axis, seed=0)(torch.randn(shape))
    assert mc(model, 3, task="classification", class_dim=0, seed=0)(torch.randn(8)).mean.shape == (3,)


def test_a_reason_is_told_once_for_all_shapes() -> None:
    predict = mc(Standardised(), 3, seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predict.batches([torch.randn(size, 8) for size in (6, 5, 4)])
        predict(torch.randn(3, 8))
    assert [str(each.message).startswith("mc: passes over this model run one after") for each in caught] == [True]
