"""Wrong arguments of metrics: the message names the argument, the rule and what was given."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from dropkit import uncertainty
from dropkit.errors import ArgumentError, ArgumentTypeError, MissingDependencyError

PROBABILITIES, LABELS = torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([0, 1])
ONE = torch.ones(2)
RESULT = uncertainty.mc(torch.nn.Dropout(0.5), 4, seed=0)(torch.ones(2, 2))
GOOD: dict[str, dict[str, Any]] = {
    "brier_decomposition": {"probabilities": PROBABILITIES, "labels": LABELS, "bins": 3},
    "brier_score": {"probabilities": PROBABILITIES, "labels": LABELS},
    "calibration_error": {"probabilities": PROBABILITIES, "labels": LABELS, "estimator": "equal_mass", "bins": 3},
    "detection": {"inside": ONE, "outside": ONE},
    "gaussian_negative_log_likelihood": {"mean": ONE, "std": ONE, "targets": ONE},
    "interval_scores": {"lower": ONE, "upper": ONE, "targets": ONE, "level": 0.5},
    "mixture_negative_log_likelihood": {"samples": torch.ones(3, 2), "targets": ONE, "precision": 1.0},
    "negative_log_likelihood": {"probabilities": PROBABILITIES, "labels": LABELS},
    "risk_coverage": {"uncertainty": ONE, "losses": ONE},
}
NUMBERS = {
    "no numbers": ("yes", ArgumentTypeError, "a dense tensor or an array of real numbers, got 'yes' (str)"),
    "none": (None, ArgumentTypeError, "a dense tensor or an array of real numbers, got None"),
    "objects": ([object(), object()], ArgumentTypeError, "a dense tensor or an array of real numbers"),
    "needing gradients": ([torch.ones(1).requires_grad_()] * 2, ArgumentTypeError, "Join tensors by torch.cat or"),
    "ragged tensors": ([torch.ones(1), torch.ones(2)], ArgumentTypeError, "Join tensors by torch.cat or torch.stack"),
    "ragged": ([[1.0], [1.0, 2.0]], ArgumentTypeError, "a dense tensor or an array of real numbers"),
    "complex": (torch.ones(2, dtype=torch.cfloat), ArgumentTypeError, "a dense tensor or an array of real numbers"),
    "complex array": (np.ones(2, complex), ArgumentTypeError, "a dense tensor or an array of real numbers"),
    "sparse": (torch.ones(2).to_sparse(), ArgumentTypeError, "a dense tensor or an array of real numbers"),
    "empty": (torch.ones(0), ArgumentError, "must be"),
    "NaN": (torch.tensor([math.nan, 1.0]), ArgumentError, "finite numbers, got nan"),
    "infinite": (np.array([1.0, -math.inf]), ArgumentError, "finite numbers, got -inf"),
    "masked": (np.ma.masked_greater([1.0, 2.0], 1), ArgumentError, "without masked numbers"),
    "shape": (torch.ones(3, 1, 1, 1), ArgumentError, "1, 1, 1)"),
    "result": (RESULT, ArgumentTypeError, "got 'a Result' (str). Give "),
}
TABLES: dict[str, tuple[Any, type[Exception], str]] = {
    "one axis": (
        torch.ones(2),
        ArgumentError,
        "(rows, classes), got (2,) (tuple). The probability of the second of two classes is one column: p.unsq",
    ),
    "one logit": (torch.tensor([[0.5], [2.0]]), ArgumentError, "in [0, 1], got 2.0 (float). Take the sigmoid of a"),
    "four axes": (torch.full((2, 2, 2, 2), 0.5), ArgumentError, "(rows, classes), got (2, 2, 2, 2) (tuple)."),
    "passes": (torch.full((4, 2, 2), 0.5), ArgumentError, "got (4, 2, 2) (tuple). Average the passes first"),
    "no rows": (torch.ones(0, 2), ArgumentError, "one row or more, got (0, 2)"),
    "logits": (torch.tensor([[2.0, -1.0], [0.0, 1.0]]), ArgumentError, "in [0, 1], got -1.0 (float). Take the softmax"),
    "above 1": (torch.tensor([[2.0, 0.0], [0.0, 1.0]]), ArgumentError, "in [0, 1], got 2.0 (float). Take the softmax"),
    "sums": (torch.tensor([[0.5, 0.25], [0.0, 1.0]]), ArgumentError, "classes, got 0.75 (float). Take the softmax of"),
    "rounded sums": (torch.tensor([[0.5, 0.5], [0.25, 0.752]]), ArgumentError, "(float). Divide them by their sum."),
}
CLASSES: dict[str, tuple[Any, type[Exception], str]] = {
    "floats": (
        torch.tensor([0.0, 1.0]),
        ArgumentTypeError,
        "got dtype('float64') (Float64DType). Give labels.long(), or",
    ),
    "fractions": (
        torch.tensor([0.5, 1.0]),
        ArgumentTypeError,
        "of an integer type, got dtype('float64') (Float64DType). Give each row",
    ),
    "column": (
        torch.tensor([[0], [1]]),
        ArgumentError,
        "got (2, 1) (tuple). Take the last axis off: labels.squeeze(-1).",
    ),
    "true of no second class": (np.array([[True], [False]]), ArgumentError, "of shape (2,), one a row"),
    "negative": (torch.tensor([0, -1]), ArgumentError, "classes from 0 to 1, got -1 (int)"),
    "too many": (torch.tensor([2, 0]), ArgumentError, "classes from 0 to 1, got 2 (int)"),
    "fewer rows": (torch.tensor([0]), ArgumentError, "of shape (2,), one a row of `probabilities`, got (1,)"),
    "one-hot": (torch.eye(2).long(), ArgumentError, "got (2, 2) (tuple). Of one-hot labels give labels.argmax(1)."),
    "one-hot floats": (torch.eye(2), ArgumentError, "got (2, 2) (tuple). Of one-hot labels give labels.argmax(1)."),
    "smoothed": (np.array([[0.9, 0.1], [0.1, 0.9]]), ArgumentError, "Of one-hot labels give labels.argmax(1)."),
    "one-hot truths": (np.eye(2, dtype=bool), ArgumentError, "Of one-hot labels give labels.argmax(1)."),
    "several classes": (torch.ones(2, 2).long(), ArgumentError, "one a row of `probabilities`, got (2, 2) (tuple)."),
}
OTHERS = [
    ("calibration_error", "estimator", "ece", ArgumentError, "one of 'equal_width', 'equal_mass', 'debiased'"),
    ("calibration_error", "estimator", None, ArgumentError, "one of 'equal_width'"),
    ("calibration_error", "bins", 0, ArgumentError, "an integer in [1, 10**6], got 0"),
    ("calibration_error", "bins", 1.5, ArgumentTypeError, "an integer in [1, 10**6], got 1.5"),
    ("brier_decomposition", "bins", True, ArgumentTypeError, "an integer in [1, 10**6], got True"),
    ("detection", "inside", torch.ones(2, 1), ArgumentError, "(2, 1) (tuple). Take the last axis off: inside.squ"),
    ("gaussian_negative_log_likelihood", "std", torch.tensor([1.0, 0.0]), ArgumentError, "above 0, got 0.0"),
    ("gaussian_negative_log_likelihood", "std", -1.0, ArgumentError, "a number in (0, inf), got -1.0"),
    ("interval_scores", "level", 1.0, ArgumentError, "a number in (0, 1), got 1.0"),
    ("interval_scores", "upper", torch.tensor([1.0, 0.5]), ArgumentError, "nowhere below `lower`, got 0.5"),
    ("mixture_negative_log_likelihood", "precision", 0.0, ArgumentError, "a number in (0, inf), got 0.0"),
    ("mixture_negative_log_likelihood", "precision", None, ArgumentError, "a number in (0, inf), got None"),
    ("mixture_negative_log_likelihood", "samples", torch.ones(2), ArgumentError, "of shape (passes, rows) or"),
    *(
        (call, name, torch.ones(2, 1), ArgumentError, f"(2, 1) (tuple). Take the last axis off: {name}.squeeze(-1).")
        for call, name in (
            ("gaussian_negative_log_likelihood", "std"),
            ("gaussian_negative_log_likelihood", "targets"),
            ("interval_scores", "targets"),
            ("mixture_negative_log_likelihood", "targets"),
            ("risk_coverage", "losses"),
        )
    ),
    ("mixture_negative_log_likelihood", "samples", RESULT, ArgumentTypeError, "Give result.samples of mc(..., keep_"),
    ("risk_coverage", "uncertainty", RESULT, ArgumentTypeError, "Give one of its statistics, such as result.mean or "),
    ("mixture_negative_log_likelihood", "samples", torch.ones(3, 2, 1), ArgumentError, "off: samples.squeeze(-1)."),
    ("interval_scores", "lower", torch.ones(2, 1), ArgumentError, "Take the last axis off: lower.squeeze(-1)."),
    ("risk_coverage", "losses", torch.tensor([0.0, -1.0]), ArgumentError, "0 or more, got -1.0"),
]  # fmt: skip


def cases() -> list[Any]:
    found = []
    for call, good in GOOD.items():
        for name, value in good.items():
            kinds = {"probabilities": NUMBERS | TABLES, "labels": CLASSES}.get(name, NUMBERS)
            if isinstance(value, torch.Tensor):
                found += [pytest.param(call, name, *case, id=f"{call}-{name}-{kind}") for kind, case in kinds.items()]
    return found + [pytest.param(*case, id=f"{case[0]}-{case[1]}-{number}") for number, case in enumerate(OTHERS)]


@pytest.mark.parametrize(("call", "name", "value", "error", "rule"), cases())
def test_a_wrong_argument_is_named_with_the_rule(
    call: str, name: str, value: Any, error: type[Exception], rule: str
) -> None:
    compared = {"lower": "upper", "mean": "std", "samples": "targets", "uncertainty": "losses"}  # with its shape
    other = compared.get(name, name)
    with pytest.raises(error) as caught:
        getattr(uncertainty, call)(**GOOD[call] | {name: value})
    assert type(caught.value) is error
    message = str(caught.value)
    assert message.startswith((f"{call}: `{name}` must be ", f"{call}: `{other}` must be "))
    assert rule in message


@pytest.mark.parametrize(
    ("call", "name", "value"),
    [
        ("gaussian_negative_log_likelihood", "std", 2.0),
        ("interval_scores", "level", 0.5),
        ("mixture_negative_log_likelihood", "precision", 4.0),
    ],
)
def test_a_tensor_without_axes_is_a_number(call: str, name: str, value: float) -> None:
    found, expected = (getattr(uncertainty, call)(**GOOD[call] | {name: each}) for each in (torch.tensor(value), value))
    assert found == expected


def test_one_column_is_the_probability_of_the_second_class() -> None:
    """As `mc` gives it of a single logit."""
    second, labels = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None], torch.arange(20) % 3 == 0
    whole = torch.cat([1 - second, second], -1)
    for call in ("brier_score", "negative_log_likelihood", "calibration_error", "brier_decomposition"):
        assert getattr(uncertainty, call)(second, labels) == getattr(uncertainty, call)(whole, labels.long())
    assert uncertainty.negative_log_likelihood([[1.0], [0.0], [0.5]], [1, 0, 0]) == pytest.approx(math.log(2) / 3)
    assert uncertainty.negative_log_likelihood([[1 + 1e-7]], [True]) == 0


def test_targets_that_are_hopelessly_far_off_have_no_density() -> None:
    """NumPy's warnings of overflow would be errors here."""
    assert uncertainty.gaussian_negative_log_likelihood([1e200, 0.0], 1.0, [0.0, 0.0]) == math.inf
    assert uncertainty.mixture_negative_log_likelihood([[1e200], [1e200]], [0.0], precision=1.0) == math.inf


