"""Running results: statistics of passes that come chunk by chunk, in memory that does not grow with their number."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dropkit.errors import UnsupportedError
from dropkit.uncertainty.bounded import Bounded
from dropkit.uncertainty.results.axes import NO_AXIS, Axis
from dropkit.uncertainty.results.classification import Classes, probabilities
from dropkit.uncertainty.results.elements import Elements, Found, fitted
from dropkit.uncertainty.results.joining import Parts
from dropkit.uncertainty.results.main_output import (
    ClassifierHead,
    RegressionHead,
    are_shares,
    check_logits,
    class_axis,
    classifier_head,
    main_leaves,
    regression_head,
    warn_of_shares,
)
from dropkit.uncertainty.results.moments import wide
from dropkit.uncertainty.results.outputs import Rebuild, flatten
from dropkit.uncertainty.results.quantiles import Sketch, exact
from dropkit.uncertainty.results.regression import Predictions
from dropkit.uncertainty.results.result import Result

__all__ = ["Running"]

_PIECE = 2**22  # most numbers of a leaf that are taken to double precision at once


class Running:
    """Gathers the outputs of passes into a `Result`.

    Args:
        task: ``"classification"``, ``"regression"`` or None; see `Result`.
        class_dim: Of a classification, the axis of classes.
        keep_samples: Whether to keep every pass.
        quantiles: Of a regression, whether to gather quantiles.
        groups: Number of groups of passes for the jackknife.
        examples: Along which axis of each leaf examples lie, as far as that is known.
        shares: For each leaf what is known of one that is made of probabilities.
    """

    def __init__(
        self,
        task: str | None,
        *,
        class_dim: int = -1,
        keep_samples: bool = False,
        quantiles: bool = False,
        groups: int = 8,
        examples: Sequence[Axis] | None = None,
        shares: Sequence[Bounded | None] = (),
    ) -> None:
        self.task, self.class_dim, self.groups = task, class_dim, groups
        self.n = 0
        self._quantiles, self._examples, self._shares = quantiles, examples, shares
        self._samples: list[list[Tensor]] | None = [] if keep_samples else None
        self._leaves: list[Any] = []  # of the first pass
        self._rebuild: Rebuild | None = None
        self._elements: dict[int, Elements] = {}
        self._classes: Classes | None = None
        self._predictions: Predictions | None = None
        self._head: ClassifierHead | RegressionHead | None = None
        self._main: list[int] = []
        self._are_shares = True  # whether all logits so far lie in [0, 1]
        self._made: Bounded | None = None  # what is known of logits that are made of probabilities

    def add(self, template: Any, leaves: Sequence[Tensor | None], passes: int | None = None) -> None:
        """Take passes in.

        Args:
            template: The output of one pass. That of the first call is kept: what is no tensor is its.
            leaves: For every leaf of it, in the order of `flatten`, the leaves of several passes along a new first
                axis, or None for one that is the same in all.
            passes: How many passes there are. Default: what the leaves tell.

        Raises:
            UnsupportedError: If a pass has leaves of other shapes than the first, or it is not clear which are those
                that the task is about, or they are probabilities and not logits. Nothing has been taken in then.
        """
        with torch.inference_mode(False), torch.no_grad():
            if self._rebuild is None:
                self._begin(template)
            passes = self._checked(leaves, passes)
            if not passes:
                return
            whole = [self._whole(i, leaf, passes) for i, leaf in enumerate(leaves)]
            read = self._head.read(whole, self._tree) if self._head else None
            for i, leaf in enumerate(leaves):
                self._add_elements(i, leaf, passes)
            if self._classes and isinstance(read, Tensor):
                self._are_shares = self._are_shares and are_shares(read)
                for piece in _pieces(read):
                    self._classes.add(piece)
            if self._predictions and isinstance(read, tuple):
                self._add_predictions(self._predictions, *read)
            if self._samples is not None:
                self._keep(self._samples, leaves, whole)
            self.n += passes

    def _begin(self, template: Any) -> None:
        leaves, rebuild = flatten(template)
        if self.task == "classification":
            self._head = classifier_head(template, rebuild, leaves)
            logits = self._head.read(leaves, rebuild)
            main = self._head.main
            examples = None if main is None or self._examples is None else self._examples[main]
            axis = logits.dim() - 1 if main is None else class_axis(self.class_dim, logits, examples)
            self._made = None if main is None else next(iter(self._shares[main : main + 1]), None)
            check_logits(self._made, logits.shape[axis])
            self._classes = Classes(logits.detach(), self.groups, axis)
        elif self.task == "regression":
            self._head = regression_head(template, rebuild, leaves)
            prediction, variance = self._head.read(leaves, rebuild)
            keeps_all = self._samples is not None
            is_kept = keeps_all and self._head.main is not None  # by itself
            sketch = Sketch(keeps_all) if (self._quantiles or keeps_all) and not is_kept else None
            self._predictions = Predictions(prediction.detach(), self.groups, variance is not None, sketch)
        if self._head is None:
            self._main = main_leaves(rebuild, leaves)
        elif self._head.main is not None:
            self._main = [self._head.main]
        # A copy can be worked with also where the pass ran in inference mode.
        self._leaves = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._rebuild = rebuild

    def _checked(self, leaves: Sequence[Tensor | None], passes: int | None) -> int:
        """Return the number of passes that the leaves are of."""
        names = self._tree.names
        if len(leaves) != len(names):
            raise UnsupportedError(f"mc: the output has {len(leaves)} parts in one pass and {len(names)} in another.")
        for name, first, leaf in zip(names, self._leaves, leaves, strict=True):
            if leaf is None:
                continue
            passes = len(leaf) if passes is None else passes
            if not isinstance(first, Tensor):
                raise UnsupportedError(f"mc: {name} is a tensor in one pass and a {type(first).__name__} in another.")
            if leaf.shape != (passes, *first.shape):
                raise UnsupportedError(
                    f"mc: {name} has shape {tuple(leaf.shape[1:])} in one pass and {tuple(first.shape)} in another, so "
                    "that there is no mean over passes. Let the model return outputs of one shape."
                )
        if passes is None:
            raise ValueError("no leaf tells how many passes there are")
        return passes

    @property
    def _tree(self) -> Rebuild:
        if self._rebuild is None:
            raise ValueError("there has been no pass yet")
        return self._rebuild

    def _whole(self, i: int, leaf: Tensor | None, passes: int) -> Any:
        """Return a leaf of all passes, also where it is the same in all, or no tensor."""
        first = self._leaves[i]
        if leaf is not None or not isinstance(first, Tensor):
            return first if leaf is None else leaf
        return first.expand(passes, *first.shape)

    def _add_predictions(self, predictions: Predictions, mean: Tensor, variance: Tensor | None) -> None:
        if variance is None:
            for piece in _pieces(mean):
                predictions.add(piece, None)
        else:
            for piece, part in zip(_pieces(mean), _pieces(variance), strict=True):
                predictions.add(piece, part)

    def _add_elements(self, i: int, leaf: Tensor | None, passes: int) -> None:
        """Take a leaf in, unless the task does so; one that has been the same in all passes takes no memory."""
        if self.task is not None and i in self._main:
            return
        if leaf is not None and i not in self._elements:
            self._elements[i] = Elements(self._leaves[i], self.groups)
            if self.n:
                self._add_elements(i, None, self.n)
        if i in self._elements:
            for piece in _pieces(self._whole(i, leaf, passes)):
                self._elements[i].add(piece)

    def _keep(self, samples: list[list[Tensor]], leaves: Sequence[Tensor | None], whole: list[Any]) -> None:
        """Keep the passes themselves; what is the same in all of them is kept once."""
        if not samples:
            samples.extend([] for _ in leaves)
        for i, leaf in enumerate(leaves):
            if self._classes and i in self._main:
                axis = self._classes.class_dim + 1
                samples[i] += [fitted(probabilities(piece, axis), whole[i]) for piece in _pieces(whole[i])]
            else:
                samples[i].append(whole[i] if leaf is None else leaf.detach())

    def tell_of_shares(self) -> None:
        """Warn of logits that look like probabilities."""
        if self._classes and self.n:
            warn_of_shares(self._classes.like, self._classes.class_dim, self._made, self._are_shares)

    def error(self) -> float:
        """Return the largest Monte Carlo error of the mean of the main output, NaN of fewer than two passes."""
        errors = [error.max() for _, error in self._means() if error.numel()]
        return max((float(error) for error in errors), key=lambda error: (math.isnan(error), error), default=0.0)

    @property
    def is_constant(self) -> bool:
        """Whether there have been several passes, and the main output was the same in all of them."""
        return self.n > 1 and self.error() == 0 and any(mean.numel() for mean, _ in self._means())

    def scale(self) -> float:
        """Return the root mean square of the mean of the main output."""
        means = [mean for mean, _ in self._means()]
        squares = sum(float(mean.abs().square().sum()) for mean in means)
        return math.sqrt(squares / max(sum(mean.numel() for mean in means), 1))

    def _means(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the means of the main output and their Monte Carlo errors."""
        gatherer = self._classes or self._predictions
        if gatherer:
            yield gatherer.mean()
            return
        for i in self._main:
            if i in self._elements:
                yield self._elements[i].mean()
            else:
                mean = wide(self._leaves[i])
                yield mean, torch.zeros_like(mean.real)

    def result(self, axes: Sequence[Axis] | None = None, examples: int | None = None, **facts: Any) -> Result:
        """Return the statistics of the passes so far.

        Args:
            axes: For every leaf the axis along which its examples lie. Default: not known of any.
            examples: How many there are. Default: not known.
            facts: What else there is to tell of the passes: ``seed``, ``engine``, ``sites``, ``reached``.
        """
        with torch.inference_mode(False), torch.no_grad():
            rebuild, gatherer = self._tree, self._classes or self._predictions
            found = gatherer.found() if gatherer else {}
            leaves = [self._of_leaf(i, found) for i in range(len(self._leaves))]
            values = {name: value for name, (value, _) in found.items()}
            errors = {name: error for name, (_, error) in found.items() if name != "prediction"}
            if self._predictions:
                values["prediction"] = values["mean"]
            if not gatherer or self._main:
                values["mean"] = rebuild([leaf["mean"][0] for leaf in leaves])
                values["std"] = rebuild.plain([leaf["std"][0] for leaf in leaves])
                errors |= {name: rebuild.plain([leaf[name][1] for leaf in leaves]) for name in ("mean", "std")}
            quantiles = self._predictions.quantiles() if self._predictions else None
            if self._samples is not None:
                passes = [self._all(self._samples[i], i) for i in range(len(self._leaves))]
                values["samples"] = rebuild(passes)
                if self._predictions and self._main:
                    quantiles = exact(passes[self._main[0]])
            class_dim = self._classes.class_dim if self._classes else None
            known = self._known(axes)
            main = self._main[0] if gatherer and self._main else None if gatherer is None else 0
            return Result(Parts(self.task, self.n, values, errors, quantiles, class_dim, facts, known, main, examples))

    def _known(self, axes: Sequence[Axis] | None) -> dict[str, Sequence[Axis]]:
        """Return the axis of examples of each leaf of what is in the type of the output."""
        if axes is None or len(axes) != len(self._leaves):
            axes = [None] * len(self._leaves)
        if self._head is None or self._main:
            return {"mean": axes, "samples": axes}
        found = {axis for axis in axes if axis not in (None, NO_AXIS)}  # of a distribution's parameters
        return {"mean": [found.pop() if len(found) == 1 else None], "samples": axes}

    def _of_leaf(self, i: int, found: Found) -> Found:
        leaf = self._leaves[i]
        if self.task is not None and i in self._main:
            return found
        if i in self._elements:
            return self._elements[i].found()
        is_number = isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
        zero = torch.zeros_like(leaf.real) if is_number else leaf
        return {"mean": (leaf, zero), "std": (zero, zero)}

    def _all(self, kept: list[Tensor], i: int) -> Any:
        """Return a leaf of every pass."""
        varies = i in self._elements or (self.task is not None and i in self._main)
        return torch.cat(kept) if varies else self._whole(i, None, self.n)


def _pieces(values: Tensor) -> tuple[Tensor, ...]:
    """Cut passes into pieces that take bounded memory in double precision."""
    return values.split(max(1, _PIECE // max(values[:1].numel(), 1)))
