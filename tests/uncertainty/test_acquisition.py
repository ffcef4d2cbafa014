"""Scores for active learning against their formulas, exact enumeration of joint labels, and sampling without bias."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dropkit import uncertainty
from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.uncertainty import (
    acquisition,
    bald,
    batch_bald,
    entropy,
    least_confidence,
    margin,
    select,
    variation_ratio,
)


def pool(passes: int, examples: int, classes: int, seed: int = 0, sharpness: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(passes, examples, classes, generator=generator, dtype=torch.float64)
    return logits.softmax(-1)


def information(probabilities: Tensor, batch: tuple[int, ...]) -> float:
    """The mutual information of a batch's labels and the pass, by enumeration of all labels."""
    passes, _, classes = probabilities.shape
    joint = own = 0.0
    for labels in itertools.product(range(classes), repeat=len(batch)):
        each = torch.stack([probabilities[:, i, y] for i, y in zip(batch, labels, strict=True)]).prod(0)
        mean = each.mean().item()
        joint -= mean * math.log(mean) if mean else 0.0
        own -= sum(p * math.log(p) for p in each.tolist() if p) / passes
    return joint - own


def greedy(probabilities: Tensor, size: int) -> tuple[list[int], list[float]]:
    batch: list[int] = []
    found = []
    for _ in range(size):
        rest = [i for i in range(probabilities.shape[1]) if i not in batch]
        best = max(rest, key=lambda i: information(probabilities, (*batch, i)))
        batch.append(best)
        found.append(information(probabilities, tuple(batch)))
    return batch, found


# One example


def test_bald_is_the_information_of_one_label() -> None:
    probabilities = pool(6, 5, 3)
    expected = [information(probabilities, (i,)) for i in range(5)]
    torch.testing.assert_close(bald(probabilities), torch.tensor(expected, dtype=torch.float64))


def test_bald_is_entropy_where_passes_are_certain_and_nothing_where_they_agree() -> None:
    certain = torch.eye(3)[[0, 1, 2, 1]][:, None].repeat(1, 2, 1)
    torch.testing.assert_close(bald(certain), entropy(certain))
    assert entropy(certain)[0].item() == pytest.approx(1.5 * math.log(2))
    assert bald(torch.full((4, 2, 3), 1 / 3)).tolist() == [0, 0]


@pytest.mark.parametrize("passes", [5, 10])
def test_the_correction_takes_away_most_of_the_bias_of_few_passes(passes: int) -> None:
    """Dirichlet(2) over ten classes; the information of 20,000 passes is off by their bias of 0.00001 at most."""
    rng = np.random.default_rng(0)
    many = bald(rng.dirichlet(np.full(10, 2.0), size=(20_000, 1))).item()
    few = rng.dirichlet(np.full(10, 2.0), size=(passes, 20_000))
    plain, corrected = bald(few).mean().item() - many, bald(few, corrected=True).mean().item() - many
    assert many == pytest.approx(0.204, abs=0.002)
    assert plain < -0.15 / passes
    assert abs(corrected) < abs(plain) / 5


def test_the_correction_is_half_the_variance_over_the_mean() -> None:
    """Two passes of 0.6 and 0.4: of each class the variance is 0.02 and the mean 0.5, which makes 0.01 for each."""
    probabilities = torch.tensor([[[0.6, 0.4]], [[0.4, 0.6]]], dtype=torch.float64)
    added = bald(probabilities, corrected=True) - bald(probabilities)
    assert added.item() == pytest.approx(0.02)


def test_with_the_correction_there_is_no_more_information_than_entropy() -> None:
    certain = torch.eye(3)[[0, 1, 2, 1]][:, None]
    assert bald(certain, corrected=True).item() == entropy(certain).item() == pytest.approx(1.5 * math.log(2))


def test_the_scores_of_single_examples_are_those_of_their_formulas() -> None:
    probabilities = pool(7, 4, 3, sharpness=0.7)
    mean = probabilities.mean(0)
    for i in range(4):
        ordered = sorted(mean[i].tolist())
        votes = probabilities[:, i].argmax(-1).tolist()
        assert entropy(probabilities)[i].item() == pytest.approx(-sum(p * math.log(p) for p in ordered))
        assert least_confidence(probabilities)[i].item() == pytest.approx(1 - ordered[-1])
        assert margin(probabilities)[i].item() == pytest.approx(1 - ordered[-1] + ordered[-2])
        most = max(votes.count(k) for k in range(3))
        assert variation_ratio(probabilities)[i].item() == pytest.approx(1 - most / 7)


