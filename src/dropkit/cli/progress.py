"""How the command line shows progress: a live bar with the time left, or plain lines where there is no terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dropkit.study.progress import Progress, ProgressCallback

__all__ = ["progress_shown"]


@contextmanager
def progress_shown(heading: str, *, quiet: bool) -> Iterator[ProgressCallback | None]:
    """Show progress on stderr under a heading while the block runs; `quiet` shows nothing."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar(heading) as callback:
            yield callback
    else:
        yield _Lines(heading)


@contextmanager
def _bar(heading: str) -> Iterator[ProgressCallback]:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True), speed_estimate_period=60, transient=True) as bar:
        task = bar.add_task("preparing", total=None)

        def show(state: Progress) -> None:
            if bar.tasks[0].total is None:  # what an earlier run did is no part of this one's speed
                bar.console.print(heading, highlight=False, soft_wrap=True)
                bar.reset(task, total=state.total, completed=state.done)
            if state.note:
                bar.console.print(state.note, highlight=False)
            bar.update(task, description=f"{state.phase:<12}", total=state.total, completed=state.done)

        yield show


class _Lines:
    """A line for every tenth of the work, with the time left."""

    def __init__(self, heading: str) -> None:
        self.heading = heading
        self.began = time.monotonic()
        self.first: int | None = None
        self.tenth = 0

    def __call__(self, state: Progress) -> None:
        if self.first is None:
            self._print(self.heading)
            self.first = state.done
            self.tenth = 10 * state.done // state.total
        if state.note:
            self._print(state.note)
        tenth = 10 * state.done // state.total
        if tenth > self.tenth:
            self.tenth = tenth
            spent = time.monotonic() - self.began
            left = spent * (state.total - state.done) / max(state.done - self.first, 1)
            self._print(f"{state.phase}: {tenth * 10} %, {spent:.0f} s, about {left:.0f} s left")

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
