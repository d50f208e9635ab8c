"""What a member needs of the world around it, and what it is told about itself. No I/O here: time, etcd, the
worker and the log are passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from snapd.errors import CsnapError
from snapd.lockspace.protocol import Speaks
from snapd.messages import Message
from snapd.units import SECOND

JOINING, ACTIVE, STALLED, FENCED, LEAVING = "joining", "active", "stalled", "fenced", "leaving"
"""States of a member as people see them. ``active``: the worker serves clients."""

ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6
"""Syslog priorities."""


@dataclass(slots=True)
class Limits:
    """What may change while the member lives; looked at anew each time."""

    freeze: int = 5 * SECOND


@dataclass(frozen=True, slots=True)
class Settings:
    """Who this member is. Times are nanoseconds, but ``ttl`` is what etcd counts in: whole seconds; ``started`` is
    seconds since 1970, for people."""

    cluster_uuid: str
    node: str
    machine_id: str
    boot_id: str
    incarnation: str  # a new uuid for every start of the daemon
    lock_path: str  # of the lock file that control and worker hold
    ttl: int = 10
    speaks: Speaks = field(default_factory=Speaks)
    started: int = 0
    fence_key: str = ""
    limits: Limits = field(default_factory=Limits)
    minimum_hold: int = SECOND // 50
    """Of a region: 20 ms of work for a hand-over of some 2 ms, so contending hosts spend their time writing."""


class Timer(Protocol):
    def cancel(self) -> None: ...


class Timers(Protocol):
    """The clock and the loop's timers."""

    def now(self) -> int:
        """Nanoseconds on CLOCK_BOOTTIME."""

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer:
        """Call once at ``when`` or soon after, never from inside this call."""


class Effects(Protocol):
    """Where the member's decisions go. Every method returns at once and calls nothing back."""

    def send(self, message: Message) -> None:
        """To the worker."""

    def set_deadline(self, deadline: int) -> None:
        """Past this instant the worker submits and answers nothing. 0: at once."""

    def state(self, state: str, why: str) -> None:
        """The member's state changed (JOINING ... LEAVING)."""

    def failed(self, error: CsnapError) -> None:
        """The member is at its end: Fenced (exit 4) or Refused (exit 1). Nothing more comes from it."""

    def log(self, priority: int, event: str, fields: dict[str, object]) -> None: ...

    def observe(self, name: str, labels: dict[str, str], value: int) -> None:
        """Count something. Durations are nanoseconds, other values are amounts:

        lock_wait_seconds{mode,resource}, lock_hold_seconds{mode,resource}, lock_demotion_seconds{resource},
        lock_acquisitions_total{mode,resource,source,result}, lock_demotions_total{from,to,reason},
        lease_renew_seconds{}, lease_renew_failures_total{}, fence_events_total{target,method,result}
        (``resource`` is table, region or tail).
        """