def test_a_masked_array_that_masks_nothing_is_an_array() -> None:
    given = np.ma.masked_greater([1.0, 2.0], 3)
    assert uncertainty.risk_coverage(given, [0, 1]).area == uncertainty.risk_coverage([1.0, 2.0], [0, 1]).area


def test_half_precision_is_taken_and_what_it_became_in_another_type_is_told_to_be_divided() -> None:
    half = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)).softmax(1).bfloat16()
    labels = torch.zeros(200, dtype=torch.long)
    uncertainty.brier_score(half, labels)
    with pytest.raises(ArgumentError, match=r"Divide them by their sum\.$"):
        uncertainty.brier_score(half.float(), labels)
    whole = half.float() / half.float().sum(1, keepdim=True)
    assert uncertainty.brier_score(whole, labels) == pytest.approx(uncertainty.brier_score(half, labels), abs=0.01)


@pytest.mark.parametrize("call", GOOD)
def test_what_is_called_good_here_is_taken(call: str) -> None:
    getattr(uncertainty, call)(**GOOD[call])


@pytest.mark.parametrize(
    ("package", "call", "options"),
    [("scipy", "calibration_error", {"estimator": "smooth"}), ("sklearn", "detection", {})],
)
def test_a_missing_package_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, package: str, call: str, options: dict[str, Any]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"the package '{package}'.*dropkit\[uncertainty\]"):
        getattr(uncertainty, call)(**GOOD[call] | options)
