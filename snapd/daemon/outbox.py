"""The log's lines, written by a thread of their own.

A terminal that is stopped or a full pipe blocks its writer; the control loop renews the lease and waits for none of
them. What cannot be said is kept up to BACKLOG, then dropped and counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, Full, Queue

BACKLOG = 10_000
CLOSE_LIMIT = 0.5  # seconds

Say = Callable[[], object]


class Outbox:
    """Before ``start`` and after ``close`` things are said at once, by the caller."""

    def __init__(self) -> None:
        self._queue: Queue[Say | None] = Queue(BACKLOG)
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def start(self) -> None:
        """From now on nothing waits. Called after the worker's start: a fork wants a process with one thread."""
        self._thread = threading.Thread(target=self._run, name="csnap-outbox", daemon=True)
        self._thread.start()

    def put(self, say: Say) -> None:
        if self._thread is None:
            say()
            return
        try:
            self._queue.put_nowait(say)
        except Full:
            self.dropped += 1

    def close(self) -> None:
        """Give what is left a moment to be said."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            self._queue.put_nowait(None)
        except Full:
            return
        thread.join(CLOSE_LIMIT)
        while not thread.is_alive():
            try:
                say = self._queue.get_nowait()
            except Empty:
                return
            if say is not None:
                say()

    def _run(self) -> None:
        while (say := self._queue.get()) is not None:
            say()
