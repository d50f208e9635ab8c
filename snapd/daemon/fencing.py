"""What the configured fencing method asks of this host while it is a member: the guard between member and worker.

A guard is what the member's effects go to in the worker's place. It says what the member record tells about fencing
this host, and at the end it gives back what it took: after a clean leave, or once the worker has provably ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from snapd.config import Config
from snapd.daemon.gate import Sink
from snapd.daemon.log import Log
from snapd.daemon.loop import Loop
from snapd.daemon.petting import WatchdogGuard
from snapd.daemon.registering import LIVE, ReservationGuard
from snapd.errors import CsnapError
from snapd.helper.client import Helper
from snapd.lockspace.fencing.keys import WatchdogPromise, reservation_key
from snapd.lockspace.member import Member
from snapd.messages import Message


class Guard(Sink, Protocol):
    """``member`` is set once it exists."""

    fence_key: str
    member: Member | None

    def before_format(self, device: str) -> None:
        """In a thread: this host is about to write to a COW device that is not in use."""

    def left(self, done: Callable[[], None]) -> None:
        """The member left in order, and nothing is in flight. ``done`` soon, whatever happens."""

    def close(self, worker_ended: bool) -> None:
        """The process ends. May wait for a moment."""

    def preempt(self, victim: str, ended: Callable[[str, bool], None]) -> None:
        """See ``scsi_pr.Preempter``."""

    def tidy(self, key: str) -> None:
        """See ``scsi_pr.Preempter``."""


class NoGuard:
    """Methods that ask nothing of the host that may be fenced."""

    fence_key = ""
    member: Member | None = None

    def __init__(self, sink: Sink) -> None:
        self.send, self.set_deadline = sink.send, sink.set_deadline

    def before_format(self, device: str) -> None: ...

    def left(self, done: Callable[[], None]) -> None:
        done()

    def close(self, worker_ended: bool) -> None: ...

    def preempt(self, victim: str, ended: Callable[[str, bool], None]) -> None:
        ended("this method has no reservations", False)

    def tidy(self, key: str) -> None: ...


def make_guard(
    config: Config,
    incarnation: str,
    loop: Loop,
    sink: Sink,
    log: Log,
    told: Callable[[Message], None],
    ended: Callable[[CsnapError], None],
) -> Guard:
    """``told``: what the worker would have answered; ``ended``: this host is fenced."""
    fencing = config.fencing
    helper = Helper(config.export.helper)
    if fencing.method == "scsi-pr":
        key = reservation_key(incarnation)
        return ReservationGuard(loop, sink, log, told, ended, helper, config.volume.origin, key)
    if fencing.method == "watchdog":
        promise = WatchdogPromise(fencing.watchdog_timeout, config.lockspace.lease_ttl)
        return WatchdogGuard(loop, sink, log, told, helper, promise.to_text())
    return NoGuard(sink)


def described(guard: Guard | None, member: Member | None) -> dict[str, Any]:
    """For ``csnap fence test``. ``key``: what this host's paths are registered with, empty if they are not (yet)."""
    key = guard.fence_key if isinstance(guard, ReservationGuard) and guard.registered else ""
    snapshots = member.snapshots() if member is not None else ()
    return {
        "key": key,
        "keys": member.fence_keys() if member is not None else {},
        "devices": [record.path for record in snapshots if record.state in LIVE],
    }
