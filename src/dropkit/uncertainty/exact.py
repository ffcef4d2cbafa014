"""Every subnetwork of a small model: what averaging over all masks gives, beside weight scaling."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from dropkit._checks import Choice, Integer, argument_error, argument_type_error
from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.sites.interception.attachment import attached
from dropkit.sites.interception.checkpoints import uncompiled
from dropkit.sites.interception.names import runnable
from dropkit.sites.interception.restoring import set_mode
from dropkit.sites.interception.underneath import check_no_script
from dropkit.uncertainty.dropping import active_sites, arrays_refused, dropping
from dropkit.uncertainty.engine.examples import Examples
from dropkit.uncertainty.engine.inputs import Inputs
from dropkit.uncertainty.subnetworks.calls import REMEDY, Drawn, Learner, Name, Replay
from dropkit.uncertainty.subnetworks.means import Means, are_alike
from dropkit.uncertainty.subnetworks.probabilities import Origins, refuse_probabilities
from dropkit.uncertainty.subnetworks.result import Difference, Subnetworks
from dropkit.uncertainty.subnetworks.rounding import Within, computing_type, measured
from dropkit.uncertainty.subnetworks.units import TRIED, Chunk, Units, spread

__all__ = ["Difference", "Enumeration", "Subnetworks", "exact"]

_OUTPUT = Choice(("softmax", "sigmoid", "raw"))
_LIMIT = Integer(1, 2**40, "[1, 2**40]")
_AS_IT_IS: Within = nullcontext()
_MEASURED = 16  # subnetworks whose rounding is measured, at most
_OTHERS = 6  # inputs, besides the first, that may be without examples though as long
_ONE_EXAMPLE = "Give a single example x as x[None]."
_AXIS = Integer(-64, 63, "the range of a tensor's axes")


def exact(model: Module, *, output: str = "softmax", class_dim: int = -1, limit: int = 2**20) -> "Enumeration":
    """Return a callable that runs every subnetwork of a small model, and compares their means with weight scaling.

    A subnetwork is what one mask of all dropout leaves. Means are weighted with the masks' probabilities, which at
    ``p = 0.5`` are equal, and so is the variance: all are what `mc` tends to as its passes grow in number.

    What is known: the renormalised geometric mean of softmax outputs is the softmax of the mean logits. So it equals
    weight scaling exactly where the mean logits are those of evaluation: for a softmax layer after dropout of its
    inputs, at every rate and for survivors scaled by ``1 / (1 - p)``, and for deeper networks whose maps are all
    linear. In the literature masks count alike, which is the same mean at ``p = 0.5`` alone. Outputs of linear
    networks have the arithmetic mean of weight scaling, too; their softmax has not. Where dropout comes before an
    activation such as a ReLU neither holds, and the table says by how much.

    Whether means coincide is told for each element by what rounding may make of it: 64 times the accuracy of the
    coarsest type that the model computes in, 16 times in half precision, of the largest value over all masks, or four
    times what rounding every operation of a few subnetworks at random was seen to change, if that is more. Where this
    may hide what matters beside the standard deviation, the table says "unclear", and the model in float64 tells. TF32,
    in which convolutions on CUDA compute unless PyTorch is told otherwise, counts as float32.

    That examples do not depend on each other is verified: a few subnetworks of each forward run alone, too.

    Args:
        model: The model, in either mode; it is left as it was. Its output is one tensor; what it gives for an example
            does not depend on the others.
        output: What the model's output is: ``"softmax"`` for logits of classes, whose probabilities are averaged,
            ``"sigmoid"`` for logits of yes or no, ``"raw"`` for values as they are. Default: ``"softmax"``.
        class_dim: Axis of the classes. Default: -1.
        limit: Most subnetworks to run. Default: ``2 ** 20``.

    Returns:
        A callable that takes what the model takes, and returns `Subnetworks`, which prints as a table. Axis 0 of its
        inputs counts examples, and they are all run with all masks.

    Raises:
        ArgumentError: If a value is out of range; by a call, if no dropout is active, or there are more subnetworks
            than `limit`, or the softmax is over one logit.
        ArgumentTypeError: If an argument has a wrong type.
        UnsupportedError: By a call, if noise of a site is no mask of one rate, if examples lie along no axis of a mask
            or depend on each other, if what drops depends on the data, or a TorchScript module draws dropout; or if
            outputs are probabilities where logits are asked for.

    Examples:
        >>> import torch, dropkit
        >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 3)).double()
        >>> _ = torch.nn.init.eye_(model[1].weight), torch.nn.init.zeros_(model[1].bias)
        >>> print(dropkit.uncertainty.exact(model)(torch.tensor([[1.0, 2.0, 3.0, 4.0]]).double()))
        2**4 = 16 subnetworks; standard deviation over masks: 0.346 on average
                                          largest difference  divergence  coincide
        arithmetic mean - weight scaling  1.41e-01            4.82e-02    no
        geometric mean - weight scaling   ...                 yes
        arithmetic mean - geometric mean  1.41e-01            4.82e-02    no

    References:
        Hinton, Srivastava, Krizhevsky, Sutskever and Salakhutdinov (2012), "Improving neural networks by preventing
        co-adaptation of feature detectors"; Baldi and Sadowski (2013), "Understanding dropout", for normalised
        geometric means; Goodfellow, Bengio and Courville (2016), "Deep Learning", section 7.12.
    """
    return Enumeration(model, output=output, class_dim=class_dim, limit=limit)


class Enumeration:
    """What `exact` returns.

    Args:
        model: As for `exact`.
        output: As for `exact`.
        class_dim: As for `exact`.
        limit: As for `exact`.
    """

    def __init__(self, model: Module, *, output: str = "softmax", class_dim: int = -1, limit: int = 2**20) -> None:
        if not isinstance(model, Module):
            raise argument_type_error("exact", "model", "a torch.nn.Module", model)
        self.model = model
        self.output = _OUTPUT.check("exact", "output", output)
        self.class_dim = _AXIS.check("exact", "class_dim", class_dim)
        self.limit = _LIMIT.check("exact", "limit", limit)

    def __call__(self, *args: Any, **kwargs: Any) -> Subnetworks:
        """Run all subnetworks.

        Args:
            *args: What the model's forward takes.
            **kwargs: The same, by name.

        Returns:
            What they predict.
        """
        inputs = Inputs(args, kwargs)
        along = inputs.along(0)
        if along is None or not along.size:
            raise _no_examples(inputs)
        check_no_script("exact", self.model)
        sites = active_sites("exact", self.model, args, kwargs)
        model = runnable(self.model)
        with dropping(model, sites), uncompiled():
            along = _examples(model, inputs, along)
            units, drawn = self._units(model, inputs, along)
            return self._averaged(model, inputs, units, Replay(drawn), along)

    def _units(self, model: Module, inputs: Inputs, along: Examples) -> tuple[Units, Mapping[Name, Drawn]]:
        """Return the units that draw, as told by two forwards of different numbers of examples, and what they draw."""
        once, twice = Learner(), Learner()
        for copies, learner in ((1, once), (2, twice)):
            with attached(model, learner, is_eager=True):
                found = _output(model, inputs, copies, along)
            learner.check()
            if learner.by_hand:
                _check_masks(model, inputs, along, copies, learner.drawn, found)
        units = Units(once.drawn, twice.drawn, along.size)
        if units.count > math.log2(self.limit):
            rule, remedy = f"one of at most {self.limit} subnetworks", "Give a smaller model, or raise the limit."
            raise argument_error("exact", "model", rule, f"2**{units.count}", f"{remedy} {REMEDY}")
        return units, once.drawn

    def _averaged(self, model: Module, inputs: Inputs, units: Units, replay: Replay, along: Examples) -> Subnetworks:
        def run(chunk: Chunk, within: Within = _AS_IT_IS) -> Tensor:
            count = len(chunk.probabilities)
            replay.start(chunk.masks)
            found = _output(model, inputs, count, along, within)
            replay.check()
            return found.unflatten(0, (count, along.size))

        def evaluate(within: Within = _AS_IT_IS) -> Tensor:  # with dropout that is always on dropping nothing either
            replay.start(None)
            return _evaluated(model, inputs, along, within)

        def compare(chunk: Chunk, together: Tensor, positions: Sequence[int]) -> None:
            alone = torch.cat([run(units.part(chunk, [position])) for position in positions])
            if not are_alike(alone, together, positions, rounding):
                what = "what this model gives for an example depends on what runs with it"
                raise UnsupportedError(f"exact: {what}, so that subnetworks cannot run together. {REMEDY}")

        with attached(model, replay, is_eager=True):
            trial, origins = units.trial(), Origins()
            with origins:
                evaluated, tried = evaluate(), run(trial)
            maker = origins.maker(tried) or origins.maker(evaluated)
            if maker and self.output != "raw":
                refuse_probabilities(self.output, f"a {maker} returns them")
            few = units.part(trial, range(min(_MEASURED, units.together)))
            rounding = measured(
                lambda within: torch.cat([run(few, within), evaluate(within)[None]]), computing_type(model, evaluated)
            )
            means = Means(self.output, self.class_dim, evaluated, rounding)
            compare(trial, tried, range(TRIED))
            for number, chunk in enumerate(units.chunks()):
                found = run(chunk)
                if units.together > 1:
                    compare(chunk, found, [spread(number, units.together)])  # for what few masks bring about
                means.add(chunk.probabilities, found)
        return means.result(units.count)


def _no_examples(inputs: Inputs) -> ArgumentError:
    arrays = arrays_refused("exact", inputs.leaves)
    if arrays is not None:
        return arrays
    shapes = inputs.shapes
    remedy = "" if shapes else "Give what the model's forward takes."
    return argument_error("exact", "inputs", "tensors with an axis 0 of examples, 1 or more", shapes, remedy)


def _examples(model: Module, inputs: Inputs, along: Examples) -> Examples:
    """Return which inputs have the examples: all of their length, unless the model then takes no more of them.

    Others, such as weights of classes, may be as long by chance.
    """
    others = sorted(along.which)[1:][:_OTHERS]
    for count in range(len(others) + 1) if others else ():
        for left_out in combinations(others, count):
            which = {number: axis for number, axis in along.which.items() if number not in left_out}
            tried = replace(along, which=which)
            with suppress(Exception):  # whatever a model makes of inputs that do not fit together
                _output(model, inputs, 2, tried)
                return tried
    return along  # whose error tells


def _output(model: Module, inputs: Inputs, copies: int, along: Examples, within: Within = _AS_IT_IS) -> Tensor:
    """Run a model on copies of its inputs, one after another."""
    args, kwargs = inputs.repeated(along, copies)
    try:
        with within:
            found = model(*args, **kwargs)
    except RuntimeError as error:
        if copies == 1 or not inputs.is_vector:
            raise
        rule = "tensors whose axis 0 counts examples"
        raise argument_error("exact", "inputs", rule, f"one of shape {inputs.shapes[0]}", _ONE_EXAMPLE) from error
    if isinstance(found, Tensor) and found.is_floating_point() and found.shape[:1] == (copies * along.size,):
        return found
    rule = "one whose output is a floating tensor with as many examples as its input"
    if not isinstance(found, Tensor):
        remedy = "Give a module whose forward returns its tensor, such as the attribute `logits` of what this one does."
        raise argument_error("exact", "model", rule, f"a {type(found).__name__}", remedy)
    value = f"{found.dtype} of shape {tuple(found.shape)} for inputs of shapes {inputs.shapes}"
    raise argument_error("exact", "model", rule, value, _ONE_EXAMPLE if inputs.is_vector else "")


def _check_masks(
    model: Module, inputs: Inputs, along: Examples, copies: int, drawn: Mapping[Name, Drawn], expected: Tensor
) -> None:
    """Raise unless copies of the examples give the same again under the masks that they drew by hand."""
    replay = Replay(drawn)
    replay.start({name: each.mask for name, each in drawn.items()})
    with attached(model, replay, is_eager=True):
        found = _output(model, inputs, copies, along)
    tolerance = max(1e-3, 16 * torch.finfo(found.dtype).eps)
    allowed = tolerance * float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    if not torch.allclose(found, expected, rtol=tolerance, atol=allowed, equal_nan=True):
        what = "a random tensor that a mask is made of is put to other use, too"
        raise UnsupportedError(f"exact: {what}, so that the mask does not tell what the model gives. {REMEDY}")


def _evaluated(model: Module, inputs: Inputs, along: Examples, within: Within) -> Tensor:
    """Return what a model gives in evaluation mode."""
    flags = [(module, module.training) for module in model.modules()]
    set_mode(model, training=False)
    found = _output(model, inputs, 1, along, within)
    for module, training in flags:
        module.training = training
    return found
