"""A simulated way to a disk with a descriptor to wait for, so that the engines' contract tests run over it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress

from snapd.blockdev.base import Arena
from tests.sim.disk import Way
from tests.support.virtual_time import Scheduler


class PolledWay(Way):
    """Time passes when somebody reaps. ``fileno`` is readable while something can be, once time passes."""

    def __init__(self, arena: Arena, gate: Callable[[], bool]) -> None:
        self._time = Scheduler()
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        super().__init__(arena, self._time, random.Random(0), gate, self._signal)

    def kick(self) -> None:
        super().kick()
        self._signal()

    def reap(self) -> int:
        self._pass_time()
        count = super().reap()
        self._signal()
        return count

    def _pass_time(self) -> None:
        while self.handed and self._time.step():
            pass

    def fileno(self) -> int:
        return self._eventfd

    def _signal(self) -> None:
        if self.handed or self._ready:
            os.eventfd_write(self._eventfd, 1)
        else:
            with suppress(BlockingIOError):
                os.eventfd_read(self._eventfd)

    def drain(self) -> None:
        """Everything but what the gate holds."""
        self.kick()
        while self.reap():
            self.kick()

    def close(self) -> None:
        """What was handed over happens, no ``done`` is called."""
        if self._eventfd >= 0:
            self._pass_time()
            self.die()
            os.close(self._eventfd)
            self._eventfd = -1
