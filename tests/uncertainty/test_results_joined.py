"""Results of batches are joined to that of one large batch."""

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.uncertainty import Result
from dropkit.uncertainty.results.axes import NO_AXIS
from dropkit.uncertainty.results.running import Running
from tests.uncertainty.gathered import CLOSE, VALUES, Output, classified, of_output, random


def test_batches_are_joined_as_if_they_had_been_one():
    values = random(20, 10, 3)
    parts = [classified(values[:, :4], keep_samples=True), classified(values[:, 4:], keep_samples=True)]
    whole, joined = classified(values, keep_samples=True).numpy(), Result.concatenate(parts)
    assert joined.n == 20
    assert joined.facts == {"seed": 3, "engine": "loop", "sites": ["a", "b"], "reached": None}
    assert sorted(joined.numpy()) == sorted(whole)
    for name, found in joined.numpy().items():
        np.testing.assert_allclose(found, whole[name], rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(("dim", "class_dim"), [(1, 0), (-1, 1), (-2, -1), (0, 1), (-3, -1)])
def test_batches_are_joined_along_any_axis_but_that_of_classes(dim, class_dim):
    values = random(20, 3, 4, 5)
    axis = dim % 3 + 1
    one, other = values.narrow(axis, 0, 1), values.narrow(axis, 1, values.shape[axis] - 1)
    joined = Result.concatenate([classified(one, class_dim=class_dim), classified(other, class_dim=class_dim)], dim)
    whole = classified(values, class_dim=class_dim).numpy()
    for name, found in joined.numpy().items():
        np.testing.assert_allclose(found, whole[name], rtol=1e-12, atol=1e-12, err_msg=name)


def test_outputs_with_several_tensors_are_joined_part_by_part():
    joined = Result.concatenate([of_output(keep_samples=True), of_output(keep_samples=True)])
    assert type(joined.mean) is Output
    assert joined.mean.logits.shape == (12, 3)
    assert joined.mean.hidden[1].shape == (12,)
    assert joined.samples.logits.shape == (20, 12, 3)
    assert joined.mean.ids.tolist() == [*range(6), *range(6)]
    assert joined.mean.label == "first"
    losses = random(20)
    running = Running(None, keep_samples=True)
    running.add({"loss": losses[0], "logits": VALUES[0]}, [losses, VALUES])
    joined = Result.concatenate([running.result([NO_AXIS, 0], 6)] * 3)
    torch.testing.assert_close(joined.mean["loss"], losses.mean().expand(3), **CLOSE)
    assert joined.samples["loss"].shape == (20, 3)


def test_quantiles_are_joined_too():
    values = random(70, 10, 3)
    results = []
    for part in (values, values[:60, :4], values[:, 4:]):
        running = Running("regression", quantiles=True)
        running.add(part[0], [part])
        results.append(running.result([0], part.shape[1]))
    joined = Result.concatenate([Result.concatenate(results[1:2]), results[2]])
    assert joined.n == 60
    for q in (0.3, [0.3, 0.5]):
        torch.testing.assert_close(joined.quantile(q)[..., 4:, :], results[0].quantile(q)[..., 4:, :], **CLOSE)
        torch.testing.assert_close(joined.quantile(q)[..., :4, :], results[1].quantile(q), **CLOSE)
        assert joined.quantile_error(q).shape == joined.error.quantile(q).shape == joined.quantile(q).shape
    assert joined.interval()[0].shape == (10, 3)
    single = Running("regression", quantiles=True)
    single.add(values[0, 0, 0], [values[:, 0, 0]])
    assert Result.concatenate([single.result()] * 2).quantile([0.1, 0.5, 0.9]).shape == (3, 2)


def test_batches_with_other_numbers_of_passes():
    joined = Result.concatenate([classified(VALUES), classified(VALUES[:7])])
    assert joined.n == 7
    torch.testing.assert_close(joined.error.mean[:6], classified(VALUES).error.mean, **CLOSE)
    with pytest.raises(ArgumentError, match=r"as many passes.*use a fixed n"):
        Result.concatenate([classified(VALUES, keep_samples=True), classified(VALUES[:7], keep_samples=True)])


def test_facts_of_batches_that_differ():
    running = Running(None)
    running.add(VALUES[0], [VALUES])
    one = running.result([0], 6, engine="prefix", reached=True, seed=1, sites=["a", "b"])
    other = running.result([0], 6, engine="loop", reached=False, seed=1, sites=["c", "b"])
    joined = Result.concatenate([one, other, one])
    expected = {"engine": ("prefix", "loop"), "reached": False, "seed": 1, "sites": ["a", "b", "c"]}
    assert joined.facts == expected
    assert one.facts["sites"] == ["a", "b"]
    told = "Result of 20 passes, engine prefix and loop, error not reached, seed 1, 3 sites"
    assert repr(joined).splitlines()[0] == told


PACKED = Running(None)
PACKED.add(pack_sequence([random(3, 2)]), [random(20, 3, 2)])


@pytest.mark.parametrize(
    ("results", "dim", "message"),
    [
        ([], 0, "one result or more"),
        ([classified(VALUES), of_output()], 0, "results of one task"),
        ([classified(VALUES), classified(VALUES, class_dim=0)], 0, "results of one axis of classes"),
        ([classified(VALUES), classified(VALUES, keep_samples=True)], 0, "results of one statistics"),
        ([classified(VALUES)], 1, "another axis than that of classes"),
        ([classified(VALUES)], 2, r"`dim` must be an integer in \[-2, 1\]"),
        ([classified(VALUES), classified(VALUES[..., :2])], 0, "output differs in length along axis 0 alone"),
        ([PACKED.result()], 0, "without packed sequences"),
    ],
    ids=range(8),
)
def test_results_that_cannot_be_joined(results, dim, message):
    with pytest.raises(ArgumentError, match=message):
        Result.concatenate(results, dim)


@pytest.mark.parametrize("results", [classified(VALUES), [1], [None], "text", 3, None], ids=range(6))
def test_what_is_no_sequence_of_results(results):
    with pytest.raises(ArgumentTypeError, match="`results` must be a sequence of results"):
        Result.concatenate(results)
    with pytest.raises(ArgumentTypeError, match="`dim`"):
        Result.concatenate([of_output()], "0")
