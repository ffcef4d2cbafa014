"""What the measures say of a study, a paragraph each."""

from collections.abc import Callable, Container, Mapping

from dropkit.study.measures import MEASURES, degradation, gradient_variance
from dropkit.study.measures.measure import Measured
from dropkit.study.methods import METHODS
from dropkit.study.summary import Summary
from dropkit.study.wording import joined

__all__ = ["measured_in_words"]

Found = Mapping[str, Measured]
_HALF = 0.5


def measured_in_words(summary: Summary, measures: Mapping[str, Found], named: Container[str]) -> list[str]:
    """Return a paragraph a measure; of one that could not be taken of any network, that it could not.

    Args:
        summary: The study.
        measures: What was measured, by measure and method.
        named: The methods that the paragraphs speak of.
    """
    if summary.plan.network:
        text = (
            "The loss with hidden units removed, the correlations between hidden units and the gradient variance were "
            "not measured: they are taken of the layers of the study's own networks, and "
            f"{summary.plan.network['class']} is yours."
        )
        return [text]
    if not measures:
        return []
    return [
        _WORDS[measure.name](
            summary, {name: one for name, one in measures.get(measure.name, {}).items() if name in named}
        )
        for measure in MEASURES
    ]


def _degradation(summary: Summary, found: Found) -> str:
    half = {name: measured for name, measured in found.items() if {0.0, _HALF} <= measured.mean.keys()}
    if not half:
        return "Units removed after training: no network here has hidden units to remove."
    parts = [
        f"{measured.mean[0.0]:.3f} to {measured.mean[_HALF]:.3f} {_with(summary, name)}"
        for name, measured in half.items()
    ]
    return (
        f"Units removed after training: with half of all hidden units set to zero, {degradation.DRAWS} random draws a "
        f"model and the others not rescaled, the validation loss goes from {joined(parts)} ({_models(half)})."
    )


def _co_adaptation(summary: Summary, found: Found) -> str:
    last = {name: max(measured.models[0].at) for name, measured in found.items()}
    known = {name: measured for name, measured in found.items() if last[name] in measured.mean}
    if not known:
        return (
            "Co-adaptation: no last hidden layer here has two units that vary, so there is no correlation to measure."
        )
    parts = [f"{measured.mean[last[name]]:.3f} {_with(summary, name)}" for name, measured in known.items()]
    idle = [f"{measured.left_out:.3g} {_with(summary, name)}" for name, measured in known.items() if measured.left_out]
    left_out = f" Of all hidden units, on average {joined(idle)} never vary and are left out." if idle else ""
    return (
        "Co-adaptation: the mean absolute correlation between two units of the last hidden layer, over the validation "
        f"rows with dropout off, is {joined(parts)} ({_models(known)}).{left_out}"
    )


def _gradient_variance(summary: Summary, found: Found) -> str:
    whole = [arm for arm in summary.arms.values() if arm.records]
    normalised = [arm.label for arm in whole if METHODS[arm.method].recipe(arm.strength).batch_norm]
    reason = "they train with the statistics of each batch, which the saved network no longer uses"
    left_out = f" Left out, because {reason}: {joined(normalised)}." if normalised else ""
    learning = [arm.label for arm in whole if arm.learned_rates]
    left_out += f" Left out, because saved networks keep no learned rates: {joined(learning)}." if learning else ""
    mixing = [arm.label for arm in whole if METHODS[arm.method].recipe(arm.strength).mixup]
    left_out += f" Left out, because its loss mixes two targets: {joined(mixing)}." if mixing else ""
    sizes = sorted({size for measured in found.values() for size in measured.mean})
    if not sizes:
        return f"Gradient variance: no network here could be measured.{left_out}"
    size = sizes[len(sizes) // 2]  # one stands for all; the picture shows the others
    known = {name: measured for name, measured in found.items() if size in measured.mean}
    parts = [f"{measured.mean[size]:.2g} {_with(summary, name)}" for name, measured in known.items()]
    return (
        "Gradient variance: the trace of the covariance of the mini-batch gradient at the early-stopped weights, in "
        f"batches of {size:g} fresh training rows with each method's own noise, is {joined(parts)} "
        f"({gradient_variance.DRAWS} batches a model; {_models(known)}). It is not divided by the squared mean "
        f"gradient, which may be close to zero where training ends.{left_out}"
    )


def _models(found: Found) -> str:
    most = max(len(measured.models) for measured in found.values())
    return (
        f"means over {most} confirmation models of each method" if most > 1 else "one confirmation model of each method"
    )


def _with(summary: Summary, name: str) -> str:
    return "without regularisation" if name == "none" else f"with {summary.arms[name].label}"


_WORDS: dict[str, Callable[[Summary, Found], str]] = {
    "degradation": _degradation,
    "co_adaptation": _co_adaptation,
    "gradient_variance": _gradient_variance,
}
