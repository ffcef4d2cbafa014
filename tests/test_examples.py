"""The examples run as a user runs them, print what the docs show, and what they claim holds."""

import importlib.util
import itertools
import math
import re
import subprocess
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from dropkit.functional import dropout
from dropkit.numpy import TwoLayerNetwork
from dropkit.random import threshold
from dropkit.study import embedded
from dropkit.uncertainty import mc

ROOT = Path(__file__).parents[1]
NAMES = ("active_learning.md", "worked_example.md", "workers.md")
PAGES = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in NAMES)
SHOWN = dict(re.findall(r"```console\n\$ python (\S+)\n(.*?)```", PAGES, flags=re.DOTALL))
LONG = (pytest.mark.slow, pytest.mark.exhaustive)
SLOW = {
    "examples/active_learning.py": LONG,
    "examples/many_workers.py": LONG,
    "examples/churn_numpy.py": (pytest.mark.slow,),
}
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("examples/*.py"))
RATES = (0.1, 0.3, 0.5, 0.7)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


by_hand, churn, questions = load("dropout_by_hand"), load("churn_numpy"), load("dropout_questions")
active = load("active_learning")


@cache
def printed(script: str) -> str:
    command = [sys.executable, "-W", "error", script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("script", [pytest.param(each, marks=SLOW.get(each, ())) for each in SCRIPTS])
def test_every_example_prints_what_the_docs_show(script: str) -> None:
    assert printed(script) == SHOWN[script]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_active_learning_runs() -> None:
    command = [sys.executable, "-W", "error", "examples/active_learning.py", "--quick"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shown = [line for line in found.splitlines() if line.startswith(("entropy", "BALD"))]
    assert len(shown) == 2
    assert all(re.fullmatch(r"\w+ +[+-]0\.\d{3} \[.*\] +[+-]0\.\d{3} \[.*\]", line) for line in shown)


# The sweep on the churn table


def sweeps() -> list[dict[float, tuple[float, float, int]]]:
    """The printed tables: training loss, validation loss and the number of better splits, by rate."""
    blocks = printed("examples/churn_numpy.py").split("\n\n")
    line = re.compile(r" (0\.\d) +(0\.\d+) +(0\.\d+) +[+-]\d\.\d+ +(?:-|(\d+) of 20 splits)$", flags=re.MULTILINE)
    return [{float(p): (float(a), float(b), int(c or 0)) for p, a, b, c in line.findall(block)} for block in blocks]


@pytest.mark.slow
def test_what_the_docs_say_about_the_sweep_is_what_it_prints() -> None:
    many, few, stopped = sweeps()
    for table in (many, few, stopped):
        assert list(table) == [0.0, 0.3, 0.5, 0.7]
        assert sorted(table.values()) == list(table.values()), "the training loss rises with the rate"
    assert abs(many[0.0][1] - many[0.0][0]) < 0.001
    assert np.all(np.diff([validation for _, validation, _ in many.values()]) > 0)
    assert [better for _, _, better in many.values()] == [0, 0, 0, 0]
    share = embedded.churn()["churn"].count("Yes") / 7043
    guess = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert (round(few[0.0][1], 2), round(guess, 2)) == (0.56, 0.58)
    gaps = [validation - training for training, validation, _ in few.values()]
    assert np.all(np.diff(gaps) < 0)
    assert all(few[p][1] < few[0.0][1] for p in (0.3, 0.5, 0.7))
    assert sorted(few[p][2] for p in (0.3, 0.5, 0.7)) == [14, 15, 18]
    assert round(stopped[0.0][1], 2) == 0.51
    assert stopped[0.0][1] < min(validation for _, validation, _ in few.values())
    assert all(8 <= stopped[p][2] <= 12 for p in (0.3, 0.5, 0.7))
    assert round(many[0.0][1], 2) == 0.45


def test_the_docs_and_the_example_say_the_same_about_the_sweep() -> None:
    _, _, *paragraphs = churn.__doc__.strip().split("\n\n")
    assert len(paragraphs) == 2
    for paragraph in paragraphs:
        assert " ".join(paragraph.split()) in " ".join(PAGES.split())


def test_no_validation_row_is_a_training_row() -> None:
    for seed in range(churn.SPLITS):
        training, validation = churn.split(7043, 5000, seed)
        assert (len(training), len(validation)) == (5000, 2043)
        assert sorted([*training, *validation]) == list(range(7043))
        few, same = churn.split(7043, 50, seed)
        assert len(few) == 50
        assert np.array_equal(same, validation)


def test_the_customers_are_the_embedded_ones_and_the_network_has_17_parameters() -> None:
    x, y = churn.customers()
    assert x.shape == (7043, 2)
    assert y.sum() == 1869
    assert x[:2].tolist() == [[1.0, 29.85], [34.0, 56.95]]
    assert sum(value.size for value in TwoLayerNetwork(inputs=2, hidden=4).parameters.values()) == 17


# Dropout by hand


@pytest.mark.parametrize("p", [Fraction(1, 2), Fraction(3, 10), Fraction(7, 10)])
def test_the_mean_over_all_masks_is_exact_and_the_variance_its_closed_form(p: Fraction) -> None:
    a = [Fraction("0.36"), Fraction("0.13"), Fraction("0.42"), Fraction("0.25")]
    assert by_hand.exact_moments(a, p) == (a, [value**2 * p / (1 - p) for value in a])


def test_float64_agrees_with_the_fractions() -> None:
    mean, variance = by_hand.enumerated_moments(by_hand.A)
    np.testing.assert_allclose(mean, by_hand.A, rtol=0, atol=1e-12)
    np.testing.assert_allclose(variance, by_hand.A**2, rtol=0, atol=1e-12)


def test_the_weights_that_get_no_update_are_those_around_dropped_units() -> None:
    gradients = by_hand.weight_gradients(np.array([1.0, -2.0]), 0.5)
    np.testing.assert_allclose(gradients["w1"], [[0.6, 0, 0.4, 0], [-1.2, 0, -0.8, 0]], rtol=1e-15)
    np.testing.assert_allclose(gradients["b1"], [0.6, 0, 0.4, 0], rtol=1e-15)
    np.testing.assert_allclose(gradients["w2"], [0.36, 0, 0.42, 0], rtol=1e-15)


def test_the_standard_error_is_that_of_many_repetitions() -> None:
    """400 repetitions give the spread of a mean to 3.5 %; five times that is allowed for each of four units."""
    means, error = zip(*(by_hand.sampled_mean(by_hand.A, 0.3, 100, key) for key in range(400)), strict=True)
    ratio = np.std(means, axis=0) / error[0]
    assert np.abs(ratio - 1).max() < 5 / math.sqrt(2 * 400)
    assert np.abs(np.mean(means, axis=0) - by_hand.A).max() < 5 * error[0].max() / math.sqrt(400)


def test_a_mean_of_passes_is_recognised_and_what_the_tutorial_prints_is_none() -> None:
    for unit, kept in itertools.product(by_hand.A, range(0, 1001, 7)):
        assert by_hand.attainable(round(2 * unit * kept / 1000, 4), unit, 1000)
    assert [by_hand.attainable(*pair, 1000) for pair in zip(by_hand.PRINTED, by_hand.A, strict=True)] == [False] * 4
    assert [by_hand.attainable(*pair, 1000) for pair in zip(by_hand.RERUN, by_hand.A, strict=True)] == [True] * 4


# Questions


@pytest.mark.parametrize("p", RATES)
def test_the_full_network_is_the_average_of_its_subnetworks_where_the_docs_say_so(p: float) -> None:
    x = np.random.default_rng(3).normal(size=4)
    realised = threshold(p) / 2**32
    found = {name: questions.subnetworks(network, x, realised) for name, network in questions.networks().items()}
    close = {"rtol": 0, "atol": 1e-12}
    linear, layer = found["two linear layers"], found["one softmax layer"]
    np.testing.assert_allclose(linear.arithmetic, linear.full, **close)
    np.testing.assert_allclose(layer.geometric, layer.full, **close)
    assert np.abs(layer.arithmetic - layer.full).max() > 1e-3
    for name in ("linear, ReLU, linear", "linear, ReLU, softmax"):
        assert np.abs(found[name].arithmetic - found[name].full).max() > 1e-3
    assert np.abs(found["linear, ReLU, softmax"].geometric - found["linear, ReLU, softmax"].full).max() > 1e-3


@pytest.mark.parametrize("share", [0.1, 0.5, 0.6, 0.9])
def test_dropout_on_a_sigmoid_output_teaches_the_halves_that_theory_gives(share: float) -> None:
    half_logit = 1 / (1 + math.sqrt((1 - share) / share))
    assert questions.learned_prediction(share, "after") == pytest.approx(share / 2, abs=2e-5)
    assert questions.learned_prediction(share, "before") == pytest.approx(half_logit, abs=2e-5)


def test_pytorch_refuses_the_doubled_output_and_clipping_gives_it_no_gradient() -> None:
    doubled = torch.tensor([1.6], requires_grad=True)
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        torch.nn.functional.binary_cross_entropy(doubled, torch.ones(1))
    torch.nn.functional.binary_cross_entropy(doubled.clamp(1e-7, 1 - 1e-7), torch.ones(1)).backward()
    assert doubled.grad is not None
    assert doubled.grad.item() == 0


@pytest.mark.parametrize(("p", "ratio"), [(0.1, 1.16), (0.2, 1.37), (0.3, 1.63), (0.5, 2.47)])
def test_the_variance_ratio_of_a_batchnorm_is_the_closed_form(p: float, ratio: float) -> None:
    """200,000 rows of 8 units give a ratio to about 0.2 %; 1 % is allowed."""
    first, linear_between, before = questions.ORDERS
    assert round(questions.variance_ratio(p), 2) == ratio
    assert questions.measured_ratio(first, p) == pytest.approx(questions.variance_ratio(p), rel=0.01)
    assert questions.measured_ratio(linear_between, p) == pytest.approx(questions.variance_ratio(p), rel=0.01)
    assert questions.measured_ratio(before, p) == 1


def test_a_batchnorm_of_pytorch_behind_dropout_shrinks_its_outputs_at_evaluation() -> None:
    """The standard deviation of 8 times 100,000 outputs is known to 0.1 %; 1 % is allowed."""
    layer = torch.nn.BatchNorm1d(8, momentum=None)
    x = torch.randn(100_000, 8, generator=torch.Generator().manual_seed(0)).relu()
    assert layer(dropout(x, 0.5, key=0)).std().item() == pytest.approx(1, rel=0.01)
    assert layer.eval()(x).std().item() == pytest.approx(questions.variance_ratio(0.5) ** -0.5, rel=0.01)


@pytest.mark.parametrize("p", RATES)
def test_both_forms_of_scaling_have_the_same_ratio_and_differ_by_a_factor(p: float) -> None:
    """E[a**2] is 1/2 for the ReLU of a standard normal; 1,600,000 numbers give variances to 0.3 %, 2 % is allowed."""
    training, evaluation = questions.spreads(p).values()
    assert training.training / training.evaluation == pytest.approx(
        evaluation.training / evaluation.evaluation, rel=1e-8
    )
    assert training.training - training.evaluation == pytest.approx(0.5 * p / (1 - p), rel=0.02)
    assert evaluation.training - evaluation.evaluation == pytest.approx(0.5 * p * (1 - p), rel=0.02)


def test_the_original_form_of_the_example_is_that_of_the_library() -> None:
    a = torch.from_numpy(questions.relu(np.random.default_rng(0).normal(size=8 * questions.ROWS)))
    _, original = questions.spreads(0.3).values()
    trained, evaluated = (dropout(a, 0.3, training, key=0, scale_at="eval") for training in (True, False))
    assert trained.var(correction=0).item() == pytest.approx(original.training, rel=1e-9)
    assert evaluated.var(correction=0).item() == pytest.approx(original.evaluation, rel=1e-9)


# Active learning


def test_each_way_to_choose_takes_other_images_of_the_pool_and_the_best_by_its_score() -> None:
    images, labels = active.digits()
    assert images.shape == (5000, 1, 14, 14)
    assert (images.min(), images.max()) == (0, 1)
    model, pool = active.trained(images[::250], labels[::250], seed=0), images[1::20]
    result = mc(model, active.PASSES, task="classification", seed=3)(pool)
    scores = {"entropy": result.predictive_entropy, "BALD": result.mutual_information}
    chosen = {way: choose(model, pool, 3).tolist() for way, choose in active.WAYS.items()}
    assert all(len(set(found)) == active.MORE for found in chosen.values())
    assert len({tuple(sorted(found)) for found in chosen.values()}) == 4
    for way, score in scores.items():
        assert chosen[way] == score.sort(descending=True, stable=True).indices[: active.MORE].tolist()


def test_learning_begins_with_the_same_images_whatever_the_way_and_grows_by_those_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images and labels are their own numbers, and models learn nothing but which of them they have seen."""
    seen: dict[str, list[set[int]]] = {"first": [], "last": []}

    def trained(images: torch.Tensor, labels: torch.Tensor, seed: int) -> torch.nn.Module:
        assert torch.equal(images[:, 0], labels)
        seen[way].append(set(labels.tolist()))
        return torch.nn.Identity()

    monkeypatch.setattr(active, "trained", trained)
    places = torch.arange(active.MORE)
    ways = {"first": lambda *_: places, "last": lambda _, pool, __: len(pool) - 1 - places}
    monkeypatch.setattr(active, "WAYS", ways)
    numbers = torch.arange(5000)
    for way in ways:
        active.learned(way, numbers[:, None], numbers, 5, rounds=3)
        assert [len(each) for each in seen[way]] == [active.FIRST + active.MORE * round_ for round_ in range(4)]
        assert all(before < after for before, after in itertools.pairwise(seen[way]))
    assert seen["first"][0] == seen["last"][0]
    assert not seen["first"][-1] & seen["last"][-1] - seen["first"][0]
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(5))
    assert not seen["last"][-1] & set(order[: active.TEST].tolist())


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    first, second = torch.tensor([0.5, 0.7, 0.9]), torch.tensor([0.4, 0.7, 0.6])
    half = 4.302653 * np.std([0.1, 0.0, 0.3], ddof=1) / math.sqrt(3)
    assert active.difference(first, second) == f"+0.133 [{0.4 / 3 - half:+.3f}, {0.4 / 3 + half:+.3f}]"


def test_what_the_docs_say_about_active_learning_is_what_they_show() -> None:
    shown = SHOWN["examples/active_learning.py"]
    cells = re.findall(r"^ +(\d+) +(0\.\d+) +0\.\d+ +(0\.\d+) +(0\.\d+)$", shown, re.M)
    means = [[float(cell) for cell in row] for row in cells]
    assert [labels for labels, *_ in means] == [20, 50, 80, 110, 140, 170, 200]
    assert [bald > chance for _, chance, bald, _ in means] == [False] * 4 + [True] * 3
    assert all(batch_bald >= chance for _, chance, _, batch_bald in means)
    assert active.FUNCTIONS == 5 * active.PASSES
    intervals = [(float(low), float(high)) for low, high in re.findall(r"\[([+-]\S+), ([+-]\S+)\]", shown)]
    assert len(intervals) == 6
    assert all(low < 0 < high for low, high in intervals)
    assert intervals[2] == (-0.016, 0.037)
