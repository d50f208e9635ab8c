"""One host's CLOCK_BOOTTIME: another offset and another rate than everybody's.

Rates differ by at most SKEW: real crystals by 0.02 %. What csnap can bear is the margin, a fifth of the TTL at least.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.support.virtual_time import Scheduler, Timer

UNIT = 1_000_000
SKEW = 20_000
"""Parts per million."""


class HostClock:
    """``rate`` in parts per million: UNIT is the world's own."""

    def __init__(self, scheduler: Scheduler, offset: int = 0, rate: int = UNIT) -> None:
        self._scheduler, self._offset, self._rate = scheduler, offset, rate

    def now(self) -> int:
        return self._scheduler.now() * self._rate // UNIT + self._offset

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer:
        """Call when this clock shows ``when``."""
        return self._scheduler.call_at(-(-(when - self._offset) * UNIT // self._rate), callback)
