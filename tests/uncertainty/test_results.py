"""Running results have the output's own type, bounded memory, and a result that can be moved and printed."""

import gc
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, distributions
from torch.nn.utils.rnn import pack_sequence

from dropkit.errors import DropkitError, UnavailableError, UnsupportedError
from dropkit.uncertainty import Result
from dropkit.uncertainty.results.running import Running
from tests.uncertainty.gathered import (
    CLOSE,
    HIDDEN,
    IDS,
    OF_CLASSES,
    OUTPUT,
    VALUES,
    Output,
    classified,
    of_output,
    random,
)


def test_statistics_have_the_type_of_the_output():
    result = of_output(keep_samples=True)
    for statistic in (result.mean, result.std, result.samples, result.error.mean, result.error.std):
        assert type(statistic) is Output
        assert statistic.label == "first"
    torch.testing.assert_close(result.mean.logits, VALUES.mean(0), **CLOSE)
    torch.testing.assert_close(result.std.hidden[0], HIDDEN.std(0), **CLOSE)
    torch.testing.assert_close(result.error.mean.logits, VALUES.std(0) / math.sqrt(20), **CLOSE)
    assert torch.equal(result.mean.ids, IDS)
    assert torch.equal(result.std.ids, IDS)
    assert torch.equal(result.samples.logits, VALUES)
    assert torch.equal(result.samples.ids, IDS.expand(20, 6))


def test_numbers_that_are_the_same_in_all_passes_have_no_spread():
    result = of_output(keep_samples=True)
    assert torch.equal(result.mean.hidden[1], HIDDEN[0, :, 0])
    assert result.std.hidden[1].count_nonzero() == 0
    assert result.error.std.hidden[1].count_nonzero() == 0
    assert torch.equal(result.samples.hidden[1], HIDDEN[0, :, 0].expand(20, 6))


def test_a_leaf_that_begins_to_vary_counts_the_passes_before():
    running = Running(None)
    running.add(OUTPUT, [VALUES[:5], None, None, None, None])
    running.add(OUTPUT, [None, HIDDEN[5:8], None, None, None], 3)
    result = running.result()
    values = torch.cat([VALUES[:5], VALUES[:1].expand(3, -1, -1)])
    torch.testing.assert_close(result.std.logits, values.std(0), **CLOSE)
    hidden = torch.cat([HIDDEN[:1].expand(5, -1, -1), HIDDEN[5:8]])
    torch.testing.assert_close(result.std.hidden[0], hidden.std(0), **CLOSE)
    torch.testing.assert_close(result.mean.hidden[0], hidden.mean(0), **CLOSE)


@pytest.mark.parametrize("task", [None, "classification", "regression"])
def test_an_output_that_is_the_same_in_all_passes(task):
    running = Running(task, keep_samples=True)
    running.add(VALUES[0], [None], 4)
    running.add(VALUES[0], [None], 6)
    result = running.result()
    assert result.n == 10
    assert result.std.abs().max() < 1e-15
    assert result.samples.shape == (10, 6, 3)
    assert running.error() < 1e-15
    expected = VALUES[0].softmax(-1) if task == "classification" else VALUES[0]
    torch.testing.assert_close(result.mean, expected, **CLOSE)
    with pytest.raises(ValueError, match="how many passes"):
        running.add(VALUES[0], [None])


def test_outputs_of_hugging_face():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    values = VALUES.float()
    running = Running("classification")
    running.add(outputs.SequenceClassifierOutput(logits=values[0], hidden_states=(HIDDEN[0],)), [values, HIDDEN])
    result = running.result()
    assert type(result.mean) is type(result.std) is outputs.SequenceClassifierOutput
    torch.testing.assert_close(result.mean.logits, values.double().softmax(-1).mean(0).float())
    torch.testing.assert_close(result.mean.hidden_states[0], HIDDEN.mean(0))
    assert result.mean.loss is None
    assert type(result.error.mean) is outputs.SequenceClassifierOutput


