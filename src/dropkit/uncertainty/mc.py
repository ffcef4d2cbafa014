"""Monte Carlo dropout: what a model with dropout predicts, and how sure it is, from many passes."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from dropkit._checks import KEY, POSITIVE, Choice, Integer, argument_error, argument_type_error
from dropkit.errors import UnsupportedError
from dropkit.sites.find import Site, Sites
from dropkit.sites.interception.attachment import attached
from dropkit.sites.interception.checkpoints import uncompiled
from dropkit.sites.interception.names import runnable
from dropkit.sites.interception.restoring import restored, set_mode
from dropkit.sites.interception.telling import warn
from dropkit.sites.interception.values import version_of
from dropkit.sites.switching.selection import Selection
from dropkit.uncertainty.engine.batch import Batch
from dropkit.uncertainty.engine.chunks import OtherPathError, UntoldError, run_passes
from dropkit.uncertainty.engine.examples import Said
from dropkit.uncertainty.engine.inputs import Inputs, Output, signature
from dropkit.uncertainty.engine.learning import Learned, learn
from dropkit.uncertainty.engine.lengths import Lengths
from dropkit.uncertainty.engine.passes import Passes
from dropkit.uncertainty.engine.tape import MismatchError
from dropkit.uncertainty.engine.telling import chosen_way, tell
from dropkit.uncertainty.engine.ways import Way, Ways
from dropkit.uncertainty.loading import joined, predicted
from dropkit.uncertainty.results.result import Result
from dropkit.uncertainty.results.running import Running

__all__ = ["MonteCarlo", "mc"]

Where = str | Iterable[str] | Callable[[Site], bool] | None

_TASK = Choice(("classification", "regression"))
_MASKS = Choice(("per_example", "shared"))
_ENGINE = Choice(("auto", "prefix", "batched", "loop"))
_N = Integer(1, 2**30 - 1, "[1, 2**30)")
_CHUNK = Integer(1, 2**30 - 1, "[1, 2**30)", 'Or "auto".')
_CLASS_DIM = Integer(-64, 63, "the range of a tensor's axes")
_BATCH_DIM = Integer(0, 63, "[0, 64)", "Count axes from the first.")
_MOST = 10_000  # passes of n="auto"
_LEAST = 16  # of them, below which an error is not known well enough to stop


def mc(
    model: Module,
    n: int | str = 50,
    *,
    task: str | None = None,
    where: Where = None,
    masks: str = "per_example",
    seed: int | None = None,
    chunk: int | str = "auto",
    engine: str = "auto",
    error: float | None = None,
    class_dim: int = -1,
    keep_samples: bool = False,
    batch_dim: Said = None,
) -> "MonteCarlo":
    """Return a model's predictions as Monte Carlo dropout makes them: the mean of many passes, and how they differ.

    Whatever drops in training drops in every pass (`dropkit.sites.find` lists it), and everything else is in evaluation
    mode; of other noise that training alone draws you are warned, for it may be dropout. The model, its buffers and
    flags, the inputs and all random generators are left as they were, also where a forward raises. No gradients are
    recorded. Compiled models run as they were written.

    What comes before the first site is computed once, and the rest for many passes together, with the values that
    single passes have under the same masks, but for rounding: that is verified on the first inputs of each shape, for
    which the model runs about ten times more. A model for which it does not hold (a mean over the batch shows, say)
    runs one pass after another, and the result says so.

    The masks of pass t, counted from 0, are those of the mask definition at stream ``t + 1``: functions of the seed,
    the site, the pass, the example's number in the batch, and the lengths of an example there, such as the length that
    its batch is padded to. The same object called again draws the same masks, so its predictions are those of one set
    of networks.

    Args:
        model: The model, in either mode, wrapped or not.
        n: Number of passes; or ``"auto"`` to stop when the Monte Carlo error of the mean is at most `error`, after
            10,000 at the latest. Default: 50.
        task: ``"classification"`` of outputs that are logits: their softmax is averaged. ``"regression"`` of outputs
            that are predictions, or pairs of mean and variance. None for mean and standard deviation of outputs of any
            kind. Default: None.
        where: Which sites drop: a shell-style pattern, or several, of names or of their modules', or a function of a
            `dropkit.sites.Site`. Default: all.
        masks: ``"per_example"`` draws a mask for each example; with ``"shared"`` all examples of a pass see one
            network, so that passes are functions of the input: for joint samples, plots of functions, BatchBALD.
            Default: ``"per_example"``.
        seed: The seed, in ``[0, 2**64)``. Default: drawn from PyTorch's generator, once.
        chunk: How many passes run together at most, or ``"auto"`` for what fits in caches. Default: ``"auto"``.
        engine: ``"prefix"`` shares what comes before the first site, ``"batched"`` only runs passes together,
            ``"loop"`` one after another. One that was asked for and would give other values raises. Default:
            ``"auto"``, the first of these that is right.
        error: Of ``n="auto"``, the Monte Carlo error of the mean, in its units, at which to stop: that of the entry
            whose is largest. Default: 0.01 in classification, else 0.01 times the root mean square of the mean.
        class_dim: The axis of classes, in classification; of length 1 it holds the logit of one class against another.
            Default: -1, with a warning where there are four axes or more.
        keep_samples: Whether to keep the outputs of all passes. Default: False, for which memory does not grow with
            their number.
        batch_dim: The axis of the inputs along which examples lie; or a tuple with one for each tensor that the forward
            is given, in their order, None for one that has no examples: ``(1, 0)`` for sequences that have time first,
            and their lengths. Default: found, axis 0 or axis 1: passes have to go beside one another there, or examples
            into another order, each with its masks.

    Returns:
        A callable that takes what the model's forward takes and returns a `Result`; its method `batches` takes a
        ``DataLoader``.

    Raises:
        ArgumentError: If a value is out of range; on the first call, if nothing in the model drops or nothing is
            chosen.
        ArgumentTypeError: If `model` is no module, or something else has a wrong type.
        UnsupportedError: On a call, if the engine that was asked for is not right for the model, a site cannot be
            turned on, or a classifier's outputs are those of a softmax or a sigmoid.

    Examples:
        >>> import torch, dropkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 3))
        >>> predict = dropkit.uncertainty.mc(model, n=100, task="classification", seed=0)
        >>> result = predict(torch.randn(5, 4))
        >>> result.mean.shape, bool((result.mutual_information >= 0).all())
        (torch.Size([5, 3]), True)

    References:
        Gal and Ghahramani (2016), "Dropout as a Bayesian approximation: representing model uncertainty in deep
        learning", equations 6 and 7.
    """
    if not isinstance(model, Module):
        raise argument_type_error("mc", "model", "a torch.nn.Module", model)
    if n != "auto":
        n = _N.check("mc", "n", n) if not isinstance(n, str) else _refuse("n", 'an integer in [1, 2**30) or "auto"', n)
    if chunk != "auto":
        rule = 'an integer in [1, 2**30) or "auto"'
        chunk = _CHUNK.check("mc", "chunk", chunk) if not isinstance(chunk, str) else _refuse("chunk", rule, chunk)
    if error is not None:
        error = POSITIVE.check("mc", "error", error)
        if n != "auto":
            raise argument_error("mc", "error", 'None unless n="auto"', error)
    if not isinstance(keep_samples, bool):
        raise argument_type_error("mc", "keep_samples", "True or False", keep_samples)
    return MonteCarlo(
        model,
        n,
        task=task if task is None else _TASK.check("mc", "task", task),
        selection=Selection.of("mc", where, None),
        masks=_MASKS.check("mc", "masks", masks),
        seed=int(torch.randint(2**63 - 1, ())) if seed is None else KEY.check("mc", "seed", seed),
        chunk=None if chunk == "auto" else int(chunk),
        engine=_ENGINE.check("mc", "engine", engine),
        error=error,
        class_dim=_CLASS_DIM.check("mc", "class_dim", class_dim),
        keep_samples=keep_samples,
        batch_dim=_checked(batch_dim),
    )


def _checked(batch_dim: Any) -> Said:
    """Return the axis of examples that a user has named, or those of each tensor."""
    if isinstance(batch_dim, tuple | list):
        axes = tuple(None if each is None else _BATCH_DIM.check("mc", "batch_dim", each) for each in batch_dim)
        return axes if set(axes) - {None} else _refuse("batch_dim", "an axis, or one for each tensor", batch_dim)
    return batch_dim if batch_dim is None else _BATCH_DIM.check("mc", "batch_dim", batch_dim)


def _refuse(name: str, rule: str, value: object) -> Any:
    raise argument_error("mc", name, rule, value)


class MonteCarlo:
    """A model that predicts by Monte Carlo dropout, as `mc` makes it.

    It keeps what it has learned of the model: of one that is changed, in its modules or its rates, make another.
    """

    def __init__(
        self,
        model: Module,
        n: int | str,
        *,
        task: str | None,
        selection: Selection,
        masks: str,
        seed: int,
        chunk: int | None,
        engine: str,
        error: float | None,
        class_dim: int,
        keep_samples: bool,
        batch_dim: Said,
    ) -> None:
        self.model, self.n, self.task, self.masks, self.seed = model, n, task, masks, seed
        self._selection, self._chunk, self._engine, self._error = selection, chunk, engine, error
        self._class_dim, self._keep_samples, self._batch_dim = class_dim, keep_samples, batch_dim
        self._learned: Learned | None = None
        self._ways: dict[Any, Ways] = {}  # by the kind of inputs
        self._has_dropped = False  # any site, in any call
        self._asked, self._told = set[str](), set[str]()  # sites met and learned of later; what was warned of
        self._copies_parameters = True  # until it is known that forwards leave them alone

    @property
    def sites(self) -> Sites:
        """The sites that drop, as far as they are known: none before the first call."""
        learned = self._learned
        empty = "no site is known before the first call"
        return Sites([] if learned is None else [learned.known[name] for name in learned.chosen], empty)

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        """Predict.

        Args:
            *args: What the model's forward takes.
            **kwargs: The same, by name.

        Returns:
            What the passes tell.
        """
        return self._predict(args, kwargs, 0, 0)[0]

    def batches(self, loader: Iterable[Any], *, progress: bool = False) -> Result:
        """Predict batch after batch, with masks that do not depend on how examples are batched.

        Where batches are padded to different lengths they do, unless dropout is recurrent, of whole channels, or behind
        pooling or packing: you are warned, once. Pad all to one length then.

        Args:
            loader: What yields batches, such as a ``DataLoader``. A mapping has what the model's forward takes, by
                name; ``label``, ``labels``, ``label_ids``, ``target`` and ``targets`` are left out where it does not
                take them. Of a tuple or a list, as data sets yield with targets, the first entry alone is given to the
                model: a tensor, such a mapping, or a tuple or a list of inputs if the forward needs several.
            progress: Whether to show a bar. Default: False.

        Returns:
            The results of all batches, one after another, as `Result.concatenate` joins them.

        Raises:
            ArgumentError: If there is no batch, or results cannot be joined.
            ArgumentTypeError: If `loader` cannot be iterated over, or the forward does not take what it yields.

        Examples:
            >>> import torch, dropkit
            >>> from torch.utils.data import DataLoader, TensorDataset
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
            >>> predict = dropkit.uncertainty.mc(model, n=10, task="regression", seed=0)
            >>> inputs_and_targets = TensorDataset(torch.randn(20, 4), torch.randn(20, 1))
            >>> predict.batches(DataLoader(inputs_and_targets, batch_size=8)).mean.shape
            torch.Size([20, 1])
        """
        return joined(self.each(loader, progress=progress))

    def each(self, loader: Iterable[Any], *, progress: bool = False) -> Iterator[Result]:
        """Predict batch after batch, as `batches` does, and yield the result of each as soon as it is there.

        So memory does not grow with the number of batches, also with `keep_samples`.

        Args:
            loader: As for `batches`.
            progress: Whether to show a bar. Default: False.

        Returns:
            An iterator over results, one a batch.

        Raises:
            ArgumentTypeError: If `loader` cannot be iterated over.

        Examples:
            >>> import torch, dropkit
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5))
            >>> predict = dropkit.uncertainty.mc(model, n=10, seed=0, keep_samples=True)
            >>> [tuple(result.samples.shape) for result in predict.each(torch.randn(5, 4).split(2))]
            [(10, 2, 8), (10, 2, 8), (10, 1, 8)]
        """
        lengths = Lengths(self.masks == "shared", self._told)
        return predicted(self.model, loader, self._predict, lengths, progress)

    def __repr__(self) -> str:
        """Show the model's class, and what was asked for."""
        return f"MonteCarlo({type(self.model).__name__}, n={self.n!r}, task={self.task!r}, seed={self.seed})"

    def _predict(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], first: int, step: int, has_rows: bool = False
    ) -> tuple[Result, Way]:
        learned = self._learned
        if learned is None:
            learned = self._learned = learn(self.model, self._selection, args, kwargs)
        with self._attached(learned) as handler:
            batch = Batch(runnable(self.model), handler, Inputs(args, kwargs), self.masks == "shared", first, step)
            versions = [version_of(parameter) for parameter in self.model.parameters()]
            running, way = self._run(batch)
            self._copies_parameters = versions != [version_of(parameter) for parameter in self.model.parameters()]
        if handler.unknown:  # a branch that no inputs before have taken
            self._asked |= handler.unknown
            self._ways.pop(signature(batch.inputs), None)  # which were found without it
            self._learned = learn(self.model, self._selection, args, kwargs, learned.noise).joined(learned)
            return self._predict(args, kwargs, first, step, has_rows)
        if not handler.fired:
            names = ", ".join(sorted(learned.chosen))
            what = f"mc: none of the sites {names} drops on these inputs, though they did when the model was looked at."
            keeps = "If it keeps what it computes from one forward to the next, let it keep nothing in evaluation mode."
            if not self._has_dropped:
                raise UnsupportedError(f"{what} {keeps}")
            warn(f"{what} All passes are the same, as where no example takes the way that they are on. {keeps}")
        self._has_dropped |= bool(handler.fired)
        running.tell_of_shares()
        if running.is_constant and handler.fired:
            warn(
                f"mc: {running.n} passes gave the same output, although {', '.join(handler.fired)} dropped. That is no "
                "certainty: what they drop does not reach the output, as where a later p is 1, or passes are too few."
            )
        fired = Sites(handler.known[name] for name in handler.fired)
        reached = running.error() <= self._limit(running) if self.n == "auto" else None
        examples = batch.inputs.rows if has_rows else None
        if way.examples is not None:
            examples = way.examples.size
        facts = {"seed": self.seed, "engine": way.name, "sites": fired, "reached": reached}
        return running.result(way.leaves, examples, **facts), way

    @contextmanager
    def _attached(self, learned: Learned) -> Iterator[Passes]:
        """Run the model, meanwhile, as passes want it, and leave all as it was."""
        known = learned.known, learned.chosen, learned.plan
        handler = Passes(*known, self.seed, self._selection, self._asked, learned.silent)
        model = runnable(self.model)
        with ExitStack() as stack:
            stack.enter_context(restored(model, self._copies_parameters))
            stack.enter_context(attached(model, handler, is_eager=True))
            stack.enter_context(uncompiled())
            stack.enter_context(torch.no_grad())
            set_mode(model, False)
            yield handler

    def _run(self, batch: Batch) -> tuple[Running, Way]:
        """Run all passes, in a way that is right for these inputs: for their kind, and for the path that they take."""
        ways = self._ways.setdefault(signature(batch.inputs), Ways())
        asked = self._engine, self._batch_dim, self._told
        way, is_new = ways.last or chosen_way(batch, *asked), ways.last is None
        while True:
            try:
                return self._passes(batch, way, ways, is_new), way
            except OtherPathError as other:
                known = ways.of(other.path)
                is_new = known is None or known is way
                way = chosen_way(batch, *asked) if known is None or is_new else known
                if is_new:  # what it does now may be what only a first forward does
                    ways.add(other.path, way)
            except MismatchError as error:  # values decide what is run
                way = replace(way, engine="loop", is_batched=False, axes=None, reason=str(error))
                is_new = True
                tell(way, self._engine, self._told)
            except UntoldError as error:  # other rows come to a site than did where the way was found
                if way.examples is None:
                    raise error.error from None
                way = chosen_way(batch, *asked, reason=str(error) if is_new else "")
                ways, is_new = Ways(), True  # of no other inputs

    def _passes(self, batch: Batch, way: Way, ways: Ways, is_new: bool) -> Running:
        """Run all passes in a way, which is new, or else has to be that for the path that the first pass takes."""
        running = Running(
            self.task,
            class_dim=self._class_dim,
            keep_samples=self._keep_samples,
            quantiles=self.task == "regression",
            examples=way.leaves,
            shares=way.shares,
        )

        def take(first: Output, leaves: list[Tensor | None], count: int) -> bool:
            if not any(isinstance(leaf, Tensor) for leaf in first.leaves):
                raise UnsupportedError(
                    f"mc: the model returned no tensor, but a {type(first.value).__name__}. Let its forward return one."
                )
            running.add(first.value, leaves, count)
            return bool(batch.handler.unknown) or self._is_enough(running)

        def is_known(path: tuple[Any, ...]) -> bool:
            if is_new:
                ways.add(path, way)
            return ways.of(path) is way

        is_auto = self.n == "auto"
        most = _MOST if is_auto else int(self.n)
        run_passes(batch, way, most, self._chunk, take, is_known=is_known, is_growing=is_auto)
        return running

    def _is_enough(self, running: Running) -> bool:
        if self.n != "auto" or running.n < _LEAST:
            return False
        error = running.error()
        if math.isnan(error):  # which more passes do not change
            warn(
                f"mc: passes stop after {running.n}, for some outputs are not finite, and nor is the error of their "
                "mean. Look for inputs that are not finite, or ask for a number of passes."
            )
        return math.isnan(error) or error <= self._limit(running)

    def _limit(self, running: Running) -> float:
        """Return the error at which passes stop."""
        return self._error or (0.01 if self.task == "classification" else 0.01 * running.scale())
