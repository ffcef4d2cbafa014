"""The statistics of a study in plain words, for the report."""

from dropkit.study.findings import Findings
from dropkit.study.measures.words import measured_in_words
from dropkit.study.methods import METHODS
from dropkit.study.metrics import metrics_of
from dropkit.study.pace import Pace, paces
from dropkit.study.packed import TRAINING_ROWS_SCORED
from dropkit.study.plan import LEVEL, RELEVANT
from dropkit.study.summary import early_loss, last_loss
from dropkit.study.test_rows import OnTestRows, SavedOnTestRows
from dropkit.study.wording import change, joined, loss_name, number, p_value, percent, signed

__all__ = ["statement_on_test_rows", "statements"]

_MANY = 9  # methods, with none: sentences that list more of them are not read


def statements(findings: Findings) -> list[str]:
    """Return what was measured and tested, a paragraph a point."""
    return [
        _procedure(findings),
        *_early_stopping(findings),
        *_comparisons(findings),
        *_stability(findings),
        *_learned_rates(findings),
        *_paces(findings),
        *measured_in_words(findings.summary, findings.measures, _named(findings)),
        *_others(findings),
    ]


def _named(findings: Findings) -> list[str]:
    """Return the methods that sentences which list methods speak of: of many, those that matter to the advice."""
    names = list(findings.summary.arms)
    if len(names) <= _MANY:
        return names
    of_interest = {"none", "dropout", findings.verdict.leader, *findings.verdict.recommended}
    return [name for name in names if name in of_interest]


def _others(findings: Findings) -> list[str]:
    is_short = len(_named(findings)) == len(findings.summary.arms)
    return [] if is_short else ["Of the methods that these sentences leave out, the pictures and results.json tell."]


def _procedure(findings: Findings) -> str:
    plan = findings.summary.plan
    family = joined([METHODS[name].title for name in plan.family])
    return (
        "Decided before the first model trained: one primary metric, the early-stopped validation "
        f"{loss_name(plan.data)} against "
        f"no regularisation; one family of tests ({family}); the corrected resampled t-test of Nadeau and Bengio "
        "(2003), because seeds that share rows are not independent; Holm's correction over the family at the level "
        f"{LEVEL:g}; and {percent(RELEVANT)} of the loss as the least difference worth having. Everything else on "
        "this page describes. The training loss of a model, and so the gap, is measured with dropout off on "
        f"at most the first {TRAINING_ROWS_SCORED:,} of its training rows."
    )


def _early_stopping(findings: Findings) -> list[str]:
    none = findings.summary.none
    if not none.records:
        return []
    early, last = none.spread(early_loss).mean, none.spread(last_loss).mean
    text = (
        f"Without regularisation the loss is {early:.3f} at the epoch that the inner rows choose and {last:.3f} at "
        f"epoch {findings.summary.plan.budget.epochs}: early stopping alone {_lowers(last - early)}."
    )
    return [text]


def _lowers(value: float) -> str:
    size = number(abs(value))
    if float(size) == 0:
        return "changes next to nothing"
    return f"{'lowers' if value > 0 else 'raises'} the loss by {size}"


def _comparisons(findings: Findings) -> list[str]:
    summary = findings.summary
    if not summary.comparisons:
        return []
    none = summary.none.spread(early_loss).mean
    texts = []
    for name, found in summary.comparisons.items():
        verdict = "better than" if found.helps else "worse than" if found.hurts else "not shown to differ from"
        texts.append(
            f"{summary.arms[name].label.capitalize()}, early-stopped, is {verdict} early stopping alone: "
            f"{signed(found.difference)} ({change(found.difference / none)}), corrected standard error "
            f"{found.standard_error:.3f}, {p_value(found.p_value)} after Holm. These seeds could have detected about "
            f"{found.smallest_effect:.3f} ({percent(found.smallest_effect / none)}) with 80 % power. At the last "
            f"epoch it differs by {signed(found.last_difference)} from no regularisation at the last epoch, and by "
            f"{signed(found.last_against_early)} from no regularisation early-stopped."
        )
    return texts


def _stability(findings: Findings) -> list[str]:
    sentence = findings.stability.sentence
    return [sentence] if sentence else []


def _learned_rates(findings: Findings) -> list[str]:
    arms = [arm for arm in findings.summary.arms.values() if arm.learned_rates]
    if not arms:
        return []
    parts = [f"{joined([f'{rate:.2g}' for rate in arm.learned_rates])} with {arm.label}" for arm in arms]
    text = (
        f"The rates that were learned are {'; '.join(parts)}: of each hidden layer in order, at the early-stopping "
        "epoch, means over the units and the seeds."
    )
    return [text]


def _paces(findings: Findings) -> list[str]:
    summary = findings.summary
    found = {name: pace for name, pace in paces(summary).items() if name in _named(findings)}
    if not found:
        return []
    parts = [_pace(summary.arms[name].label, pace) for name, pace in found.items()]
    text = (
        "How long training takes, in epochs to the training loss (dropout off) that no regularisation has on the same "
        f"seed where it stops early; medians over the seeds, of which those that did not get there within "
        f"{summary.plan.budget.epochs} epochs count as later: "
        f"{'; '.join(parts)}. Srivastava et al. (2014) say that dropout takes 2 to 3 times as long."
    )
    return [text]


def _pace(label: str, pace: Pace) -> str:
    reached, seeds = len(pace.reached), len(pace.relative)
    if pace.median is None:
        return f"{label} got there on {f'only {reached}' if reached else 'none'} of {seeds} seeds"
    return f"{label} needed {pace.median:.1f} times the epochs, and {reached} of {seeds} seeds got there"


def statement_on_test_rows(findings: Findings) -> str:
    """Say what the test rows say; nothing where no method could be compared."""
    if not findings.test_rows:
        return ""
    models = findings.test_rows[0].models
    return (
        f"On the {findings.summary.plan.budget.test_rows:,} test rows, used once: "
        f"{'; '.join(_on_test_rows(findings, test) for test in findings.test_rows)}. Means over {models} early-stopped "
        f"models of each; they check the advice and never overrule it.{_saved(findings, findings.saved)}"
    )


def _saved(findings: Findings, saved: SavedOnTestRows | None) -> str:
    if saved is None:
        return ""
    metric = metrics_of(findings.summary.plan.data["task"])[0]
    of = f"with {findings.summary.arms[saved.method].label}" if saved.method != "none" else "without regularisation"
    return (
        f" The saved model, the mean of the {saved.models} {of}, has loss {saved.loss:.3f}, {metric.title} "
        f"{metric.written(saved.metrics[metric.name])}."
    )


def _on_test_rows(findings: Findings, test: OnTestRows) -> str:
    found = test.difference
    metrics = [
        f"{metric.title} {metric.written(test.metrics[metric.name])} against "
        f"{metric.written(test.none_metrics[metric.name])}"
        for metric in metrics_of(findings.summary.plan.data["task"])
    ]
    over = f"{test.groups} whole groups" if test.groups else "rows"
    agree = ", which includes no difference" if found.low <= 0 <= found.high else ""
    return (
        f"loss {test.loss:.3f} with {findings.summary.arms[test.method].label} against {test.none_loss:.3f} without "
        f"regularisation, {signed(found.mean)} (95 % bootstrap interval over {over} {signed(found.low)} to "
        f"{signed(found.high)}{agree}), {', '.join(metrics)}"
    )