def test_select_takes_the_highest_and_of_equal_ones_the_first() -> None:
    assert select(torch.tensor([1.0, 3.0, 2.0, 3.0]), 3).tolist() == [1, 3, 2]
    assert select(np.zeros(100), 100).tolist() == list(range(100))


# Batches


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("passes", "examples", "classes", "size"), [(4, 6, 2, 4), (8, 5, 3, 3), (3, 4, 4, 4)])
def test_batches_are_those_of_enumerated_joint_labels(
    passes: int, examples: int, classes: int, size: int, seed: int
) -> None:
    probabilities = pool(passes, examples, classes, seed)
    found = batch_bald(probabilities, size)
    batch, expected = greedy(probabilities, size)
    assert found.indices.tolist() == batch
    torch.testing.assert_close(found.information, torch.tensor(expected, dtype=torch.float64))


def test_passes_that_rule_labels_out_are_enumerated_too() -> None:
    probabilities = pool(4, 4, 3, sharpness=4.0)
    probabilities = torch.where(probabilities < 0.2, 0.0, probabilities)
    probabilities /= probabilities.sum(-1, keepdim=True)
    assert (probabilities == 0).sum() > 10
    found = batch_bald(probabilities, 3)
    batch, expected = greedy(probabilities, 3)
    assert found.indices.tolist() == batch
    torch.testing.assert_close(found.information, torch.tensor(expected, dtype=torch.float64))


def test_the_first_of_a_batch_is_the_best_alone_with_the_information_of_one() -> None:
    probabilities = pool(20, 50, 5)
    found = batch_bald(probabilities, 1)
    assert found.indices.tolist() == select(bald(probabilities), 1).tolist()
    assert found.information[0].item() == pytest.approx(bald(probabilities).max().item())


def test_duplicates_are_taken_by_bald_and_not_in_a_batch() -> None:
    """Passes are so sure of each label that a second copy of an example would add nothing."""
    once = pool(30, 4, 3, sharpness=30.0)
    twice = torch.cat([once, once], dim=1)
    assert {i % 4 for i in select(bald(twice), 4).tolist()} != set(range(4))
    found = batch_bald(twice, 4)
    assert {i % 4 for i in found.indices.tolist()} == set(range(4))
    assert (found.information.diff() > 0.1).all()


def test_passes_of_shared_masks_tell_copies_of_an_example_and_those_of_their_own_do_not() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 3))
    inputs = torch.randn(1, 4).expand(2, 4) * 20
    information = {}
    for masks in ("shared", "per_example"):
        passes = uncertainty.mc(model, 200, task="classification", masks=masks, seed=0, keep_samples=True)
        found = batch_bald(passes(inputs).samples, 2).information
        information[masks] = found[1].item() / found[0].item()
    assert 0.99 < information["shared"] < 1.5
    assert information["per_example"] > information["shared"] + 0.2


def test_the_information_of_a_batch_grows_to_the_logarithm_of_the_number_of_passes() -> None:
    found = batch_bald(pool(8, 40, 3, sharpness=20.0), 12, configurations=500)
    assert found.information[-1].item() == pytest.approx(math.log(8), rel=0.01)
    assert found.information[-1].item() <= math.log(8) + 1e-9
    assert len(set(found.indices.tolist())) == 12


def test_sampled_configurations_give_the_exact_information_on_average() -> None:
    """Batches of all examples, in whatever order: 200 seeds give the mean to a few of its standard errors."""
    probabilities = pool(6, 4, 3, sharpness=1.0)
    exact = information(probabilities, (0, 1, 2, 3))
    sampled = torch.stack([batch_bald(probabilities, 4, configurations=5, seed=s).information[-1] for s in range(200)])
    assert sampled.std() > 0
    assert abs(sampled.mean().item() - exact) < 4 * sampled.std().item() / math.sqrt(200)


def test_more_configurations_come_closer_and_enough_of_them_are_exact() -> None:
    probabilities = pool(10, 6, 4)
    exact = batch_bald(probabilities, 4, configurations=4**3)
    assert torch.equal(exact.information, batch_bald(probabilities, 4, configurations=4**4, seed=9).information)
    spread = {
        count: torch.stack([batch_bald(probabilities, 4, configurations=count, seed=s).information for s in range(20)])
        for count in (4, 32)
    }
    errors = {count: (found[:, -1] - exact.information[-1]).square().mean().sqrt() for count, found in spread.items()}
    assert errors[32] < errors[4] / 2
    assert errors[32] < 0.05


