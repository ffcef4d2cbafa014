"""The main output: the leaf of a model's output that a task is about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, OneHotCategorical

from dropkit._checks import argument_error
from dropkit.errors import UnsupportedError
from dropkit.sites.interception.telling import warn
from dropkit.uncertainty.bounded import Bounded
from dropkit.uncertainty.results.axes import Axis
from dropkit.uncertainty.results.moments import wide
from dropkit.uncertainty.results.outputs import Rebuild

__all__ = [
    "ClassifierHead",
    "RegressionHead",
    "are_shares",
    "check_logits",
    "class_axis",
    "classifier_head",
    "main_leaves",
    "regression_head",
    "warn_of_shares",
]

_VARIANCES = {"variance": False, "var": False, "log_variance": True, "logvar": True, "log_var": True}  # in logarithms?
_SEVERAL = 8  # rows: the logits of so many hardly all lie in [0, 1]


@dataclass(frozen=True)
class ClassifierHead:
    """Where a classifier's logits are.

    Args:
        main: Which leaf holds them; None where the output is a distribution.
    """

    main: int | None

    def read(self, leaves: Sequence[Any], rebuild: Rebuild) -> Tensor:
        """Return the logits."""
        return rebuild(list(leaves)).logits if self.main is None else leaves[self.main]


@dataclass(frozen=True)
class RegressionHead:
    """Where a regression's prediction and its variance are.

    Args:
        main: Which leaf holds the prediction; None where the output is a distribution.
        variance: Which leaf holds the variance, if any.
        is_log: Whether that is its logarithm.
    """

    main: int | None
    variance: int | None = None
    is_log: bool = False

    def read(self, leaves: Sequence[Any], rebuild: Rebuild) -> tuple[Tensor, Tensor | None]:
        """Return prediction and variance."""
        if self.main is None:
            output = rebuild(list(leaves))
            try:
                return output.mean, output.variance
            except NotImplementedError:
                return output.mean, None
        if self.variance is None:
            return leaves[self.main], None
        variance: Tensor = leaves[self.variance]
        if self.is_log:
            return leaves[self.main], wide(variance).exp()
        if bool((variance < 0).any()):
            remedy = "If it is the logarithm, let the model return a dictionary with `mean` and `log_variance`."
            raise UnsupportedError(f"mc: {rebuild.names[self.variance]} is negative and cannot be a variance. {remedy}")
        return leaves[self.main], variance


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _leaf(rebuild: Rebuild, leaves: Sequence[Any], names: Sequence[str]) -> int | None:
    """Return the first leaf of some names, or the only one of real numbers, unless it describes a distribution."""
    paths = rebuild.paths
    for name in names:
        if (name,) in paths and _is_number(leaves[paths.index((name,))]):
            return paths.index((name,))
    numbers = [i for i, leaf in enumerate(leaves) if _is_number(leaf)]
    is_plain = not any(issubclass(kind, Distribution) for kind in rebuild.kinds)
    return numbers[0] if len(numbers) == 1 and is_plain else None


def main_leaves(rebuild: Rebuild, leaves: Sequence[Any]) -> list[int]:
    """Return the leaf that an output is about, if that is clear; else all leaves of real or complex numbers."""
    main = _leaf(rebuild, leaves, ("logits",))
    if main is not None:
        return [main]
    return [i for i, leaf in enumerate(leaves) if _is_number(leaf) or (isinstance(leaf, Tensor) and leaf.is_complex())]


def classifier_head(output: Any, rebuild: Rebuild, leaves: Sequence[Any]) -> ClassifierHead:
    """Return where the logits are.

    Raises:
        UnsupportedError: If it is not clear where.
    """
    if isinstance(output, Categorical | OneHotCategorical):
        return ClassifierHead(None)
    main = None if isinstance(output, Distribution) else _leaf(rebuild, leaves, ("logits",))
    if main is not None:
        return ClassifierHead(main)
    raise UnsupportedError(
        f"mc: which part of the output holds the logits is not clear: {_shown(rebuild, leaves)}. Let the model return "
        "them alone or under the name `logits`, or a categorical distribution; or leave `task` out for the statistics "
        "of the outputs as they are."
    )


def class_axis(class_dim: int, like: Tensor, examples: Axis = None) -> int:
    """Return the axis of classes, counted from the first, with a warning where it may be another than the last.

    Args:
        class_dim: The axis that is asked for.
        like: The logits of a pass.
        examples: The axis along which examples lie in them, if it is known.

    Raises:
        ArgumentError: If the logits have no such axis, no class along it, or no other but it is not asked for as 0; or
            if it is that of the examples.
    """
    if not -like.dim() <= class_dim < like.dim():
        shape = f"The logits have shape {tuple(like.shape)}."
        raise argument_error("mc", "class_dim", "an axis of the logits", class_dim, shape)
    if not like.shape[class_dim]:
        raise argument_error("mc", "class_dim", "an axis of one class or more", class_dim, f"{tuple(like.shape)}")
    if like.dim() == 1 and class_dim:
        rule = "0 where one axis is that of the classes of one example"
        remedy = (
            "If it is the axis of examples, let the model return `logits.unsqueeze(-1)`: one logit for each. If the "
            "model has squeezed a batch of one example, let it name the axes that it squeezes."
        )
        raise argument_error("mc", "class_dim", rule, class_dim, remedy)
    if like.dim() > 1 and examples == class_dim % like.dim():
        shape = f"Along it lie the examples of logits of shape {tuple(like.shape)}."
        raise argument_error("mc", "class_dim", "the axis of classes", class_dim, shape)
    if class_dim == -1 and like.dim() >= 4:
        warn(
            f"mc: the softmax is taken over the last of the {like.dim()} axes of the logits. Give class_dim=1 where "
            f"classes are axis 1, as of images, or class_dim={like.dim() - 1} if they are the last."
        )
    return class_dim % like.dim()


def are_shares(logits: Tensor) -> bool:
    """Tell whether all numbers lie in [0, 1], as probabilities do."""
    return bool(logits.numel()) and bool(((logits >= 0) & (logits <= 1)).all())


def check_logits(made: Bounded | None, classes: int) -> None:
    """Raise for logits that are computed from probabilities, and surely are probabilities themselves, or logarithms.

    Logarithms over several classes are logits: their softmax is what they are logarithms of, if that sums to 1.

    Args:
        made: What is known of them.
        classes: How many they are of; one of a single label.
    """
    if made is not None and made.is_probability:
        what = f"the outputs are probabilities: a {made.maker} returns them"
        raise UnsupportedError(f"mc: {what}. {_remedy(made.maker, classes)}")
    if made is not None and made.is_logarithm and made.maker == "sigmoid" and classes == 1:
        what = "the outputs are logarithms of probabilities, as logsigmoid returns them, and their sigmoid is none"
        raise UnsupportedError(f"mc: {what}. Let the model return logits: leave its logsigmoid out.")


def warn_of_shares(logits: Tensor, class_dim: int, made: Bounded | None, are_all_shares: bool) -> None:
    """Warn of logits that look like what a sigmoid or a softmax has returned in their place, or are made of that.

    Few in [0, 1] that do not sum to 1 are not warned of: that is chance.

    Args:
        logits: Those of one pass.
        class_dim: The axis of classes.
        made: What is known of them where they are computed from probabilities.
        are_all_shares: Whether they lie in [0, 1] in all passes.
    """
    classes = logits.shape[class_dim]
    if made is not None and made.is_logarithm and made.maker == "sigmoid":
        if not _sum_to_one(wide(logits).exp(), class_dim, logits.dtype):
            warn(
                "mc: the outputs are logarithms of probabilities of single labels, as logsigmoid returns them, and "
                f"their softmax is taken over the {classes} classes. That is right of classes that exclude one "
                "another. Of labels that do not, let the model return `logits.unsqueeze(-1)`, without logsigmoid."
            )
        return
    if made is not None and made.is_scaled:
        low, high = f"{made.low:g}", f"{made.high:g}"
        warn(
            f"mc: the outputs are computed from what a {made.maker} returns, and lie in [{low}, {high}] by that. If "
            f"they are logits, all is well. If they are multiples of probabilities, or sums, they are none. "
            f"{_remedy(made.maker, classes)}"
        )
        return
    if not are_all_shares:
        return
    is_softmax = classes > 1 and _sum_to_one(logits, class_dim, logits.dtype)
    if not is_softmax and logits.numel() < _SEVERAL * classes:
        return
    maker, taken = "softmax" if is_softmax else "sigmoid", "sigmoid" if classes == 1 else "softmax"
    sums = " and sum to 1 over the classes" if is_softmax else ""
    warn(
        f"mc: all outputs of all passes lie in [0, 1]{sums}, as probabilities do, and their {taken} is taken. If they "
        f"are logits, all is well. If a {maker} returns them, it is taken twice. {_remedy(maker, classes)}"
    )


def _sum_to_one(found: Tensor, class_dim: int, dtype: torch.dtype) -> bool:
    tolerance = 1e-2 if dtype.itemsize < 4 else 1e-5
    return bool(((wide(found).sum(class_dim) - 1).abs() < tolerance).all())


def _remedy(maker: str, classes: int) -> str:
    remedy = f"Let the model return logits: leave its {maker} out"
    if classes > 1 and maker != "softmax":
        remedy += f", and where the {classes} labels do not exclude one another return `logits.unsqueeze(-1)`"
    return f"{remedy}; or leave `task` out, whose mean is that of the probabilities."


def regression_head(output: Any, rebuild: Rebuild, leaves: Sequence[Any]) -> RegressionHead:
    """Return where the prediction is, and its variance if there is one.

    Raises:
        UnsupportedError: If it is not clear where, or the output is a distribution that has no mean.
    """
    paths = rebuild.paths
    if isinstance(output, Distribution) and paths != [()]:
        if not _has_mean(output, leaves):
            raise UnsupportedError(
                f"mc: the output is a distribution without a mean, a {type(output).__name__}, so that it predicts no "
                'number. Ask for task="classification" of one over classes; let the model return another, or a number, '
                "such as its median; or leave `task` out for the statistics of its parameters."
            )
        return RegressionHead(None)
    if ("mean",) in paths:
        mean = paths.index(("mean",))
        found = [(paths.index((name,)), is_log) for name, is_log in _VARIANCES.items() if (name,) in paths]
        if found and _are_alike(leaves, mean, found[0][0]):
            return RegressionHead(mean, *found[0])
    if isinstance(output, tuple | list) and paths == [(0,), (1,)] and _are_alike(leaves, 0, 1):
        return RegressionHead(0, 1)
    main = _leaf(rebuild, leaves, ("mean", "logits"))
    if main is not None:
        return RegressionHead(main)
    raise UnsupportedError(
        f"mc: which part of the output is the prediction is not clear: {_shown(rebuild, leaves)}. Let the model return "
        "it alone, with its variance as a tuple of two tensors of one shape, under the names `mean` and `variance` or "
        "`log_variance`, or as a distribution; or leave `task` out for the statistics of the outputs as they are."
    )


def _has_mean(output: Distribution, leaves: Sequence[Any]) -> bool:
    """Tell whether a distribution has a mean, where its parameters are numbers."""
    try:
        mean = output.mean
    except NotImplementedError:
        return False
    if isinstance(output, Categorical):
        return False
    is_number = all(bool(leaf.isfinite().all()) for leaf in leaves if _is_number(leaf))
    return not is_number or not mean.numel() or bool(mean.isfinite().any())


def _are_alike(leaves: Sequence[Any], first: int, second: int) -> bool:
    one, other = leaves[first], leaves[second]
    return _is_number(one) and _is_number(other) and one.shape == other.shape


def _shown(rebuild: Rebuild, leaves: Sequence[Any]) -> str:
    tensors = [
        f"{name} {str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}"
        for name, leaf in zip(rebuild.names, leaves, strict=True)
        if isinstance(leaf, torch.Tensor)
    ]
    return ", ".join(tensors[:6]) + (f" and {len(tensors) - 6} more" if len(tensors) > 6 else "") or "it has no tensor"
