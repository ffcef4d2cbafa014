"""Active learning: which unlabelled examples to have labelled, from what the passes say of each.

Every score is higher for examples that are better worth a label.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import KEY, Integer, argument_error, argument_type_error
from dropkit.uncertainty.metrics.inputs import SAMPLES, both, numbers, simplex
from dropkit.uncertainty.results.classification import corrected_information
from dropkit.uncertainty.results.result import Result

__all__ = [
    "BatchSelection",
    "bald",
    "batch_bald",
    "entropy",
    "least_confidence",
    "margin",
    "select",
    "variation_ratio",
]

_CONFIGURATIONS = Integer(1, 10**7, "[1, 10**7]")
_LEAVE_OUT = "Leave such examples out, and take the places of the rest: places[select(scores[places], size)]."
_AT_ONCE = 2**22  # numbers held at a time: 32 MiB


def _passes(where: str, probabilities: Any) -> Tensor:
    """Return probabilities of shape (passes, examples, classes), in float64 and on the device where they are.

    They are divided by their sums, which coarse types round: what is computed of them relies on sums of 1. They stay on
    the CPU where their device has no double precision.
    """
    rule = "of shape (passes, examples, classes)"
    if isinstance(probabilities, Result):
        raise argument_type_error(where, "probabilities", rule, "a Result", SAMPLES)
    found = numbers(where, "probabilities", probabilities)
    if found.ndim != 3:
        raise argument_error(where, "probabilities", rule, found.shape, _shape_remedy(found.ndim))
    simplex(where, "probabilities", found, probabilities)
    checked = torch.from_numpy(both(found))
    checked /= checked.sum(-1, keepdim=True)
    is_elsewhere = isinstance(probabilities, Tensor) and probabilities.device.type != "mps"
    return checked.to(probabilities.device) if is_elsewhere else checked


def _shape_remedy(axes: int) -> str:
    if axes == 2:
        return "Keep the passes: mc(..., keep_samples=True). A mean over them is one pass: mean[None]."
    if axes > 3:
        return "Make an example of each place: samples.movedim(axis_of_classes, -1).flatten(1, -2)."
    return ""


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)


def entropy(probabilities: Any) -> Tensor:
    """Return the entropy of the mean prediction of each example, in nats.

    It is high both where the passes disagree and where they agree that classes are about equally likely.

    Args:
        probabilities: Of shape (passes, examples, classes), a tensor or an array; each sums to 1 over the classes. One
            column is the probability of the second of two classes.

    Returns:
        Of shape (examples,), from 0 to the logarithm of the number of classes, in float64.

    Raises:
        ArgumentError: If a number is out of its range, or the shape does not fit.
        ArgumentTypeError: If the argument is of another type.

    Examples:
        >>> from dropkit import uncertainty
        >>> uncertainty.entropy([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
        tensor([0.6931, 0.6931], dtype=torch.float64)

    References:
        Shannon (1948), "A mathematical theory of communication", section 6. Gal, Islam and Ghahramani (2017), "Deep
        Bayesian active learning with image data", section 4.
    """
    return _entropy(_passes("entropy", probabilities).mean(0))


def bald(probabilities: Any, *, corrected: bool = False) -> Tensor:
    """Return the mutual information between each example's label and the pass: how far the passes disagree, in nats.

    It is the entropy of the mean prediction less the mean entropy of the passes' predictions.

    Args:
        probabilities: Of shape (passes, examples, classes), a tensor or an array; each sums to 1 over the classes. One
            column is the probability of the second of two classes.
        corrected: Whether to add what few passes lack on average, to first order: half the sum over classes of the
            passes' variance over their number times the mean probability, up to the entropy of the mean prediction. It
            needs two passes. Default: False.

    Returns:
        Of shape (examples,), 0 or more, in float64.

    Raises:
        ArgumentError: If a number is out of its range, or the shape does not fit.
        ArgumentTypeError: If an argument is of another type.

    Examples:
        >>> from dropkit import uncertainty
        >>> uncertainty.bald([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
        tensor([0.6931, 0.0000], dtype=torch.float64)

    References:
        Houlsby, Huszár, Ghahramani and Lengyel (2011), "Bayesian active learning for classification and preference
        learning", equation 2. Miller (1955), "Note on the bias of information estimates", whose correction this is in
        the form for probabilities.
    """
    where = "bald"
    if not isinstance(corrected, bool):
        raise argument_type_error(where, "corrected", "a bool", corrected)
    found = _passes(where, probabilities)
    mean = found.mean(0)
    predictive, expected = _entropy(mean), _entropy(found).mean(0)
    if not corrected:
        return (predictive - expected).clamp(min=0)
    if len(found) < 2:
        raise argument_error(where, "probabilities", "of two passes or more where `corrected`", tuple(found.shape))
    return corrected_information(predictive, expected, mean, found.var(0), len(found))


def variation_ratio(probabilities: Any) -> Tensor:
    """Return the share of passes whose likeliest class is not that of most passes.

    Args:
        probabilities: Of shape (passes, examples, classes), a tensor or an array; each sums to 1 over the classes. One
            column is the probability of the second of two classes.

    Returns:
        Of shape (examples,), from 0 (all agree) to below 1, in float64.

    Raises:
        ArgumentError: If a number is out of its range, or the shape does not fit.
        ArgumentTypeError: If the argument is of another type.

    Examples:
        >>> from dropkit import uncertainty
        >>> uncertainty.variation_ratio([[[0.9, 0.1]], [[0.6, 0.4]], [[0.2, 0.8]], [[0.7, 0.3]]])
        tensor([0.2500], dtype=torch.float64)

    References:
        Freeman (1965), "Elementary applied statistics", of the ratio. Gal (2016), "Uncertainty in deep learning",
        section 3.3.1.
    """
    found = _passes("variation_ratio", probabilities)
    votes = torch.nn.functional.one_hot(found.argmax(-1), found.shape[-1]).double().mean(0)
    return 1 - votes.amax(-1)


def least_confidence(probabilities: Any) -> Tensor:
    """Return what the mean prediction of each example leaves to all but its likeliest class.

    Args:
        probabilities: Of shape (passes, examples, classes), a tensor or an array; each sums to 1 over the classes. One
            column is the probability of the second of two classes.

    Returns:
        Of shape (examples,), from 0 to below 1, in float64.

    Raises:
        ArgumentError: If a number is out of its range, or the shape does not fit.
        ArgumentTypeError: If the argument is of another type.

    Examples:
        >>> from dropkit import uncertainty
        >>> uncertainty.least_confidence([[[0.9, 0.1]], [[0.6, 0.4]]])
        tensor([0.2500], dtype=torch.float64)

    References:
        Lewis and Gale (1994), "A sequential algorithm for training text classifiers".
    """
    return 1 - _passes("least_confidence", probabilities).mean(0).amax(-1)


def margin(probabilities: Any) -> Tensor:
    """Return how close the two likeliest classes of the mean prediction are: 1 less the difference between them.

    Args:
        probabilities: Of shape (passes, examples, classes), a tensor or an array; each sums to 1 over the classes. One
            column is the probability of the second of two classes.

    Returns:
        Of shape (examples,), from 0 (certain) to 1 (two classes are equally likely), in float64.

    Raises:
        ArgumentError: If a number is out of its range, or the shape does not fit.
        ArgumentTypeError: If the argument is of another type.

    Examples:
        >>> from dropkit import uncertainty
        >>> uncertainty.margin([[[0.9, 0.1]], [[0.6, 0.4]]])
        tensor([0.5000], dtype=torch.float64)

    References:
        Scheffer, Decomain and Wrobel (2001), "Active hidden Markov models for information extraction".
    """
    first, second = _passes("margin", probabilities).mean(0).topk(2, dim=-1).values.unbind(-1)
    return 1 - (first - second)


def select(scores: Any, size: int) -> Tensor:
    """Return the examples with the highest scores, the highest first; of equal ones the first.

    Random acquisition, which every score has to beat, is ``select(torch.rand(examples), size)``.

    Args:
        scores: One an example, finite, of shape (examples,), a tensor or an array.
        size: How many to select, from 1 to the number of examples.

    Returns:
        Their places, int64 of shape (size,).

    Raises:
        ArgumentError: If a score is not finite, or the shape or the size does not fit.
        ArgumentTypeError: If an argument is of another type.

    Examples:
        >>> from dropkit import uncertainty
        >>> uncertainty.select([0.1, 0.7, 0.3, 0.7], 3)
        tensor([1, 3, 2])
    """
    found = torch.from_numpy(numbers("select", "scores", scores, rank=1, remedy=_LEAVE_OUT))
    size = Integer(1, len(found), remedy=f"There are {len(found)} examples.").check("select", "size", size)
    places = found.sort(descending=True, stable=True).indices[:size]
    return places.to(scores.device) if isinstance(scores, Tensor) else places


@dataclass(frozen=True, eq=False)
class BatchSelection:
    """A batch of examples that are worth most together.

    Args:
        indices: Their places, in the order in which they were chosen; int64 of shape (size,).
        information: The mutual information between the pass and the labels of the first, the first two, and so on to
            all, in nats; float64 of shape (size,). It cannot exceed the logarithm of the number of passes.
    """

    indices: Tensor
    information: Tensor


def batch_bald(probabilities: Any, size: int, *, configurations: int = 1_000, seed: int = 0) -> BatchSelection:
    """Select a batch of examples whose labels together say most about the model, greedily.

    BALD scores examples one by one, and so takes many that say the same. Here each example is worth what its label
    adds to those of the examples already chosen. The passes must be functions: the same masks for all examples, as
    ``masks="shared"`` gives them. With masks of their own, passes say nothing of how labels belong together.

    Args:
        probabilities: Of shape (passes, examples, classes), a tensor or an array; each sums to 1 over the classes. One
            column is the probability of the second of two classes.
        size: How many to select, from 1 to the number of examples.
        configurations: How many combinations of labels of the chosen examples are followed, in ``[1, 10**7]``. As long
            as there are no more, the result is exact; then that many are sampled. Time grows with passes, examples,
            classes and these. Default: 1,000.
        seed: Of the sampling, in ``[0, 2**64)``. Default: 0.

    Returns:
        The examples, and the information of the batch as it grows. The first has the highest `bald`.

    Raises:
        ArgumentError: If a number is out of its range, or the shape does not fit.
        ArgumentTypeError: If an argument is of another type.

    Examples:
        >>> import torch
        >>> from dropkit import uncertainty
        >>> generator = torch.Generator().manual_seed(0)
        >>> probabilities = torch.randn(20, 3, 4, generator=generator).mul(2).softmax(-1)
        >>> twice = torch.cat([probabilities, probabilities], dim=1)  # examples 3, 4 and 5 are 0, 1 and 2 again
        >>> uncertainty.select(uncertainty.bald(twice), 3), uncertainty.batch_bald(twice, 3).indices
        (tensor([2, 5, 1]), tensor([2, 1, 0]))

    References:
        Kirsch, van Amersfoort and Gal (2019), "BatchBALD: efficient and diverse batch acquisition for deep Bayesian
        active learning", algorithm 1 and section 3.
    """
    where = "batch_bald"
    found = _passes(where, probabilities)
    passes, examples, _ = found.shape
    size = Integer(1, examples, remedy=f"There are {examples} examples.").check(where, "size", size)
    limit = _CONFIGURATIONS.check(where, "configurations", configurations)
    generator = torch.Generator().manual_seed(KEY.check(where, "seed", seed))

    # One configuration is a label for each chosen example: how likely it is, and each pass given that it is true.
    chances = found.new_ones(1)
    posterior = found.new_full((1, passes), 1 / passes)
    own = _entropy(found)
    is_chosen = torch.zeros(examples, dtype=torch.bool, device=found.device)
    chosen, information = [], []
    for _ in range(size):
        conditional = _conditional_entropy(chances, posterior, found)
        best = (conditional - own.mean(0)).masked_fill(is_chosen, -math.inf).argmax()
        chosen.append(best)
        is_chosen[best] = True
        # The chain rule: pass and new label, given the others, are as uncertain as the label and then the pass.
        left = chances @ (_entropy(posterior) + posterior @ own[:, best]) - conditional[best]
        information.append((math.log(passes) - left).clamp(min=0))
        chances, posterior = _extended(chances, posterior, found[:, best], limit, generator)
    return BatchSelection(torch.stack(chosen), torch.stack(information))


def _conditional_entropy(chances: Tensor, posterior: Tensor, probabilities: Tensor) -> Tensor:
    """Return the entropy of each example's label given those of the chosen ones."""
    classes = probabilities.shape[2]
    parts = probabilities.split(max(1, _AT_ONCE // (len(chances) * classes)), dim=1)
    return torch.cat([chances @ _entropy(torch.tensordot(posterior, part, dims=1)) for part in parts])


def _extended(
    chances: Tensor, posterior: Tensor, probabilities: Tensor, limit: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Add one example, of which passes say `probabilities`: each configuration goes on with each of its labels.

    If there are more than `limit` of these, that many are drawn before what passes say of each is worked out.
    """
    given = posterior @ probabilities  # rows are configurations, columns labels
    extended = (chances[:, None] * given).flatten()
    places = extended.nonzero()[:, 0]
    chances = extended[places]
    if len(places) > limit:
        places = places[_drawn(chances, limit, generator)]
        chances = chances.new_full((limit,), 1 / limit)
    rows, labels = places // given.shape[1], places % given.shape[1]
    return chances, posterior[rows] * probabilities.T[labels] / given[rows, labels, None]


def _drawn(chances: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the places of as many as asked for: in even steps through all chances, from a random start.

    Each is drawn as often on average as its chance says, so means over those drawn are unbiased.
    """
    steps = torch.arange(count, dtype=torch.float64) + torch.rand((), generator=generator, dtype=torch.float64)
    sums = chances.cumsum(0)
    return torch.searchsorted(sums, (steps / count).to(sums.device) * sums[-1], right=True).clamp(max=len(chances) - 1)