def test_packed_sequences_and_distributions():
    packed = pack_sequence([random(3, 2), random(1, 2, seed=1)], enforce_sorted=False)
    data, locations = random(20, 4, 2), random(20, 5)
    running = Running(None, keep_samples=True)
    running.add((packed, distributions.Normal(locations[0], 1.0)), [data, locations, None])
    result = running.result()
    assert type(result.mean[0]) is type(packed)
    torch.testing.assert_close(result.std[0].data, data.std(0), **CLOSE)
    assert type(result.mean[1]) is distributions.Normal
    torch.testing.assert_close(result.mean[1].loc, locations.mean(0), **CLOSE)
    torch.testing.assert_close(result.std[1].loc, locations.std(0), **CLOSE)
    assert result.std[1].scale.count_nonzero() == 0
    assert result.samples[1].batch_shape == (20, 5)


def test_a_classification_has_probabilities_in_place_of_logits():
    result = of_output("classification", keep_samples=True)
    torch.testing.assert_close(result.samples.logits, VALUES.softmax(-1), **CLOSE)
    torch.testing.assert_close(result.mean.logits, result.samples.logits.mean(0), **CLOSE)
    torch.testing.assert_close(result.std.logits, result.samples.logits.std(0), **CLOSE)
    torch.testing.assert_close(result.mean.hidden[0], HIDDEN.mean(0), **CLOSE)
    assert not hasattr(result.error, "prediction")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_statistics_have_the_precision_of_the_output_but_single_at_least(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    result = classified(VALUES.to(dtype), keep_samples=True)
    arrays = result.numpy()
    assert {name: array.dtype for name, array in arrays.items() if name != "prediction"} == dict.fromkeys(
        set(arrays) - {"prediction"}, np.dtype(str(expected).removeprefix("torch."))
    )
    assert result.samples.dtype == expected


def test_one_pass_has_a_mean_and_nothing_that_takes_two():
    result = classified(VALUES[:1])
    torch.testing.assert_close(result.mean, VALUES[0].softmax(-1), **CLOSE)
    for name in ("predictive_entropy", "expected_entropy", "mutual_information_uncorrected", "variation_ratio"):
        assert getattr(result, name).isfinite().all()
    assert result.std.isnan().all()
    assert result.mutual_information.isnan().all()
    assert all(np.isnan(error).all() for name, error in result.numpy().items() if name.startswith("error."))
    two = classified(VALUES[:2])
    assert two.error.mean.isfinite().all()
    assert two.std.isfinite().all()
    assert two.error.std.isnan().all()
    assert "nan" in repr(result)


def test_a_batch_without_examples():
    for task in (None, "classification", "regression"):
        running = Running(task, keep_samples=True)
        running.add(VALUES[0, :0], [VALUES[:, :0]])
        result = running.result()
        assert result.mean.shape == (0, 3)
        assert result.error.std.shape == (0, 3)
        assert result.samples.shape == (20, 0, 3)
        assert running.error() == running.scale() == 0
        assert "20 passes" in repr(result)
        if task == "classification":
            assert result.mutual_information.shape == result.prediction.shape == (0,)
        if task == "regression":
            assert result.quantile([0.5]).shape == (1, 0, 3)


@pytest.mark.parametrize("task", [None, "classification"])
def test_missing_numbers_stay_where_they_are(task):
    values = VALUES.clone()
    values[4, 2] = math.nan
    running = Running(task)
    running.add(values[0], [values])
    result = running.result()
    assert result.mean.isnan().all(-1).tolist() == [False, False, True, False, False, False]
    assert not result.mean[[0, 1, 3, 4, 5]].isnan().any()
    assert math.isnan(running.error())


def test_the_error_for_stopping_is_the_largest_of_the_main_output():
    running = Running(None)
    running.add(OUTPUT, [VALUES, 100 * HIDDEN, None, None, None])
    assert running.error() == pytest.approx(float(VALUES.std(0).max()) / math.sqrt(20), rel=1e-12)
    assert running.scale() == pytest.approx(float(VALUES.mean(0).square().mean().sqrt()), rel=1e-12)
    running = Running(None)
    running.add((VALUES[0], HIDDEN[0], IDS), [VALUES, 100 * HIDDEN, None])
    assert running.error() == pytest.approx(100 * float(HIDDEN.std(0).max()) / math.sqrt(20), rel=1e-12)
    both = torch.cat([VALUES.mean(0).flatten(), 100 * HIDDEN.mean(0).flatten()])
    assert running.scale() == pytest.approx(float(both.square().mean().sqrt()), rel=1e-12)
    running = Running("classification")
    running.add(VALUES[0], [VALUES[:1]])
    assert math.isnan(running.error())


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ([VALUES[:, :5]], r"output has shape \(5, 3\) in one pass and \(6, 3\) in another.*outputs of one shape"),
        ([VALUES, None], "2 parts in one pass and 1 in another"),
        ([VALUES[0]], r"shape \(3,\) in one pass"),
    ],
)
def test_passes_that_do_not_fit_are_refused_before_anything_is_taken_in(leaves, message):
    running = Running(None)
    running.add(VALUES[0], [VALUES])
    before = running.result().numpy()
    with pytest.raises(UnsupportedError, match=message):
        running.add(VALUES[0], leaves)
    assert running.n == 20
    assert all((found == before[name]).all() for name, found in running.result().numpy().items())


