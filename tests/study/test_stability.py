"""What the advice would be without each confirmation seed."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from dropkit.study import METHODS, Budget, Dataset
from dropkit.study.cautions import cautions
from dropkit.study.findings import Findings
from dropkit.study.plan import Plan, make_plan
from dropkit.study.records import CONFIRMATION
from dropkit.study.stability import stability
from dropkit.study.statements import statements
from dropkit.study.summary import Summary
from dropkit.study.verdict import judge


def losses(dropout: Callable[[int], float]) -> dict[str, Callable[[float, int], float]]:
    return {
        "none": lambda strength, seed: 0.3,
        "dropout": lambda strength, seed: dropout(seed) + 0.1 * (strength != 0.5),
        "weight_decay": lambda strength, seed: 0.31 + 0.0001 * (-1) ** seed,
    }


def test_a_clear_advice_rests_on_no_single_seed(made_up: Callable[..., Summary]) -> None:
    summary = made_up(losses(lambda seed: 0.25 + 0.001 * (-1) ** seed))
    found = stability(summary)
    assert found.verdict == judge(summary)
    assert found.verdict.kind == "helps"
    assert list(found.without) == list(summary.plan.seeds[CONFIRMATION])
    assert found.changed == ()
    assert found.sentence == "The advice is the same without any one of the 8 confirmation seeds."
    assert all("7 fresh seeds" in verdict.sentence for verdict in found.without.values())
    assert found.sentence in statements(Findings(summary, stability(summary), (), (), {}))


def test_an_advice_that_one_seed_prevents(made_up: Callable[..., Summary], plan: Plan) -> None:
    odd = plan.seeds[CONFIRMATION][3]
    summary = made_up(losses(lambda seed: 0.5 if seed == odd else 0.25 + 0.001 * (-1) ** seed))
    found = stability(summary)
    assert found.verdict.kind == "cannot tell"
    assert found.changed == (odd,)
    assert found.without[odd].recommended == ("dropout",)
    assert found.sentence == (
        "Without one of the 8 confirmation seeds the advice would change in 1 case: dropout at p = 0.5 (1 of 8)."
    )


def test_leaving_a_seed_out_is_the_study_without_it(made_up: Callable[..., Summary], plan: Plan) -> None:
    early = losses(lambda seed: 0.28 + 0.004 * ((7 * seed) % 5))
    last = plan.seeds[CONFIRMATION][-1]
    whole = made_up(early)
    shorter = replace(plan, budget=replace(plan.budget, confirmation_seeds=7))
    assert stability(whole).without[last] == judge(made_up(early, plan=shorter))


@pytest.mark.parametrize(("seeds", "words"), [(2, "cannot be told"), (3, "without any one of the 3"), (8, None)])
def test_few_seeds_are_cautioned_of(
    made_up: Callable[..., Summary], toy: Dataset, seeds: int, words: str | None
) -> None:
    budget = Budget("made up", epochs=3, confirmation_seeds=seeds)
    plan = make_plan(toy, budget, 0, {name: METHODS[name].grid(5) for name in ("none", *budget.methods)})
    summary = made_up(losses(lambda seed: 0.25 + 0.0001 * (-1) ** seed), plan=plan)
    found = [text for text in cautions(summary) if "confirmation seeds, fewer than 8" in text]
    assert len(found) == (words is not None)
    assert all(f"rests on {seeds} confirmation seeds" in text and str(words) in text for text in found)
