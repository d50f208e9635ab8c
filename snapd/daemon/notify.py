"""What systemd is told: readiness, a status line, and the watchdog's pings. Without systemd nothing happens.

A ping goes out only while everything that keeps this host's I/O going is fresh: the control loop (it sends the ping
itself), the worker (its heartbeat in the counters page) and the lease's bookkeeping (a member is not ``active`` with
its deadline behind it). An etcd that is gone is no reason to die: then the member is ``stalled``, and waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from snapd.daemon.door import is_open
from snapd.daemon.loop import Loop
from snapd.lockspace.ports import ACTIVE
from snapd.units import SECOND

WORKER_LIMIT = 5 * SECOND
"""A worker's loop turns at least four times a second; a slow disk does not hold it up."""

LEASE_LIMIT = 2 * SECOND
"""How long ``active`` may outlive the deadline before the member notices: its timer, and a busy machine."""


Notify = Callable[[str], bool]
"""Returns whether it was told."""


def find_notify() -> Notify | None:
    """Return a notify that never waits; None if systemd has not started this process."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return None
    try:
        from systemd.daemon import notify
    except ImportError:
        return None

    def tell(text: str) -> bool:
        try:
            return is_open(address) and bool(notify(text))
        except OSError:  # it was closed in between
            return False

    return tell


def watchdog_interval() -> int:
    """Nanoseconds between pings: half of what systemd allows; 0: no watchdog for this process."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    meant = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) * 1000 // 2 if microseconds.isdigit() and meant else 0


def watchdog_warning(interval: int, ttl: int, volume: str) -> str:
    """What is wrong with a watchdog of this interval beside a lease of ``ttl`` seconds; "" if nothing is."""
    allowed = 2 * interval // SECOND
    if not interval or 2 * interval < ttl * SECOND:
        return ""
    return (
        f"WatchdogSec= is {allowed} s, and lease_ttl {ttl} s: a host that hangs should be ended before its lease is."
        f" systemctl edit csnapd@{volume}: [Service] WatchdogSec={max(1, ttl * 4 // 5)}"
    )


class Freshness:
    """Judges whether the watchdog may be fed."""

    def __init__(self) -> None:
        self._expired_since = 0

    def stale(self, now: int, state: str, lease_remaining: int, heartbeat: int) -> str:
        """Return what is not fresh, "" if all is. ``heartbeat`` 0: the worker has not begun yet."""
        if state == ACTIVE and lease_remaining <= 0:
            self._expired_since = self._expired_since or now
        else:
            self._expired_since = 0
        if heartbeat and now - heartbeat > WORKER_LIMIT:
            return "worker"
        if self._expired_since and now - self._expired_since > LEASE_LIMIT:
            return "lease"
        return ""


class Notifier:
    """Tells systemd; ``check`` returns what is stale, ``status`` the line that people read."""

    def __init__(
        self,
        loop: Loop,
        notify: Notify | None,
        interval: int,
        check: Callable[[], str],
        status: Callable[[], str],
    ) -> None:
        self._loop = loop
        self._notify: Notify = notify or (lambda text: True)
        self._untold: list[str] = []
        self._check, self._status = check, status
        self._interval = interval
        self._shown = ""
        self._ready = False
        if notify is not None:
            self._beat()

    def ready(self) -> None:
        self._ready = True
        self._tell("READY=1")
        self.show()

    def reloading(self) -> None:
        """The time is what systemd tells this reload from an older one by. Nobody is told before it was ready."""
        if self._ready:
            self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self) -> None:
        if self._ready:
            self._tell("READY=1")
        self.show()

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def show(self) -> None:
        """Tell the status line if it has changed."""
        text = self._status()
        if text != self._shown and self._notify(f"STATUS={text}"):
            self._shown = text

    def _tell(self, text: str) -> None:
        """Tell what must not be lost: again with the next beat, if systemd does not listen now."""
        self._untold.append(text)
        self._tell_rest()

    def _tell_rest(self) -> None:
        while self._untold and self._notify(self._untold[0]):
            del self._untold[0]

    def _beat(self) -> None:
        if self._interval and not self._check():
            self._notify("WATCHDOG=1")
        self._tell_rest()
        self.show()
        self._loop.call_later(self._interval or SECOND, self._beat)
