"""A control loop that runs in a thread, for tests that talk to what it serves from outside."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from snapd.daemon.loop import Loop

T = TypeVar("T")
LIMIT = 20.0  # seconds


class Looped:
    """``call`` runs something in the loop's thread and returns what it returned."""

    def __init__(self) -> None:
        self.loop = Loop()
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    def call(self, action: Callable[[], T]) -> T:
        done = threading.Event()
        found: list[T] = []

        def run() -> None:
            try:
                found.append(action())
            finally:
                done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(LIMIT)
        return found[0]

    def __enter__(self) -> Looped:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LIMIT)
        self.loop.close()
