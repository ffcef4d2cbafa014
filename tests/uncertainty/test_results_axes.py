"""Each tensor of an output is joined along its own axis of examples, or not at all."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from dropkit.errors import ArgumentError
from dropkit.uncertainty import Result
from dropkit.uncertainty.results.axes import NO_AXIS, Axis
from dropkit.uncertainty.results.running import Running
from tests.uncertainty.gathered import CLOSE, classified, random


def gathered(values: Any, axis: Axis, examples: int | None, task: str | None = None, **options: Any) -> Result:
    """Return the result of passes of one tensor."""
    running = Running(task, **options)
    running.add(values[0], [values])
    return running.result([axis], examples)


def joined(parts: Sequence[Tensor], axes: Sequence[Axis], sizes: Sequence[int | None]) -> Tensor:
    results = [gathered(*each) for each in zip(parts, axes, sizes, strict=True)]
    return Result.concatenate(results).mean


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_tensor_is_joined_along_the_axis_that_is_known(axis: int) -> None:
    values = random(20, 4, 4, 4)
    parts = values.split(2, axis + 1)
    torch.testing.assert_close(joined(parts, (axis, axis), (2, 2)), values.mean(0), **CLOSE)
    torch.testing.assert_close(joined(parts, (axis, None), (2, 2)), values.mean(0), **CLOSE)
    torch.testing.assert_close(joined(parts, (None, axis), (None, None)), values.mean(0), **CLOSE)


@pytest.mark.parametrize("wrong", [1, NO_AXIS, None])
def test_of_one_example_others_know_better(wrong: Axis) -> None:
    values = random(20, 4, 5)
    parts = values[:, :3], values[:, 3:]
    torch.testing.assert_close(joined(parts, (0, wrong), (3, 1)), values.mean(0), **CLOSE)
    torch.testing.assert_close(joined(parts[::-1], (wrong, 0), (1, 3)), values[:, [3, 0, 1, 2]].mean(0), **CLOSE)


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 5, 1)])
def test_a_batch_of_one_example_that_has_lost_its_axis_has_it_back(shape: tuple[int, ...]) -> None:
    values = random(20, *shape)
    parts = values[:, :3], values[:, 3]
    torch.testing.assert_close(joined(parts, (0, None), (3, 1)), values.mean(0), **CLOSE)
    torch.testing.assert_close(joined(parts[::-1], (None, 0), (1, 3)), values[:, [3, 0, 1, 2]].mean(0), **CLOSE)
    one, other, whole = (
        gathered(each, axis, n, "regression", quantiles=True)
        for each, axis, n in ((parts[0], 0, 3), (parts[1], None, 1), (values, 0, 4))
    )
    found = Result.concatenate([one, other])
    for q in (0.25, [0.25, 0.5]):
        torch.testing.assert_close(found.quantile(q), whole.quantile(q), **CLOSE)
        torch.testing.assert_close(found.error.quantile(q), whole.error.quantile(q), **CLOSE)
    for name, value in found.numpy().items():
        torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(whole.numpy()[name]), **CLOSE)


def test_batches_of_single_numbers_are_one_axis() -> None:
    values = random(20, 4)
    parts = [values[:, i] for i in range(4)]
    torch.testing.assert_close(joined(parts, (None,) * 4, (1,) * 4), values.mean(0), **CLOSE)
    pair = Result.concatenate([gathered(part, None, 1) for part in parts[:2]])
    three = Result.concatenate([pair, gathered(parts[2], None, 1)])
    torch.testing.assert_close(Result.concatenate([three, gathered(parts[3], None, 1)]).mean, values.mean(0), **CLOSE)


def test_a_tensor_without_examples_is_the_same_in_all_batches() -> None:
    prior = torch.tensor([0.2, 0.8, torch.nan])
    passes = prior.expand(20, 3)
    assert joined([passes] * 3, (NO_AXIS,) * 3, (3, 3, 2)).shape == (3,)
    assert joined([passes] * 3, (None, NO_AXIS, None), (3, 3, None)).shape == (3,)
    assert joined([passes] * 2, (None, None), (2, 2)).shape == (3,)  # no axis is as long as the batch
    with pytest.raises(ArgumentError, match="results of which output is the same, as it has no axis of examples"):
        joined([passes, passes + 1], (NO_AXIS, NO_AXIS), (3, 3))


def test_shapes_tell_where_nothing_else_does() -> None:
    values = random(20, 6, 7, 5)
    for axis, sizes in ((0, (4, 2)), (1, (4, 3)), (2, (2, 3))):
        parts = values.split(list(sizes), axis + 1)
        torch.testing.assert_close(joined(parts, (None, None), sizes), values.mean(0), **CLOSE)


@pytest.mark.parametrize(
    ("shapes", "axes", "sizes", "message"),
    [
        (
            [(4, 4), (4, 4)],
            (None, None),
            (4, 4),
            r"output lie, got \{'batch 0': \(4, 4\)\}.*axis 0 or axis 1",
        ),
        (
            [(4, 3), (2, 3)],
            (None, None),
            (None, None),
            r"output lie.*It is not known.*list\(predict\.each",
        ),
        ([(4, 3), (4, 3)], (0, 1), (4, 3), "axis 0 or axis 1"),
        ([(4, 3), (4, 3)], (0, NO_AXIS), (4, 2), "none or axis 0"),
        ([(5, 4), (1, 3)], (1, 1), (4, 3), r"along axis 1 alone, got \{'batch 0': \(5, 4\), 'batch 1': \(1, 3\)\}"),
        ([(4, 3), (4, 3), (3,)], (0, 0, None), (4, 4, 2), r"'batch 2': \(3,\).*let the model name the axis"),
        ([(4, 3), (4,)], (0, None), (4, 1), r"'batch 1': \(4,\).*let the model name the axis"),
        ([(4, 3, 2), (3,)], (0, None), (4, 1), r"along axis 0 alone"),
        ([(4, 3), (4, 3)], (1, 1), (3, 3), None),
    ],
    ids=range(9),
)
def test_what_cannot_be_told_is_an_error_by_name(
    shapes: Sequence[tuple[int, ...]], axes: Sequence[Axis], sizes: Sequence[int | None], message: str | None
) -> None:
    parts = [random(20, *shape, seed=seed) for seed, shape in enumerate(shapes)]
    if message is None:
        assert joined(parts, axes, sizes).shape == (4, 6)
        return
    with pytest.raises(ArgumentError, match=message):
        joined(parts, axes, sizes)


def test_equal_results_of_as_many_examples_may_be_one_or_several() -> None:
    ones = torch.ones(20, 3)
    with pytest.raises(ArgumentError, match="axis 0 or none"):
        joined([ones, ones], (None, None), (3, 3))
    with pytest.raises(ArgumentError, match="It is not known"):
        joined([ones, ones], (None, None), (None, None))
    assert joined([ones, ones[:, :2]], (None, None), (3, 2)).shape == (5,)


def test_a_tensor_in_some_batches_alone() -> None:
    results = []
    for loss in (torch.zeros(()), None):
        running = Running(None)
        running.add({"loss": loss, "logits": torch.zeros(2, 3)}, [None, torch.zeros(5, 2, 3)])
        results.append(running.result([None, 0], 2))
    with pytest.raises(ArgumentError, match=r"results of which output\.loss is a tensor in all or in none"):
        Result.concatenate(results)


@pytest.mark.parametrize("class_dim", [0, 1, 2])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_statistics_of_examples_have_their_axis_without_that_of_classes(axis: int, class_dim: int) -> None:
    values = random(20, 4, 4, 4)
    results = [classified(part, axis, class_dim=class_dim) for part in values.split([3, 1], axis + 1)]
    if axis == class_dim:
        with pytest.raises(ArgumentError, match=r"another axis than that of classes.*`class_dim` says"):
            Result.concatenate(results)
        return
    whole, found = classified(values, axis, class_dim=class_dim).numpy(), Result.concatenate(results).numpy()
    for name, value in found.items():
        torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(whole[name]), **CLOSE)


def test_a_distribution_is_joined_along_the_axis_of_its_parameters() -> None:
    values = random(20, 4, 4)
    results = []
    for part in (values[:, :, :2], values[:, :, 2:], values):
        running = Running("regression", keep_samples=True)
        running.add(Normal(part[0], part[0].exp()), [part, part.exp()])
        results.append(running.result([1, 1], part.shape[2]))
    found = Result.concatenate(results[:2])
    torch.testing.assert_close(found.mean, results[2].mean, **CLOSE)
    torch.testing.assert_close(found.aleatoric, results[2].aleatoric, **CLOSE)
    torch.testing.assert_close(found.samples.scale, results[2].samples.scale, **CLOSE)


def test_an_axis_that_is_asked_for_is_that_of_every_tensor() -> None:
    values = random(20, 4, 4)
    results = [gathered(values, 0, 4), gathered(values, 0, 4)]
    assert Result.concatenate(results, 1).mean.shape == (4, 8)
    assert Result.concatenate(results, -1).mean.shape == (4, 8)
    assert Result.concatenate(results).mean.shape == (8, 4)
    lost = [gathered(values, None, 4), gathered(values[:, :, 0], None, 1)]
    assert Result.concatenate(lost, 1).mean.shape == (4, 5)
