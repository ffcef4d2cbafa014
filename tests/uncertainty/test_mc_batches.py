"""Batches of a loader: what the model is given of them, and how their results are joined."""

import re
from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader, TensorDataset

from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.uncertainty import MonteCarlo, mc

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class LastStep(nn.Module):
    """A sequence-first network with a head on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 8, 2, dropout=0.5), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][-1])


class Attention(nn.Module):
    """Sequence-first attention, the weights of which are batch-first."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3)

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x)


class Head(nn.Module):
    """Dropout and a head, and what tests need of it."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, outputs)
        self.prior = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.drop(x))


class Constants(Head):
    def forward(self, x: Tensor) -> Any:
        y = self.head(self.drop(x))
        return {"y": y, "prior": self.prior, "grid": torch.linspace(0, 1, 7), "turned": y.T, "rows": len(x)}


class Squeezed(Head):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(x)).squeeze()


class Centred(Head):
    """Couples the examples of a batch, so that passes run one after another."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.drop(x))
        return y - 0.5 * y.mean(0)


class Statistic(Head):
    def forward(self, x: Tensor) -> Any:
        return {"y": self.head(self.drop(x)), "batch": x.mean(0)}


class Two(Head):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.drop(a + 2 * b))


def same(found: Any, want: Any) -> None:
    """Check that two outputs have the same type, shapes and values."""
    (one, structure), (other, expected) = tree_flatten(found), tree_flatten(want)
    assert structure == expected
    for value, each in zip(one, other, strict=True):
        torch.testing.assert_close(value, each, **CLOSE)


OWN_AXES = {
    "last_step": (LastStep, (5, 6, 8), 1),
    "last_step_square": (LastStep, (6, 6, 8), 1),
    "lstm": (lambda: nn.LSTM(8, 4, 2, dropout=0.5), (5, 6, 8), 1),
    "lstm_batch_first": (lambda: nn.LSTM(8, 4, 2, dropout=0.5, batch_first=True), (6, 5, 8), 0),
    "gru_batch_first": (lambda: nn.GRU(8, 4, 2, dropout=0.5, batch_first=True), (6, 5, 8), 0),
    "attention": (Attention, (5, 6, 8), 1),
    "turned": (Constants, (6, 8), 0),
}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", OWN_AXES)
def test_each_tensor_is_joined_along_its_own_axis(name: str, size: int) -> None:
    make, shape, axis = OWN_AXES[name]
    torch.manual_seed(0)
    x = torch.randn(shape)
    predict = mc(make(), 6, seed=0, keep_samples=True)
    whole, found = predict(x), predict.batches(x.split(size, axis))
    if name == "turned":  # what is no tensor is the first batch's
        whole.mean["rows"] = whole.std["rows"] = whole.samples["rows"] = min(size, 6)
        found.std["rows"] = size
    for each in ("mean", "std", "samples"):
        same(getattr(found, each), getattr(whole, each))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_statistic_of_a_task_is_that_of_the_whole(size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6, 8)
    for task in ("regression", "classification"):
        predict = mc(LastStep(), 60, task=task, seed=0)
        whole, found = predict(x), predict.batches(x.split(size, 1))
        same(found.numpy(), whole.numpy())
        if task == "regression":
            torch.testing.assert_close(found.quantile([0.1, 0.9]), whole.quantile([0.1, 0.9]), **CLOSE)


@pytest.mark.parametrize("task", [None, "regression"])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.filterwarnings("ignore:mc. passes over")  # of one example, as the output has other axes then
def test_a_last_batch_of_one_example_may_be_squeezed(size: int, task: str | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 8)
    predict = mc(Squeezed(1), 60, task=task, seed=0)
    whole, found = predict(x), predict.batches(x.split(size))
    assert found.mean.shape == (7,)
    same(found.numpy(), whole.numpy())
    if task:
        torch.testing.assert_close(found.quantile(0.9), whole.quantile(0.9), **CLOSE)
    predict = mc(Squeezed(3), 5, seed=0)
    same(predict.batches(x.split(6)).mean, predict(x).mean)


