"""One member of the lockspace: the composition of session, mirror, locks and recovery. Free of I/O.

    member = Member(settings, kv, timers, effects, fencer, proven)
    cluster = Cluster(member)            # snapd.cluster: snapshots; registers itself
    member.start()                       # after the worker's Hello
    member.receive(message)              # every message of the worker
    member.leave(done)                   # after the worker's Stopped
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from snapd.lockspace.fencing.base import Fencer
from snapd.lockspace.kv import Kv
from snapd.lockspace.ports import Effects, Settings, Timers
from snapd.lockspace.records import FormatRecord, MemberRecord, SnapshotRecord
from snapd.messages import Message


@dataclass(frozen=True, slots=True)
class LockRow:
    """One line of ``csnap locks``. ``since``: when this member first saw it (boottime ns)."""

    resource: str
    node: str
    mode: int
    waiting: bool
    since: int
    revision: int  # of a hold: its token; of a ticket: its place in the queue


@dataclass(frozen=True, slots=True)
class MemberRow:
    """One member as this one sees it."""

    node: str
    state: str  # active, fencing, fenced; "dead" while its liveness is gone and nobody has begun recovery
    by: str  # node that recovers it


class Member:
    """Everything happens in the caller's thread: inside ``start``, ``receive``, ``leave``, a timer or a Kv answer."""

    def __init__(
        self,
        settings: Settings,
        kv: Kv,
        timers: Timers,
        effects: Effects,
        fencer: Fencer,
        proven: Callable[[MemberRecord], bool],
    ) -> None:
        """``proven(record)``: whether every process of that older incarnation of this node, of this same boot, is
        gone: its lock file (record.lock_path) could be taken. Asked again every second while it says no."""

    def start(self) -> None:
        """Join. The lock file is held already. A refusal arrives at ``effects.failed``."""

    def receive(self, message: Message) -> None:
        """Take a message of the worker: Want, Done, Overflow, Prepared, Invalidated, Serving, Stopped; others are ignored."""

    def leave(self, done: Callable[[bool], None], limit: int = 5_000_000_000) -> None:
        """Release everything and go. The worker is stopped (its Stopped has been received) and uses nothing any more.

        ``done(clean)`` within ``limit`` nanoseconds; not clean: the records stay, for recovery or the next start.
        Not to be called after the worker died: its incarnation is dead too, just exit.
        """

    @property
    def state(self) -> str:
        """joining, active, stalled, fenced or leaving."""

    @property
    def lease_remaining(self) -> int:
        """Nanoseconds until the deadline; 0 when it has passed."""

    @property
    def lease_ttl(self) -> int:
        """Nanoseconds that etcd granted; 0 before the first grant."""

    @property
    def format(self) -> FormatRecord | None:
        """What ``volume init`` has fixed; None before the first range."""

    def snapshots(self) -> tuple[SnapshotRecord, ...]:
        """The table as the mirror has it, newest first; snapshots being created last."""

    def locks(self) -> list[LockRow]:
        """Every hold and ticket of every member, waiters after holders."""

    def members(self) -> list[MemberRow]:
        """Every member record."""
