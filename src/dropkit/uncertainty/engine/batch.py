"""A model and inputs, to run passes over: one at a time, or several together."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn import Module

from dropkit.sites.samples import Numbers
from dropkit.uncertainty.engine.examples import Examples, Met, SiteCall
from dropkit.uncertainty.engine.inputs import Inputs, Output
from dropkit.uncertainty.engine.passes import Drawing, Passes
from dropkit.uncertainty.engine.tape import Player, Recorder, Reel, Tape
from dropkit.uncertainty.engine.traces import Trace
from dropkit.uncertainty.shares import Shares

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """A model, and inputs that it is run on.

    Args:
        model: The model.
        handler: What gives its sites their masks.
        inputs: The inputs.
        is_shared: Whether all examples have the same masks in a pass.
        first: Number of the first example.
        step: Number of the batch.
    """

    model: Module
    handler: Passes
    inputs: Inputs
    is_shared: bool
    first: int
    step: int

    @cached_property
    def _precision(self) -> float:
        """The relative precision of the model's parameters, of several types that of the finest; 0 if it has none."""
        types = {each.dtype for each in self.model.parameters() if each.is_floating_point() or each.is_complex()}
        return min((torch.finfo(each).eps for each in types), default=0.0)

    def drawing(
        self,
        examples: Examples | None,
        streams: tuple[int, ...],
        reel: Reel | None = None,
        order: tuple[int, ...] | None = None,
    ) -> Drawing:
        """Return the masks of passes, for examples in their order or in another."""
        if examples is None:
            return Drawing(self.step, streams, None, reel)
        if self.is_shared:
            runs: tuple[tuple[int, int], ...] = ((0, 1),) * examples.size
        elif order is None:
            runs = ((self.first, examples.size),)
        else:
            runs = tuple((self.first + place, 1) for place in order)
        return Drawing(0, streams, Numbers(runs, examples.axis, streams=streams), reel, examples.axes)

    def run(self, drawing: Drawing, given: Any, trace: Trace | None = None, shares: Shares | None = None) -> Output:
        """Run the model."""
        args, kwargs = given
        self.handler.start(drawing, trace, shares)
        output = Output.of(self.model(*args, **kwargs))
        output.path, output.precision = tuple(self.handler.path), self._precision
        if trace is not None:
            trace.end(output.names, output.leaves)
        if shares is not None:
            output.shares = tuple(map(shares.of, output.leaves))
        return output

    def plain(self, examples: Examples | None, stream: int, shares: Shares | None = None) -> Output:
        """Run one pass as the model is written."""
        return self.run(self.drawing(examples, (stream,)), self.inputs.plain(), shares=shares)

    def met(self, examples: Examples | None = None) -> dict[SiteCall, Met]:
        """Return what sites drop in a pass over the inputs, or over each of their examples twice."""
        self.run(Drawing(self.step, (1,), None), self.inputs.doubled(examples))
        return self.handler.met

    def reordered(self, examples: Examples, stream: int, order: tuple[int, ...]) -> Output:
        """Run one pass over examples in another order, some of them twice or not at all, each with its masks."""
        return self.run(self.drawing(examples, (stream,), order=order), self.inputs.reordered(examples, order))

    def record(self, examples: Examples | None, stream: int) -> tuple[Tape, Output]:
        """Run one pass, and record what comes before the first site."""
        tape = Tape()
        recorder = Recorder(tape)
        return tape, self.run(self.drawing(examples, (stream,), recorder), self.inputs.recorded(recorder))

    def record_together(
        self, examples: Examples, streams: tuple[int, ...], trace: Trace | None = None
    ) -> tuple[Tape, Output]:
        """Run passes together, and record what comes before the first site."""
        tape = Tape()
        recorder = Recorder(tape)
        given = self.inputs.recorded(recorder, examples, len(streams))
        return tape, self.run(self.drawing(examples, streams, recorder), given, trace).filled()

    def play(self, examples: Examples | None, streams: tuple[int, ...], tape: Tape) -> Output:
        """Run passes together, with what comes before the first site from a tape."""
        player = Player(tape, len(streams))
        given = self.inputs.played(player, examples if len(streams) > 1 else None)
        return self.run(self.drawing(examples, streams, player), given)

    def together(self, examples: Examples, streams: tuple[int, ...], trace: Trace | None = None) -> Output:
        """Run passes together."""
        return self.run(self.drawing(examples, streams), self.inputs.repeated(examples, len(streams)), trace)
