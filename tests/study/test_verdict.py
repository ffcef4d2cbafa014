"""The verdict and the cautions on made-up numbers: every branch, in its own words."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dropkit.study import METHODS, Budget
from dropkit.study.cautions import cautions, edge_of_grid
from dropkit.study.plan import Plan, make_plan
from dropkit.study.records import CONFIRMATION, SELECTION
from dropkit.study.summary import Summary
from dropkit.study.verdict import judge

NOISE = np.random.default_rng(0).normal(size=(3, 20))
NOISE -= NOISE[:, 2:10].mean(1, keepdims=True)  # exact means over the confirmation seeds


def losses(mean: float, spread: float, row: int, best: float | None = None) -> Callable[[float, int], float]:
    """Losses around a mean; strengths other than the best are worse."""
    return lambda strength, seed: mean + spread * NOISE[row, seed] + (0 if strength == best or best is None else 0.05)


def study(dropout: float, decay: float, spread: float) -> dict[str, Callable[[float, int], float]]:
    return {
        "none": losses(0.3, 0, 0),
        "dropout": losses(dropout, spread, 1, 0.5),
        "weight_decay": losses(decay, spread, 2, 1.0),
    }


def test_one_method_helps(made_up: Callable[..., Summary]) -> None:
    verdict = judge(made_up(study(0.25, 0.29, 0.002)))
    assert (verdict.kind, verdict.recommended, verdict.leader) == ("helps", ("dropout",), "dropout")
    assert verdict.sentence == (
        "Use dropout at p = 0.5, with early stopping: it lowers the validation loss of early stopping alone from 0.300 "
        "to 0.250, 17 % lower (strong evidence: p < 0.001 after correction, 8 fresh seeds)."
    )


def test_another_method_helps_and_dropout_is_not_forgotten(made_up: Callable[..., Summary]) -> None:
    less = judge(made_up(study(0.28, 0.25, 0.002)))
    assert less.recommended == ("weight_decay",)
    assert less.sentence.endswith(" Dropout at p = 0.5 helps less (6.7 % lower).")
    none = judge(made_up(study(0.3001, 0.25, 0.002)))
    assert none.sentence.endswith(" Dropout at p = 0.5 makes no difference (less than 0.1 % higher).")
    worse = judge(made_up(study(0.33, 0.25, 0.002)))
    assert worse.sentence.endswith(" Dropout at p = 0.5 hurts (10 % higher).")
    unclear = made_up({**study(0.29, 0.2, 0.002), "dropout": losses(0.29, 0.03, 1, 0.5)})
    assert " Whether dropout at p = 0.5 helps cannot be told (3.3 % lower, where about " in judge(unclear).sentence


def test_a_tie_is_named_and_ordered_as_the_plan(made_up: Callable[..., Summary]) -> None:
    first, second = judge(made_up(study(0.250, 0.251, 0.01))), judge(made_up(study(0.251, 0.250, 0.01)))
    for verdict in (first, second):
        assert (verdict.kind, verdict.recommended) == ("tie", ("dropout", "weight_decay"))
        assert verdict.sentence.startswith("Use dropout at p = 0.5 or weight decay at λ = 1, with early stopping: both")
        assert verdict.sentence.endswith("and between them it is a tie.")
    assert (first.leader, second.leader) == ("dropout", "weight_decay")


def test_nothing_beats_early_stopping(made_up: Callable[..., Summary]) -> None:
    verdict = judge(made_up(study(0.299, 0.301, 0.002)))
    assert (verdict.kind, verdict.recommended, verdict.leader) == ("nothing", (), "dropout")
    assert verdict.sentence.startswith(
        "Nothing beats early stopping alone here: the best of the rest, dropout at p = 0.5"
    )
    assert "or more would have been seen (8 fresh seeds)." in verdict.sentence


def test_nothing_beats_no_regularisation_where_stopping_early_wins_nothing(made_up: Callable[..., Summary]) -> None:
    verdict = judge(made_up(study(0.299, 0.301, 0.002), last=0.001))
    assert verdict.sentence.startswith("Nothing beats no regularisation here:")


def test_methods_that_hurt_are_no_mystery(made_up: Callable[..., Summary]) -> None:
    verdict = judge(made_up(study(0.4, 0.5, 0.03)))
    assert verdict.kind == "nothing"
    assert "would have been seen" not in verdict.sentence
    assert "33 % higher" in verdict.sentence


def test_cannot_tell(made_up: Callable[..., Summary]) -> None:
    verdict = judge(made_up(study(0.27, 0.301, 0.05)))
    assert (verdict.kind, verdict.recommended, verdict.leader) == ("cannot tell", (), "dropout")
    assert verdict.sentence.startswith("Cannot tell with this many rows and seeds: dropout at p = 0.5 has")
    assert "8 seeds could have detected about" in verdict.sentence


def test_an_effect_that_helps_only_before_correction_is_not_advice(made_up: Callable[..., Summary]) -> None:
    summary = made_up(study(0.28, 0.3, 0.017))
    test = summary.comparisons["dropout"]
    assert 0.025 < test.p_value / 2 < 0.05 < test.p_value  # below the level alone, above it in the family of two
    assert judge(summary).kind == "cannot tell"


def test_none_diverged(made_up: Callable[..., Summary]) -> None:
    summary = made_up(study(0.2, 0.2, 0.01), diverged=lambda trial: trial.method == "none" and trial.seed > 7)
    verdict = judge(summary)
    assert (verdict.kind, verdict.leader) == ("cannot tell", None)
    assert verdict.sentence.startswith("Cannot tell: training without regularisation diverged on 2 of 8 seeds")
    assert cautions(summary)[0].startswith("The loss became NaN or infinite in 2 runs of no regularisation (none, conf")


def test_every_method_diverged(made_up: Callable[..., Summary]) -> None:
    summary = made_up(study(0.2, 0.2, 0.01), diverged=lambda trial: trial.method != "none")
    assert summary.chosen == {"none": 0.0, "dropout": None, "weight_decay": None}
    assert judge(summary).sentence.startswith("Cannot tell: every method diverged")


def test_a_strength_that_diverged_is_not_chosen(made_up: Callable[..., Summary]) -> None:
    summary = made_up(
        study(0.2, 0.25, 0.01),
        diverged=lambda trial: trial.phase == SELECTION and trial.strength == 0.5 and trial.seed == 1,
    )
    assert summary.chosen["dropout"] != 0.5
    assert any("Strengths that diverged were not chosen." in text for text in cautions(summary))


def test_a_method_that_diverged_in_confirmation_keeps_its_place_in_the_family(made_up: Callable[..., Summary]) -> None:
    numbers = study(0.28, 0.2, 0.008)
    whole = made_up(numbers).comparisons["dropout"]
    summary = made_up(
        numbers, diverged=lambda t: t.phase == CONFIRMATION and t.method == "weight_decay" and t.seed == 5
    )
    assert list(summary.comparisons) == ["dropout"]
    assert summary.comparisons["dropout"].p_value >= whole.p_value
    assert any("It was not compared." in text for text in cautions(summary))


def test_differences_are_paired_by_seed(made_up: Callable[..., Summary]) -> None:
    seeds = {name: (lambda strength, seed, shift=shift: 0.3 + 0.1 * seed + shift) for name, shift in
             (("none", 0.0), ("dropout", -0.01), ("weight_decay", 0.02))}  # fmt: skip
    comparison = made_up(seeds).comparisons["dropout"]
    assert comparison.difference == pytest.approx(-0.01)
    assert comparison.standard_error == pytest.approx(0, abs=1e-12)
    assert comparison.last_difference == pytest.approx(-0.01)
    assert comparison.last_against_early == pytest.approx(0.07)


def test_no_caution_without_a_cause(made_up: Callable[..., Summary]) -> None:
    assert cautions(made_up(study(0.25, 0.29, 0.002))) == []


def test_caution_of_the_edge_of_the_grid(made_up: Callable[..., Summary]) -> None:
    numbers = {**study(0.25, 0.29, 0.002), "dropout": losses(0.25, 0, 1, 0.8)}
    (text,) = edge_of_grid.check(made_up(numbers))
    assert text == (
        "The best strength of dropout, p = 0.8, is the largest that was tried (loss 0.250 in the selection, 0.300 at "
        "p = 0.65): a better one may lie beyond."
    )


def test_the_weak_end_of_a_grid_is_judged_by_what_lies_beyond_it(made_up: Callable[..., Summary]) -> None:
    weakest = {**study(0.25, 0.29, 0.002), "dropout": losses(0.25, 0, 1, 0.1)}
    assert cautions(made_up(weakest)) == [], "none is worse: the best rate lies between two that were tried"
    (text,) = edge_of_grid.check(made_up({**weakest, "none": losses(0.24, 0, 0)}))
    assert text == (
        "The best strength of dropout, p = 0.1, is the smallest that was tried (loss 0.250 in the selection, 0.300 at "
        "p = 0.3). Beyond it the method tends to no regularisation, which did no worse: 0.240."
    )
    (text,) = edge_of_grid.check(made_up(weakest, diverged=lambda t: t.method == "none" and t.phase == SELECTION))
    assert text.endswith(": a better one may lie beyond."), "without its loss nothing is known of what lies there"


@pytest.mark.parametrize(
    ("method", "strengths", "other", "at"),
    [
        ("max_norm", (0.5, 1.0), "none", 0.0),  # the longest vectors are the weakest bound
        ("smaller_network", (0.25, 0.5), "none", 0.0),
        ("crop", (0.8, 0.9), "none", 0.0),
        ("mixup", (0.2, 0.4), "none", 0.0),
        ("dropout_after_norm", (0.1, 0.3), "batch_norm", 0.0),
        ("dropout_decay", (0.1, 0.3), "weight_decay", 0.3),
    ],
)
def test_every_method_tends_to_what_it_is_without_its_strength(
    made_up: Callable[..., Summary], plan: Plan, method: str, strengths: tuple[float, ...], other: str, at: float
) -> None:
    weak = max(strengths) if method in ("max_norm", "smaller_network", "crop") else min(strengths)
    grids = {"none": (0.0,), other: (at,), method: strengths}
    for loss, warns in ((0.2, True), (0.3, False)):
        early = {"none": losses(0.5, 0, 0), other: losses(loss, 0, 0), method: losses(0.25, 0, 0, weak)}
        texts = edge_of_grid.check(made_up(early, plan=replace(plan, strengths=grids)))
        assert [" tends to " in text for text in texts] == [True] * warns


def test_caution_of_a_high_rate(made_up: Callable[..., Summary]) -> None:
    texts = cautions(made_up({**study(0.25, 0.29, 0.002), "dropout": losses(0.25, 0, 1, 0.8)}))
    assert any(text.startswith("The chosen rate p = 0.8 leaves about 51 of 256 hidden units") for text in texts)


def test_caution_of_a_network_that_under_fits(made_up: Callable[..., Summary]) -> None:
    (text,) = cautions(made_up(study(0.25, 0.29, 0.002), training=0.74))
    assert "a gap of 2.6 %. Dropout cannot help such a network" in text


def test_caution_of_few_rows(made_up: Callable[..., Summary], toy: object) -> None:
    grids = {name: METHODS[name].grid(5) for name in ("none", "dropout", "weight_decay")}
    plan = make_plan(toy, Budget("small", train_rows=300, epochs=3), 0, grids)
    (text,) = cautions(made_up(study(0.35, 0.29, 0.002), plan=plan))
    assert text.startswith("Each model trains on 300 rows, fewer than 1,000")
    assert "+0.050 with early stopping and by +0.050 at the last epoch" in text


def larger_plan(toy: object, *names: str) -> object:
    grids = {name: METHODS[name].grid(4) for name in METHODS if name in ("none", "dropout", *names)}
    return make_plan(toy, Budget("large", epochs=3), 0, grids)


def test_caution_of_a_linear_model_that_does_as_well(made_up: Callable[..., Summary], toy: object) -> None:
    plan = larger_plan(toy, "linear")
    numbers = {"none": losses(0.3, 0, 0), "dropout": losses(0.29, 0.001, 1, 0.5)}
    summary = made_up({**numbers, "linear": losses(0.3, 0.001, 2, 0.01)}, plan=plan)
    assert list(summary.comparisons) == ["dropout"]  # a baseline is no member of the family
    (text,) = cautions(summary)
    assert text.startswith(
        "A linear model does as well: its validation loss is 0.300 (linear model at λ = 0.01, fitted to the same "
        "rows), against 0.290 of the best network here, early-stopped (dropout at p = 0.5)."
    )
    assert cautions(made_up({**numbers, "linear": losses(0.31, 0.001, 2, 0.01)}, plan=plan)) == []
    assert cautions(
        made_up({**numbers, "linear": losses(0.2, 0.001, 2, 0.01)}, plan=plan, diverged=lambda t: t.method == "linear")
    )[0].startswith("The loss became NaN")


def test_caution_of_dropout_before_normalisation(made_up: Callable[..., Summary], toy: object) -> None:
    numbers = {"none": losses(0.3, 0, 0), "dropout": losses(0.29, 0.001, 1, 0.5)}
    before = losses(0.25, 0.001, 2, 0.5)
    plan = larger_plan(toy, "dropout_before_norm", "batch_norm")
    (text,) = cautions(
        made_up({**numbers, "dropout_before_norm": before, "batch_norm": losses(0.28, 0.001, 0)}, plan=plan)
    )
    assert "loss is 0.250; batch normalisation 0.280, +0.030." in text
    plan = larger_plan(toy, "dropout_before_norm")
    (text,) = cautions(made_up({**numbers, "dropout_before_norm": before}, plan=plan))
    assert text.endswith("loss is 0.250; the other order was not tried.")
    assert cautions(made_up({**numbers, "dropout_before_norm": losses(0.31, 0.001, 2, 0.5)}, plan=plan)) == []


def test_ties_of_many_are_named_in_the_order_of_the_plan(made_up: Callable[..., Summary], toy: object) -> None:
    plan = larger_plan(toy, "weight_decay", "max_norm", "batch_norm")
    numbers = {
        "none": losses(0.3, 0, 0),
        "dropout": losses(0.25, 0.01, 1, 0.5),
        "weight_decay": losses(0.252, 0.01, 2, 1.0),
        "max_norm": losses(0.251, 0.01, 0, 0.5),
        "batch_norm": losses(0.33, 0.001, 1),
    }
    verdict = judge(made_up(numbers, plan=plan))
    assert (verdict.kind, verdict.recommended) == ("tie", ("dropout", "weight_decay", "max_norm"))
    assert verdict.sentence.startswith(
        "Use dropout at p = 0.5, weight decay at λ = 1 or max-norm at c = 0.5, with early stopping: all beat early"
    )
    assert "and between them it is a tie." in verdict.sentence