@pytest.mark.filterwarnings("ignore:mc. passes over")
def test_a_classifier_that_squeezes_a_last_batch_of_one_example_is_told_so() -> None:
    with pytest.raises(ArgumentError, match=r"If the model has squeezed a batch of one example") as raised:
        mc(Squeezed(3), 5, task="classification").batches(torch.randn(7, 8).split(3))
    assert raised.value.__notes__ == ["MonteCarlo.batches: this was batch 2 of the loader, counted from 0."]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.filterwarnings("ignore:mc. passes over")
def test_batches_that_run_one_pass_after_another_are_joined_too(size: int) -> None:
    """Three outputs and three examples: nothing but the axis that is known tells them apart."""
    torch.manual_seed(0)
    model, x = Centred(), torch.randn(6, 8)
    found = mc(model, 5, seed=0, keep_samples=True).batches(x.split(size))
    assert found.samples.shape == (5, 6, 3)
    first = mc(model, 5, seed=0, keep_samples=True)(x[:size])
    torch.testing.assert_close(found.samples[:, :size], first.samples, **CLOSE)


def test_a_statistic_of_the_batch_cannot_be_joined() -> None:
    with pytest.raises(ArgumentError, match=r"output\.batch is the same, as it has no axis of examples.*as `each`"):
        mc(Statistic(), 3, seed=0).batches(torch.randn(6, 8).split(3))


class Small(Head):
    """Takes three examples at most, so that passes cannot run together."""

    def forward(self, x: Tensor) -> Any:
        if len(x) > 3:
            raise ValueError("too many")
        return {"y": self.head(self.drop(x)), "zeros": torch.zeros(3), "square": torch.ones(len(x), 3)}


@pytest.mark.filterwarnings("ignore:mc. passes over")
def test_equal_values_do_not_tell_where_examples_lie() -> None:
    x = torch.randn(6, 8)
    predict = mc(Small(), 4, seed=0)
    with pytest.raises(ArgumentError, match=r"output\.zeros lie.*axis 0 or none"):
        predict.batches(x.split(3))
    found = predict.batches(x[:5].split(3)).mean
    assert {name: tuple(value.shape) for name, value in found.items()} == {"y": (5, 3), "zeros": (3,), "square": (5, 3)}


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:mc. passes over")
def test_a_batch_without_examples_tells_nothing(where: int) -> None:
    torch.manual_seed(0)
    x, predict = torch.randn(5, 6, 8), mc(nn.LSTM(8, 4, 2, dropout=0.5), 4, seed=0)
    parts = list(x.split(3, 1))
    parts.insert(where, x[:, :0])
    same(predict.batches(parts).mean, predict(x).mean)


def two(a: Tensor, b: Tensor) -> tuple[MonteCarlo, Tensor]:
    torch.manual_seed(0)
    predict = mc(Two(), 4, seed=0)
    return predict, predict(a, b).mean


def test_several_inputs_of_a_loader() -> None:
    a, b, y = torch.randn(5, 8), torch.randn(5, 8), torch.arange(5)
    predict, want = two(a, b)
    rows = range(5)
    data: list[Any] = [
        [((a[i], b[i]), y[i]) for i in rows],
        [{"a": a[i], "b": b[i]} for i in rows],
        [({"a": a[i], "b": b[i]}, y[i]) for i in rows],
        [{"a": a[i], "b": b[i], "labels": y[i], "target": y[i]} for i in rows],
    ]
    for each in data:
        same(predict.batches(DataLoader(each, batch_size=2)).mean, want)
    same(predict.batches([UserDict(a=a, b=b, labels=y)]).mean, want)


class Labelled(Head):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        y = self.head(self.drop(x))
        return {"logits": y} if labels is None else {"logits": y, "labels": labels}


