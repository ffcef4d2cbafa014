"""How the command line shows progress: a live bar with the time left, or plain lines where there is no terminal."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from dropkit.study.progress import Progress, ProgressCallback

__all__ = ["progress_shown"]

_RECENT = 60.0  # seconds whose speed tells the time left


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
        rich.TextColumn("{task.fields[left]}"),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, clock = bar.add_task("preparing", total=None, left="-:--:--"), _Clock()

        def show(state: Progress) -> None:
            if bar.tasks[0].total is None:
                bar.console.print(heading, highlight=False, soft_wrap=True)
                bar.reset(task, total=state.total, completed=state.done)
            if state.note:
                bar.console.print(state.note, highlight=False)
            left = clock.left(state)
            shown = "-:--:--" if left is None else str(timedelta(seconds=round(left)))
            bar.update(task, description=f"{state.phase:<12}", total=state.total, completed=state.done, left=shown)

        yield show


class _Clock:
    """Estimates the time left from recent training; what came before and what was skipped say nothing of its speed."""

    def __init__(self) -> None:
        self.seen: deque[tuple[float, int]] = deque()

    def left(self, state: Progress) -> float | None:
        """Return the seconds left; None where nothing has trained yet."""
        trained = state.done - state.skipped
        if not trained:
            self.seen.clear()
        self.seen.append((time.monotonic(), trained))
        while len(self.seen) > 2 and self.seen[1][0] <= self.seen[-1][0] - _RECENT:
            self.seen.popleft()
        (began, before), (now, after) = self.seen[0], self.seen[-1]
        return None if after == before else (now - began) / (after - before) * (state.total - state.done)


class _Lines:
    """A line for every tenth of the work, with the time left."""

    def __init__(self, heading: str) -> None:
        self.heading = heading
        self.began = time.monotonic()
        self.clock = _Clock()
        self.tenth: int | None = None

    def __call__(self, state: Progress) -> None:
        tenth = 10 * state.done // state.total
        if self.tenth is None:
            self._print(self.heading)
            self.tenth = tenth
        if state.note:
            self._print(state.note)
        left = self.clock.left(state)
        if tenth > self.tenth:
            self.tenth = tenth
            about = "" if left is None else f", about {left:.0f} s left"
            self._print(f"{state.phase}: {tenth * 10} %, {time.monotonic() - self.began:.0f} s{about}")

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
