"""Fencing by patience: the dead member's own watchdog resets its host, and survivors wait until it must have.

Each host arms a watchdog of at most W seconds before it may do I/O, and pets it only while its lease's deadline lies
ahead and a/<n> stands. Its member record says W and the TTL that it asked for; survivors take T = the greater of that
and what etcd granted them (etcd rounds alike for all), and M = max(1 s, T / 5), the lease's margin.

T = 10 s, M = 2 s, W = 15 s. t = when the last keepalive that succeeded was *sent*; etcd and all networks are cut then:

    t +  8   the deadline: the worker submits nothing more; the last pet is before it
    t + 10   at the earliest, a/<d> is absent: the lease counts from t or later
    t + 10   = s: a survivor has m/<d> = fencing, so <d> cannot revive, and begins to wait
    t + 23   at the latest, the watchdog fires: the host resets (deadline + W)
    t + 37   s + T + W + M: the survivor takes <d> to be fenced

The other way round, a/<d> vanishes although the lease was renewed (it was revoked, or etcd lost it), <d> does not hear
of it, and its last keepalive succeeded at s:

    s        a/<d> is absent, m/<d> = fencing
    s +  8   the deadline; the last pet is before it
    s + 23   the watchdog fires
    s + 27   the survivor takes <d> to be fenced: 2 M = 4 s after the latest reset, for a pet that was decided on before
             the deadline and done after it

Counted from the moment m/<d> = fencing is known to be there and no earlier: before it, <d> may revive, and a wait begun
at an earlier absence of a/<d> would say nothing about what it did since. A coordinator that takes over waits anew.

What it does not cover: a virtual machine that is paused as a whole. Its watchdog is paused with it.
"""

from __future__ import annotations

from collections.abc import Callable

from snapd.errors import FormatError
from snapd.lockspace.fencing.keys import WatchdogPromise
from snapd.lockspace.fencing.retrying import Attempts
from snapd.lockspace.ports import NOTICE, Effects, Timers
from snapd.lockspace.records import MemberRecord
from snapd.lockspace.session import margin
from snapd.units import SECOND


def wait(promise: WatchdogPromise, granted: int) -> int:
    """Nanoseconds from m/<d> = fencing until <d>'s host has certainly been reset. ``granted``: TTL, nanoseconds."""
    ttl = max(promise.ttl, -(-granted // SECOND))
    return (ttl + promise.timeout) * SECOND + margin(ttl)


class Watchdog:
    """``granted``: the TTL that etcd grants, in nanoseconds, as this member has it."""

    method = "watchdog"

    def __init__(self, granted: Callable[[], int], timers: Timers, effects: Effects) -> None:
        self._granted, self._timers, self._effects = granted, timers, effects
        attempts = Attempts(self.method, timers, effects, self._attempt)
        self.fence, self.forget = attempts.fence, attempts.forget

    def _attempt(self, record: MemberRecord, ended: Callable[[str], None]) -> None:
        try:
            promise = WatchdogPromise.from_text(record.fence_key)
        except FormatError as error:
            ended(f"{record.node}: {error}; switch it off, then csnap fence confirm")
            return
        waits = wait(promise, self._granted())
        self._effects.log(NOTICE, "waiting_for_watchdog", {"target": record.node, "seconds": waits // SECOND})
        self._timers.call_at(self._timers.now() + waits, lambda: ended(""))

    def left(self, record: MemberRecord) -> None: ...
