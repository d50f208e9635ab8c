"""Time, passed in wherever it decides something.

CLOCK_BOOTTIME, because it goes on while a host is suspended: a lease does too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

Clock = Callable[[], int]
"""Returns nanoseconds; never goes back."""


boottime: Clock = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
"""Return the nanoseconds since this machine booted, suspended time included. No frame of its own: it is called a few
times a turn of the worker's loop."""
