"""Pets the watchdog while a lease's deadline lies ahead, and not once after it.

It looks every quarter of the timeout, in a thread of its own: the daemon may be busy for as long as its deadline lies
ahead. With the daemon dead, stopped or cut off from etcd the deadline passes, and the host resets ``timeout`` later.
"""

from __future__ import annotations

import threading

from snapd.clock import Clock, boottime
from snapd.helper.watchdog import Watchdog


class Petter:
    """``deadline``: boottime nanoseconds, 0 stops at once."""

    def __init__(self, watchdog: Watchdog, clock: Clock = boottime, threaded: bool = True) -> None:
        self.watchdog = watchdog
        self._clock = clock
        self._deadline = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="petter", daemon=True)
        if threaded:
            self._thread.start()

    def until(self, deadline: int) -> None:
        """The lease stands until then."""
        with self._lock:
            self._deadline = deadline
        self.beat()

    def beat(self) -> None:
        """Pet, if the deadline lies ahead now."""
        with self._lock:
            if not self._ended.is_set() and self._clock() < self._deadline:
                self.watchdog.pet()

    def end(self) -> bool:
        """Disarm. Return whether the host is safe from a reset."""
        with self._lock:
            self._ended.set()
            return self.watchdog.disarm()

    def _run(self) -> None:
        while not self._ended.wait(self.watchdog.timeout / 4):
            self.beat()