def test_leaves_that_differ_in_number_of_passes_or_kind():
    running = Running(None)
    with pytest.raises(UnsupportedError, match=r"output\.hidden\[0\] has shape"):
        running.add(OUTPUT, [VALUES, HIDDEN[:7], None, None, None])
    with pytest.raises(UnsupportedError, match=r"output\.label is a tensor in one pass and a str in another"):
        running.add(OUTPUT, [VALUES, None, None, None, VALUES])


def test_passes_in_inference_mode_and_with_gradients():
    with torch.inference_mode():
        inside = VALUES * 1
    running = Running(None, keep_samples=True)
    with torch.inference_mode():
        running.add(inside[0], [inside[:9]])
    running.add(inside[0], [VALUES[9:].clone().requires_grad_()])
    result = running.result()
    torch.testing.assert_close(result.mean, VALUES.mean(0), **CLOSE)
    assert not result.samples.requires_grad
    assert not result.mean.is_inference()
    assert not result.mean.requires_grad


def held(running: Running) -> int:
    """Bytes of all tensors that an object leads to."""
    seen, waiting, storages = set(), [running], {}
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type):
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            storages[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
        elif isinstance(each, list | tuple | dict) or type(each).__module__.startswith("dropkit"):
            waiting += gc.get_referents(each)
    return sum(storages.values())


@pytest.mark.parametrize("task", [None, "classification", "regression"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_does_not_grow_with_the_number_of_passes(task, dtype):
    values = random(1000, 40, 10).to(dtype)
    sizes = {}
    for keep_samples in (False, True):
        running = Running(task, keep_samples=keep_samples, quantiles=task == "regression")
        for chunk in values.split(25):
            running.add(chunk[0].clone(), [chunk.clone()])
            sizes[keep_samples, running.n] = held(running)
    assert sizes[False, 1000] == sizes[False, 75]
    assert sizes[False, 1000] <= 1.5 * sizes[False, 50], sizes
    assert sizes[True, 1000] > 5 * sizes[True, 50], "samples were not seen"


@pytest.mark.parametrize("task", [None, "classification", "regression"])
@pytest.mark.parametrize("rows", [40, 20_000])
def test_a_result_holds_no_more_than_its_numbers(task, rows):
    values = random(9, rows, 10)
    running = Running(task, keep_samples=task == "regression", quantiles=task == "regression")
    running.add((values[0], values[0]) if task is None else values[0], [values] * (2 if task is None else 1))
    result = running.result()
    tensors = [leaf for tree in (result.mean, result.std) for leaf in (tree if task is None else [tree])]
    tensors += [] if task is None else [result.prediction, result.error.std]
    tensors += [getattr(result, name) for name in OF_CLASSES] if task == "classification" else []
    assert all(each.untyped_storage().nbytes() == each.numel() * each.itemsize for each in tensors)
    if task == "regression":
        torch.testing.assert_close(result.quantile(0.3), values.quantile(0.3, 0), **CLOSE)
        assert result._quantiles.held.data_ptr() == result.samples.data_ptr(), "passes are held twice"


@pytest.mark.parametrize("task", [None, "classification", "regression"])
def test_results_are_moved_copied_and_pickled(task):
    values = random(70, 6, 3)
    running = Running(task, quantiles=task == "regression")
    running.add((values[0], IDS), [values, None])
    result = running.result(seed=1)
    expected = result.numpy()
    for same in (pickle.loads(pickle.dumps(result)), result.to("cpu")):  # noqa: S301
        assert {name: found.tolist() for name, found in same.numpy().items()} == {
            name: found.tolist() for name, found in expected.items()
        }
        assert same.facts == {"seed": 1}
        assert repr(same) == repr(result)
        if task == "regression":
            assert torch.equal(same.quantile(0.3), result.quantile(0.3))
    moved = result.to("meta")
    assert moved.mean[0].device.type == moved.error.std[0].device.type == "meta"


def test_arrays_are_named_as_the_output_is():
    names = {"logits", "hidden[0]", "hidden[1]", "ids"}
    expected = {f"{key}.{name}" for key in ("mean", "std", "error.mean", "error.std") for name in names}
    assert set(of_output().numpy()) == expected


def test_what_a_result_does_not_have_says_how_to_get_it():
    result = of_output()
    with pytest.raises(UnavailableError, match="`keep_samples=True`"):
        _ = result.samples
    for name in OF_CLASSES:
        assert not hasattr(result, name)
        with pytest.raises(AttributeError, match=f"{name} needs task='classification'; this result has task=None"):
            getattr(result, name)
    with pytest.raises(DropkitError, match=r"Result\.prediction needs task='classification' or 'regression'"):
        _ = result.prediction
    with pytest.raises(UnavailableError, match=r"Errors\.variance needs task='regression'"):
        _ = result.error.variance
    assert not hasattr(classified(VALUES).error, "samples")


def test_a_result_is_printed_as_a_table():
    lines = repr(classified(VALUES, keep_samples=True)).splitlines()
    assert lines[0] == "Result of 20 passes, classification, seed 3, engine loop, 2 sites, samples kept"
    assert lines[1].split() == ["statistic", "shape", "average", "Monte", "Carlo", "error"]
    assert [line.split()[0] for line in lines[2:]] == [
        "mean",
        "std",
        "predictive_entropy",
        "expected_entropy",
        "mutual_information",
        "mutual_information_uncorrected",
        "variation_ratio",
    ]
    assert lines[2].split()[1:4] == ["(6,", "3)", "0.3333"]
    expected = float(VALUES.softmax(-1).var(0).mean() / 20) ** 0.5
    assert float(lines[2].split()[-1]) == pytest.approx(expected, rel=1e-3)
    many = Running(None)
    many.add([VALUES[0]] * 30, [VALUES] * 30)
    assert repr(many.result()).splitlines()[-1] == "and 44 more"
    assert len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize("task", [None, "classification", "regression"])
def test_everything_is_computed_where_the_outputs_are(task):
    """Whatever is made without a device would be on another one, where there are no numbers."""
    values = random(70, 6, 3)
    with torch.device("meta"):
        running = Running(task, quantiles=task == "regression")
        for chunk in values.split(9):
            running.add((chunk[0], IDS), [chunk, None])
        result = running.result([0, 0], 6)
        joined = Result.concatenate([result, result])
        assert math.isfinite(running.error() + running.scale())
        assert joined.to("cpu").mean[0].device.type == "cpu"
        assert "statistic" in repr(joined)
        if task == "regression":
            found = [joined.quantile([0.1, 0.5]), joined.quantile_error(0.3), joined.error.quantile(0.3)]
            found += [*joined.interval(), *joined.gaussian_interval()]
            assert {each.device.type for each in found} == {"cpu"}
    assert {name for name, array in joined.numpy().items() if array.dtype == np.float64} >= {"mean[0]", "std[0]"}