def test_labels_are_drawn_before_what_passes_say_of_them_is_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 configurations with 400 labels each, no more than 300 rows of 20 passes are ever made."""
    found = []
    original = acquisition._extended

    def extended(*given: Any) -> tuple[Tensor, Tensor]:
        with Largest() as largest:
            result = original(*given)
        found.append(largest.numbers)
        return result

    monkeypatch.setattr(acquisition, "_extended", extended)
    batch_bald(pool(20, 5, 400), 3, configurations=300)
    assert max(found) == 300 * 400


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is computed."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_one_seed_gives_one_batch_and_leaves_random_generators_alone() -> None:
    probabilities, state = pool(10, 20, 4), torch.get_rng_state()
    first, second = (batch_bald(probabilities, 8, configurations=50, seed=3) for _ in range(2))
    assert torch.equal(first.indices, second.indices)
    assert torch.equal(first.information, second.information)
    assert torch.equal(torch.get_rng_state(), state)


# Arguments


def test_arrays_lists_and_tensors_of_lower_precision_are_taken() -> None:
    probabilities = pool(4, 3, 2)
    for given in (probabilities.numpy(), probabilities.tolist(), probabilities.float().requires_grad_()):
        torch.testing.assert_close(bald(given), bald(probabilities), atol=1e-6, rtol=0)
    torch.testing.assert_close(bald(probabilities.bfloat16()), bald(probabilities), atol=0.02, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_coarse_types_round_off_sums_is_divided_out(dtype: torch.dtype) -> None:
    coarse = pool(30, 40, 10, sharpness=1.5).to(dtype)
    exact = coarse.double() / coarse.double().sum(-1, keepdim=True)
    assert (coarse.double().sum(-1) != 1).any()
    for score in (bald, entropy, least_confidence, margin, variation_ratio):
        torch.testing.assert_close(score(coarse), score(exact), atol=1e-12, rtol=0)
    found = batch_bald(coarse, 4, configurations=10**4)
    assert found.indices.tolist() == batch_bald(exact, 4, configurations=10**4).indices.tolist()
    assert found.information[0].item() == pytest.approx(bald(coarse).max().item(), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_passes_that_agree_hold_no_information(dtype: torch.dtype) -> None:
    agreeing = pool(1, 20, 10).to(dtype).expand(25, -1, -1)
    found = batch_bald(agreeing, 5).information
    assert (found >= 0).all()
    assert found.max().item() < 1e-12


def test_certain_predictions_have_no_negative_entropy() -> None:
    assert entropy([[[1 + 5e-7, 0.0]]]).item() == 0


class Elsewhere(Tensor):
    """A tensor that says that it lies where there is no double precision."""

    @property  # type: ignore[override]
    def device(self) -> torch.device:
        return torch.device("mps")


@pytest.mark.parametrize("call", [entropy, bald, variation_ratio, least_confidence, margin])
def test_where_a_device_has_no_double_precision_scores_are_on_the_cpu(call: Any) -> None:
    given = pool(4, 3, 2)
    found = call(given.as_subclass(Elsewhere))
    assert type(found) is Tensor
    assert torch.equal(found, call(given))


def test_samples_of_one_logit_have_the_scores_of_the_result() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    result = uncertainty.mc(model, 20, task="classification", seed=0, keep_samples=True)(pool(1, 6, 4)[0].float())
    second = result.samples
    assert second.shape == (20, 6, 1)
    torch.testing.assert_close(entropy(second), result.predictive_entropy.double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(bald(second, corrected=True), result.mutual_information.double(), atol=1e-6, rtol=0)
    both = torch.cat([1 - second, second], -1).double()
    torch.testing.assert_close(batch_bald(second, 3).information, batch_bald(both, 3).information, atol=1e-6, rtol=0)


def test_the_remedy_for_several_places_gives_the_scores_of_the_result() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout2d(0.5), torch.nn.Conv2d(3, 4, 1))
    mc = uncertainty.mc(model, 20, task="classification", class_dim=1, seed=0, keep_samples=True)
    result = mc(pool(2, 3, 25).float().view(2, 3, 5, 5))
    places = result.samples.movedim(2, -1).flatten(1, -2)
    expected = result.mutual_information.double().flatten()
    torch.testing.assert_close(bald(places, corrected=True), expected, atol=1e-6, rtol=0)


def test_the_remedy_for_means_gives_the_scores_of_the_mean() -> None:
    probabilities = pool(7, 4, 3)
    for score in (entropy, least_confidence, margin):
        torch.testing.assert_close(score(probabilities.mean(0)[None]), score(probabilities))


SCORES = ("bald", "batch_bald", "entropy", "least_confidence", "margin", "variation_ratio")
WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "text": ("yes", ArgumentTypeError, "a dense tensor or an array of real numbers, got 'yes' (str)"),
    "none": (None, ArgumentTypeError, "a dense tensor or an array of real numbers, got None"),
    "result": (
        uncertainty.mc(torch.nn.Dropout(0.5), 4, seed=0)(torch.ones(2, 2)),
        ArgumentTypeError,
        "(passes, examples, classes), got 'a Result' (str). Give result.samples of mc(..., keep_samples=True).",
    ),
    "NaN": (torch.full((2, 2, 2), math.nan), ArgumentError, "finite numbers, got nan"),
    "empty": (torch.ones(0, 2, 2), ArgumentError, "one row or more, got (0, 2, 2)"),
    "one pass": (torch.full((2, 2), 0.5), ArgumentError, "(passes, examples, classes), got (2, 2)"),
    "one logit": (torch.full((2, 2, 1), 3.0), ArgumentError, "in [0, 1], got 3.0 (float). Take the sigmoid of a"),
    "segmentation": (
        torch.ones(2, 2, 3, 4, 4),
        ArgumentError,
        "(2, 2, 3, 4, 4) (tuple). Make an example of each",
    ),
    "means": (torch.ones(2, 2), ArgumentError, "A mean over them is one pass: mean[None]."),
    "one axis": (torch.ones(2), ArgumentError, "(passes, examples, classes), got (2,) (tuple)."),
    "rounded sums": (torch.full((2, 2, 2), 0.5002), ArgumentError, "(float). Divide them by their sum."),
    "logits": (torch.full((2, 2, 2), -1.0), ArgumentError, "in [0, 1], got -1.0 (float). Take the softmax of logits."),
    "sums": (
        torch.full((2, 2, 2), 0.25),
        ArgumentError,
        "sum to 1 over the classes, got 0.5 (float). Take the softmax",
    ),
}


@pytest.mark.parametrize("call", SCORES)
@pytest.mark.parametrize("case", WRONG)
def test_wrong_probabilities_are_named_with_the_rule(call: str, case: str) -> None:
    value, error, rule = WRONG[case]
    with pytest.raises(error) as caught:
        getattr(uncertainty, call)(value, *([1] if call == "batch_bald" else []))
    assert str(caught.value).startswith(f"{call}: `probabilities` must be ")
    assert rule in str(caught.value)


@pytest.mark.parametrize(
    ("call", "options", "error", "message"),
    [
        ("bald", {"corrected": 1}, ArgumentTypeError, "`corrected` must be a bool, got 1 (int)."),
        ("batch_bald", {"size": 0}, ArgumentError, "`size` must be an integer in [1, 3], got 0 (int). There are 3"),
        ("batch_bald", {"size": 4}, ArgumentError, "`size` must be an integer in [1, 3], got 4 (int). There are 3"),
        ("batch_bald", {"size": 1.0}, ArgumentTypeError, "`size` must be an integer in [1, 3], got 1.0 (float)."),
        (
            "batch_bald",
            {"size": 1, "configurations": 0},
            ArgumentError,
            "`configurations` must be an integer in [1, 10",
        ),
        ("batch_bald", {"size": 1, "seed": -1}, ArgumentError, "`seed` must be an integer in [0, 2**64), got -1"),
        (
            "batch_bald",
            {"size": 1, "seed": None},
            ArgumentTypeError,
            "`seed` must be an integer in [0, 2**64), got None",
        ),
    ],
)
def test_other_wrong_arguments_are_named_with_the_rule(
    call: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        getattr(uncertainty, call)(pool(2, 3, 2), **options)
    assert str(caught.value).startswith(f"{call}: {message}")


def test_a_correction_from_one_pass_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`probabilities` must be of two passes or more where `corrected`"):
        bald(pool(1, 3, 2), corrected=True)


@pytest.mark.parametrize(
    ("scores", "size", "error", "message"),
    [
        (torch.ones(2, 2), 1, ArgumentError, "`scores` must be of one axis, got (2, 2)"),
        (torch.ones(2, 1), 1, ArgumentError, "`scores` must be of one axis, got (2, 1) (tuple). Take the last"),
        (torch.tensor([math.nan]), 1, ArgumentError, "`scores` must be finite numbers, got nan"),
        (torch.tensor([-math.inf, 0.0]), 1, ArgumentError, "`scores` must be finite numbers, got -inf (float). Leave"),
        (torch.ones(2), 3, ArgumentError, "`size` must be an integer in [1, 2], got 3 (int). There are 2 examples."),
        (torch.ones(2), "1", ArgumentTypeError, "`size` must be an integer in [1, 2], got '1' (str)."),
    ],
)
def test_a_wrong_selection_is_named_with_the_rule(
    scores: Tensor, size: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        select(scores, size)
    assert str(caught.value).startswith(f"select: {message}")
