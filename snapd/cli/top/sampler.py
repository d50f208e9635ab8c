"""Asks the daemon again and again, in a thread: one that does not answer must not hold up the key ``q``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from snapd.cli.client import ask
from snapd.cli.top.model import History, Model
from snapd.cli.top.observation import Observation, parse
from snapd.errors import CsnapError, Refused
from snapd.printable import one_line

Observe = Callable[[], Observation]


def observing(path: str) -> Observe:
    """Ask the daemon at this socket. Raises NoDaemon, Refused, CsnapError."""

    def observe() -> Observation:
        return parse(ask(path, {"command": "observe"}))

    return observe


class Sampler:
    """``wake`` is called in the thread after each attempt. A daemon that is away, or too old to know the command, is
    remembered as silence; ``refused``: this user may not ask, now or later, and the thread has ended."""

    def __init__(self, observe: Observe, interval: float, wake: Callable[[], None]) -> None:
        self.refused: Refused | None = None
        self._observe, self._interval, self._wake = observe, interval, wake
        self._history = History()
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def now(self) -> None:
        """Ask out of turn."""
        self._due.set()

    def stop(self) -> None:
        """It ends as soon as the daemon has answered or its time is over; nobody waits for that."""
        self._stopping = True
        self._due.set()

    def look(self) -> tuple[Model | None, str]:
        """What is known, and why nothing is."""
        with self._lock:
            silence = self._history.silence
            return self._history.model(), silence[1] if silence is not None else ""

    def _run(self) -> None:
        while not self._stopping:
            begun = time.monotonic()
            try:
                self._try()
            except Refused as error:
                self.refused = error
                self._stopping = True
            self._wake()
            self._due.wait(max(0.0, self._interval - (time.monotonic() - begun)))
            self._due.clear()

    def _try(self) -> None:
        try:
            found = self._observe()
        except Refused:
            raise
        except CsnapError as error:
            with self._lock:
                self._history.silent(one_line(error), time.time())
        else:
            with self._lock:
                self._history.answered(found, time.time())
