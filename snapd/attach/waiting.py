"""Waiting for a descriptor or a moment, that a signal ends: nothing here sleeps through SIGTERM or SIGHUP."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from types import FrameType, TracebackType

from snapd.clock import boottime
from snapd.units import SECOND


class Stop(BaseException):
    """SIGTERM or SIGINT: end. BaseException, so that nobody takes it for a failure to be tried again."""


class Reload(BaseException):
    """SIGHUP: go on with the program as it is installed now."""


STOPPING = signal.SIGTERM, signal.SIGINT

SIGNALS: dict[int, type[BaseException]] = {signal.SIGTERM: Stop, signal.SIGINT: Stop, signal.SIGHUP: Reload}


class Waiter:
    """Installed while it is entered; only the main thread may."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: dict[int, object] = {}
        self._wanted: type[BaseException] | None = None

    def __enter__(self) -> Waiter:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._signalled)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # what ``hold`` of the program before has kept
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() returned
        os.close(self._read)
        os.close(self._write)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self._wanted is not Stop:
            self._wanted = SIGNALS[number]
        os.write(self._write, b"\0")

    def hold(self) -> None:
        """Before exec, which blocked and pending signals survive: keep SIGTERM and SIGINT for the next Waiter. SIGHUP
        is ignored until then. Raises Stop: one was here before."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        with contextlib.suppress(Reload):
            self.wait(0)

    def wait(self, until: int, fd: int = -1, events: int = select.POLLIN) -> bool:
        """Wait until boottime ``until`` (ns); return whether ``fd`` became ready. Raises Stop or Reload."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        if fd >= 0:
            poll.register(fd, events)
        left = max(0, until - boottime())
        ready = poll.poll(-(-left * 1000 // SECOND))
        if self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            os.read(self._read, 1024)
            raise wanted
        return any(found == fd for found, _ in ready)