class WithLoss(Head):
    """As classifiers of Hugging Face are called by their loaders."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(self.drop(x))
        return {"loss": None if labels is None else nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_loss_is_one_number_a_batch() -> None:
    torch.manual_seed(0)
    data = [{"x": torch.randn(8), "labels": torch.tensor(i % 3)} for i in range(6)]
    with pytest.warns(UserWarning, match=r"one after another, for output\.loss"):
        found = mc(WithLoss(), 5, seed=0).batches(DataLoader(data, batch_size=3))
    assert found.mean["loss"].shape == (2,)
    assert found.mean["logits"].shape == (6, 3)


class Open(Head):
    def forward(self, x: Tensor, **rest: Any) -> Any:
        return {"y": self.head(self.drop(x)), **rest}


class Listed(Head):
    def forward(self, images: list[Tensor]) -> Tensor:
        return self.head(self.drop(torch.stack(images)))


def test_targets_are_left_out_only_where_the_forward_does_not_take_them() -> None:
    x, y = torch.randn(4, 8), torch.arange(4)
    assert set(mc(Labelled(), 2).batches([{"x": x, "labels": y, "label": y}]).mean) == {"logits", "labels"}
    assert set(mc(Labelled(), 2).batches([{"x": x, "label": y}]).mean) == {"logits"}
    assert set(mc(Open(), 2).batches([{"x": x, "target": y}]).mean) == {"y", "target"}
    whole = nn.DataParallel(Labelled())
    assert set(mc(whole, 2).batches([{"x": x, "labels": y, "target": y}]).mean) == {"logits", "labels"}


@pytest.mark.filterwarnings("ignore:mc. passes over")
def test_a_list_is_one_input_where_the_forward_takes_one() -> None:
    images = [torch.randn(8), torch.randn(8)]
    assert mc(Listed(), 2).batches([(images, [0, 1])]).mean.shape == (2, 3)


@pytest.mark.parametrize(
    ("batch", "parts"),
    [
        (
            (torch.zeros(2, 8), torch.zeros(2, 8), torch.zeros(2)),
            ["of a tuple the first entry alone", '{"a": ..., "b": ...}'],
        ),
        ([torch.zeros(2, 8)], ["of a list the first entry alone", "missing a required argument: 'b'"]),
        (torch.zeros(2, 8), ["does not take batch 1", '{"a": ..., "b": ...}']),
        ({"a": torch.zeros(2, 8)}, ["missing a required argument: 'b'", "those that the forward takes: a, b"]),
        (
            {"a": torch.zeros(2, 8), "b": torch.zeros(2, 8), "mask": 1},
            ["unexpected keyword argument 'mask'", "those that the forward takes: a, b"],
        ),
    ],
    ids=["tuple", "list", "tensor", "missing", "unknown"],
)
def test_what_the_forward_does_not_take_is_told(batch: Any, parts: list[str]) -> None:
    x = torch.randn(2, 8)
    with pytest.raises(ArgumentTypeError) as raised:
        mc(Two(), 2).batches([{"a": x, "b": x}, batch])
    message = str(raised.value)
    assert message.startswith("MonteCarlo.batches: the forward of Two does not take batch 1: ")
    for part in parts:
        assert part.lower() in message.lower()


class Optional(Head):
    """Can do without its second input."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.drop(x.relu())
        return self.head(x if mask is None else x * mask)


def test_inputs_of_which_one_can_be_left_out_are_told_how_to_be_given() -> None:
    x, mask, y = torch.randn(4, 8), torch.ones(4, 8), torch.arange(4)
    predict = mc(Optional(), 2, seed=0)
    for batch in (((x, mask), y), [[x, mask], y]):
        with pytest.raises(ArgumentTypeError) as raised:
            predict.batches([x, batch])
        assert re.fullmatch(
            r"MonteCarlo.batches: the forward of Optional was given batch 1 as one input, a (tuple|list) of 2 tensors, "
            r"for it needs no second, and raised AttributeError: .* has no attribute 'relu'\. If they are several "
            r'inputs, let the loader yield them by name: \{"x": ..., "mask": ...\}\.',
            str(raised.value),
        )
    same(predict.batches([({"x": x, "mask": mask}, y)]).mean, predict(x, mask).mean)


def test_other_errors_are_the_model_s_and_tell_the_batch() -> None:
    for wrong, error in ((torch.zeros(2, 7), RuntimeError), ("text", TypeError)):
        with pytest.raises(error) as raised:
            mc(Head(), 2).batches([torch.randn(2, 8), (wrong, 1)])
        assert raised.value.__notes__ == ["MonteCarlo.batches: this was batch 1 of the loader, counted from 0."]


def test_results_come_one_by_one() -> None:
    x = torch.randn(5, 8)
    predict = mc(Head(), 3, seed=0)
    shapes = [tuple(each.mean.shape) for each in predict.each(DataLoader(TensorDataset(x), batch_size=2))]
    assert shapes == [(2, 3), (2, 3), (1, 3)]
