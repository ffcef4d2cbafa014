"""Threads of tests."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def in_another_thread(act: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run something in a thread of its own, which has ended at the end of the block; its result, or what it raised."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(act())
        except Exception as error:  # noqa: BLE001  # for the test to tell
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield found
    finally:
        thread.join(20)
        assert not thread.is_alive()


class Meeting:
    """A point in a model's forward at which it waits for the test."""

    def __init__(self) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.inside.set()
        assert self.go_on.wait(20)
