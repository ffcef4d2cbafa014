"""The verdict and the cautions on made-up numbers: every branch, in its own words."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dropkit.study import METHODS, Budget
from dropkit.study.cautions import cautions, cut_short, edge_of_grid
from dropkit.study.plan import Plan, make_plan
from dropkit.study.records import CONFIRMATION, SELECTION, Curves, Record
from dropkit.study.summary import Summary, summarise
from dropkit.study.verdict import judge
from dropkit.study.wording import change, detectable, number, percent, signed

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
    assert verdict.sentence.startswith(
        "Cannot tell with this many rows and seeds: the best of the rest, dropout at p = 0.5, has a validation loss "
        "10 % lower than early stopping alone (p = "
    )
    assert verdict.sentence.endswith("could have been missed. Early stopping alone is the simplest choice.")


def test_cannot_tell_names_the_comparison_that_hides_most(made_up: Callable[..., Summary]) -> None:
    early = {**study(0.302, 0.299, 0.004), "dropout": losses(0.302, 0.03, 1, 0.5)}
    summary = made_up(early, last=0.001)
    verdict = judge(summary)
    hidden = summary.comparisons["dropout"].smallest_effect / 0.3
    assert (verdict.kind, verdict.leader) == ("cannot tell", "weight_decay")
    assert hidden > 0.05 > summary.comparisons["weight_decay"].smallest_effect / 0.3
    assert verdict.sentence == (
        "Cannot tell with this many rows and seeds: the best of the rest, weight decay at λ = 1, has a validation loss "
        "0.33 % lower than no regularisation (p = 1.00 after correction, 8 fresh seeds). Of dropout at p = 0.5, a "
        f"change below about {100 * hidden:.2g} % could have been missed. No regularisation is the simplest choice."
    )


def test_cannot_tell_names_the_methods_that_diverged(made_up: Callable[..., Summary]) -> None:
    summary = made_up(
        study(0.2999, 0.3, 0.002), diverged=lambda trial: trial.phase == CONFIRMATION and trial.method == "weight_decay"
    )
    assert judge(summary).kind == "cannot tell"
    assert " Weight decay diverged and could not be compared. " in judge(summary).sentence


@pytest.mark.parametrize(("seeds", "rough"), [(2, True), (7, True), (8, False)])
@pytest.mark.parametrize("dropout", [0.25, 0.31])
def test_the_advice_of_few_seeds_says_so_itself(
    made_up: Callable[..., Summary], plan: Plan, seeds: int, rough: bool, dropout: float
) -> None:
    fewer = replace(plan, budget=replace(plan.budget, confirmation_seeds=seeds))
    sentence = judge(made_up(study(dropout, 0.301, 0.0), plan=fewer)).sentence
    assert sentence.endswith(f" Only {seeds} seeds, so this is rough.") == rough
    assert ("rough" in sentence) == rough


def test_numbers_keep_to_their_precision() -> None:
    assert [signed(value) for value in (-0.0004, 0.0004, 0.0, -0.0006)] == ["0.000"] * 3 + ["\N{MINUS SIGN}0.001"]
    assert [number(value) for value in (-0.0004, 0.25, -1.0)] == ["0.000", "0.250", "\N{MINUS SIGN}1.000"]
    assert [percent(share) for share in (0.0004, 0.0346, 0.999, 4.84, 26.3)] == [
        "less than 0.1 %", "3.5 %", "100 %", "480 %", "2,600 %",
    ]  # fmt: skip
    assert [detectable(share) for share in (0.0, 0.0004, 0.0346)] == ["0.1 % or more", "0.1 % or more", "3.5 % or more"]
    assert change(-4.84) == "480 % lower"


def test_an_effect_too_small_to_write_is_rounded_up(made_up: Callable[..., Summary]) -> None:
    sentence = judge(made_up(study(0.3, 0.3, 1e-5))).sentence
    assert ", and 0.1 % or more would have been seen (8 fresh seeds)." in sentence


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
    (text,) = edge_of_grid.check(
        made_up(weakest, diverged=lambda t: t.phase == SELECTION and (t.method == "none" or t.strength == 0.3))
    )
    assert "(loss 0.250 in the selection; at p = 0.3 training diverged): a better one" in text


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
    assert text == (
        "Without regularisation the network hardly over-fits: at the last epoch its loss is 0.370 on its training rows "
        "and 0.380 on validation rows, a gap of 2.6 %. Dropout has little to gain there; more epochs or a larger "
        "network may gain more."
    )


@pytest.mark.parametrize("training", [0.76, 0.8, 1e6])
def test_a_network_that_does_as_well_on_fresh_rows_does_not_over_fit(
    made_up: Callable[..., Summary], training: float
) -> None:
    (text,) = cautions(made_up(study(0.25, 0.29, 0.002), training=training))
    assert text.startswith("Without regularisation the network does not over-fit: at the last epoch its loss is ")
    assert " and 0.380 on validation rows. Dropout has little to gain there;" in text


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
    (text,) = cautions(made_up({**numbers, "dropout_before_norm": losses(0.31, 0.001, 2, 0.5)}, plan=plan))
    assert text.startswith("Dropout stands before batch normalisation in one of the methods compared."), "it hurts"
    assert cautions(made_up(numbers, plan=larger_plan(toy))) == []


def lengthened(summary: Summary, early_epochs: Callable[[Record], int], epochs: int = 20) -> Summary:
    """Give every run more epochs, of which it stops early at the one asked for, with the losses that it had."""

    def longer(record: Record) -> Record:
        if record.diverged:
            return record
        stop, old = early_epochs(record), record.curves
        at = [1 if epoch == stop else 2 if epoch == epochs else 0 for epoch in range(1, epochs + 1)]

        def spread(column: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(column[index] for index in at)

        metrics = {name: spread(column) for name, column in old.metrics.items()}
        inner = tuple(1.0 if index == 1 else 2.0 for index in at)
        return replace(record, curves=Curves(spread(old.training_loss), inner, spread(old.validation_loss), metrics))

    plan = replace(summary.plan, budget=replace(summary.plan.budget, epochs=epochs))
    return summarise(plan, [longer(record) for record in summary.records])


@pytest.mark.parametrize(("late", "epoch", "warns"), [(5, 19, True), (8, 20, True), (4, 20, False), (8, 18, False)])
def test_caution_of_training_cut_short(
    made_up: Callable[..., Summary], plan: Plan, late: int, epoch: int, warns: bool
) -> None:
    seeds = plan.seeds[CONFIRMATION][:late]

    def stops(record: Record) -> int:
        return epoch if record.trial.method == "dropout" and record.trial.seed in seeds else 7

    summary = lengthened(made_up(study(0.25, 0.29, 0.002)), stops)
    assert judge(summary).recommended == ("dropout",)
    text = (
        f"Training may have been cut short: {late} of 8 seeds with dropout at p = 0.5 stop early no sooner than epoch "
        "19 of 20. More epochs (--epochs) may change losses and ranking."
    )
    assert cautions(summary) == [text] * warns


def test_training_cut_short_matters_where_the_advice_rests(made_up: Callable[..., Summary]) -> None:
    def late(*methods: str) -> Callable[[Record], int]:
        return lambda record: 20 if record.trial.method in methods else 7

    helps, nothing = made_up(study(0.25, 0.29, 0.002)), made_up(study(0.2999, 0.301, 0.002))
    diverged = made_up(study(0.25, 0.29, 0.002), diverged=lambda trial: trial.method != "none")
    assert cut_short.check(lengthened(helps, late("none", "weight_decay"))) == []
    (text,) = cut_short.check(lengthened(nothing, late("none", "dropout", "weight_decay")))
    assert "8 of 8 seeds with dropout at p = 0.5 and 8 of 8 seeds with no regularisation stop early" in text
    (text,) = cut_short.check(lengthened(diverged, late("none")))
    assert "8 of 8 seeds with no regularisation stop early" in text


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
