"""Time, passed in wherever it decides something.

CLOCK_BOOTTIME, because it goes on while a host is suspended: a lease does too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Returns nanoseconds; never goes back."""


def boottime() -> int:
    """Return the nanoseconds since this machine booted, suspended time included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
