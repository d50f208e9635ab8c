"""One member of the lockspace: the composition of session, mirror, locks, joining and recovery. Free of I/O.

member = Member(settings, kv, timers, effects, fencer, proven)
cluster = Cluster(member)            # snapd.cluster: snapshots; registers itself
member.start()                       # after the worker's Hello
member.receive(message)              # every message of the worker
member.leave(done)                   # after the worker's Stopped
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from snapd.errors import CsnapError, Fenced, FormatError
from snapd.lockspace.fencing.base import Fencer
from snapd.lockspace.joining import Joining
from snapd.lockspace.keys import Keys, is_resource
from snapd.lockspace.kv import Kv, Operation
from snapd.lockspace.leaving import Leaving
from snapd.lockspace.locks import Locks
from snapd.lockspace.mirror import Mirror
from snapd.lockspace.ports import ACTIVE, ERROR, FENCED, JOINING, LEAVING, STALLED, Effects, Settings, Timers
from snapd.lockspace.protocol import Speaks
from snapd.lockspace.raising import Raised, Raising
from snapd.lockspace.records import FormatRecord, MemberRecord, SnapshotRecord, TicketRecord
from snapd.lockspace.recovery import Recovery
from snapd.lockspace.resources import Resources
from snapd.lockspace.session import OUT, UP, Session
from snapd.lockspace.snapshots import records_of
from snapd.lockspace.table_use import TableUse
from snapd.messages import Done, FencedNotice, Message, Revived, Serving, Stopped, Want
from snapd.units import SECOND


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
    speaks: Speaks | None = None  # None: its record makes no sense
    started: int = 0  # seconds since 1970; 0: the protocol in force has no room for it


class Operator(Protocol):
    """Who knows what snapshots are (``snapd.cluster``)."""

    def changed(self) -> None:
        """Something in the mirror changed, or a pause ended."""

    def resync(self) -> None:
        """Answers to what was sent will not come; the mirror tells what became of it."""

    def receive(self, message: Message) -> None:
        """A message of the worker that is not about locks."""

    def settle(self, incarnation: str) -> tuple[Operation, ...]:
        """See ``recovery.Settle``."""

    def ended(self, why: str) -> None:
        """The member is at its end; whatever is under way will not be finished here."""


class Member:
    """Everything happens in the caller's thread: inside ``start``, ``receive``, ``leave``, a timer or a Kv answer.

    look, resync, ready and ended are the session's (``session.Owner``).
    """

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
        gone: its lock file (record.lock_path) could be taken. Asked again every now and then while it says no."""
        self.settings, self.effects, self.timers = settings, effects, timers
        self.keys = Keys(settings.cluster_uuid)
        self.session = Session(settings, self.keys, kv, timers, effects, self)
        self.mirror = Mirror(self.keys, kv, timers, effects, self._changed, self.session.lost_cluster)
        self.session.mirror = self.mirror
        self.resources = Resources(settings, self.keys, self.session, self.mirror, timers, effects)
        self.table = TableUse(self.resources)
        self.locking = Locks(self.resources, self.table)
        self._joining = Joining(settings, self.keys, kv, self.session, self.mirror, timers, effects, proven)
        self._recovery = Recovery(
            settings, self.keys, self.session, self.mirror, timers, effects, fencer, self._joining.record
        )
        self._raising = Raising(settings, self.keys, self.session, self.mirror, effects, self._joining)
        self._leaving: Leaving | None = None
        self._kv = kv
        self._operator: Operator | None = None
        self._state = JOINING
        self._joined = self._serving = False
        self._named: set[str] = set()
        self._committed: tuple[tuple[str, int], ...] = ()

    def attach(self, operator: Operator) -> None:
        self._operator = operator
        self._recovery.settle = operator.settle

    def start(self) -> None:
        """Join. The lock file is held already. A refusal arrives at ``effects.failed``."""
        self.effects.state(JOINING, "")
        self.mirror.open()

    def receive(self, message: Message) -> None:
        """Take a message of the worker; one that is for nobody here is ignored."""
        if isinstance(message, Want | Done):
            if is_resource(message.resource):
                self._locking(message)
        elif isinstance(message, Serving):
            self._serving = not message.error
            self._update(message.error)
        elif isinstance(message, Stopped):
            self._committed = message.committed
        elif self._operator is not None:
            self._operator.receive(message)

    def _locking(self, message: Want | Done) -> None:
        if isinstance(message, Want):
            self.locking.want(message.resource, message.mode)
        else:
            self.locking.done(message)

    def leave(self, done: Callable[[bool], None], limit: int = 5 * SECOND) -> None:
        """Release everything and go. The worker is stopped (its Stopped has been received) and uses nothing any more.

        ``done(clean)`` within ``limit`` nanoseconds; not clean: the records stay, for recovery or the next start.
        Not to be called after the worker died: its incarnation is dead too, just exit.
        """
        self.locking.end()
        committed = self._committed + self.locking.given_back_tails()
        self._leaving = Leaving(
            self.settings,
            self.keys,
            self._kv,
            self.session,
            self.mirror,
            self.timers,
            self._joining.joined,
            lambda: self._joining.in_doubt,
            committed,
            done,
        )
        self._update("")
        self._leaving.begin(limit)

    def confirm_fenced(self, node: str, done: Callable[[CsnapError | None], None]) -> None:
        """A person takes responsibility for a dead member. Raises Refused; ``done`` is not called after a doubt."""
        self._recovery.confirm(node, done)

    def upgrade(self, done: Raised) -> None:
        """A person raises the protocol in force. Raises CsnapError; ``done`` is called otherwise."""
        self._raising.upgrade(done)

    # ---- the session's owner

    def look(self) -> None:
        if self._leaving is None or self._joined or self._joining.in_doubt:
            self._joining.look()
        else:
            self._leaving.came_to_nothing()

    def resync(self) -> None:
        if self._leaving is not None:
            self._leaving.resync()
            return
        self.locking.resync()
        self._recovery.resync()
        self._raising.resync()
        if self._operator is not None:
            self._operator.resync()

    def ready(self) -> None:
        self._update(self.session.why)
        if self._leaving is not None:
            self._leaving.step()
            return
        self._begin()
        self.locking.ready()
        self._recovery.look()
        self._raising.look()
        if self._operator is not None:
            self._operator.changed()

    def ended(self, error: CsnapError | None) -> None:
        self.locking.end()
        if self._operator is not None:
            self._operator.ended(str(error or "the daemon stops"))
        if self._leaving is not None:
            self._leaving.ended(error is None)
        elif error is not None:
            if isinstance(error, Fenced):
                self.effects.send(FencedNotice(str(error)))
                self._set_state(FENCED, str(error))
            self.effects.failed(error)

    # ---- events

    def _changed(self, touched: set[str] | None) -> None:
        if self._leaving is not None and self._leaving.gone():
            return
        self.session.look()
        if self.session.phase == OUT:
            return
        if self._leaving is not None:
            self._leaving.step()
            return
        self._begin()
        self.locking.changed(touched)
        self._recovery.look()
        if touched is None or "" in touched:
            self._raising.look()
        if self._operator is not None and (touched is None or "" in touched):
            self._operator.changed()

    def _begin(self) -> None:
        """Once: locks may be taken when the node's older holds are gone."""
        if not self._joined and self.session.phase == UP and self._joining.joined():
            self._joined = True
            self.locking.begin()
            self._update("")

    def _update(self, why: str) -> None:
        if self.session.phase == OUT:
            return
        if self._leaving is not None:
            state = LEAVING
        elif not (self._joined and self._serving):
            state = JOINING
        else:
            state = STALLED if self.session.stalled else ACTIVE
        if self._state == STALLED and state == ACTIVE:
            self.effects.send(Revived())
        self._set_state(state, why)

    def _set_state(self, state: str, why: str) -> None:
        if state != self._state or why:
            self._state = state
            self.effects.state(state, why)

    # ---- what people ask

    @property
    def state(self) -> str:
        """joining, active, stalled, fenced or leaving."""
        return self._state

    @property
    def has_table(self) -> bool:
        """Whether the table is granted to this worker, even if a COW device keeps it from serving."""
        table = self.resources.entries.get("table")
        return not self.session.stalled and table is not None and table.given > 0

    @property
    def lease_remaining(self) -> int:
        """Nanoseconds until the deadline; 0 when it has passed."""
        return max(0, self.session.deadline - self.timers.now())

    @property
    def lease_ttl(self) -> int:
        """Nanoseconds that etcd granted; 0 before the first grant."""
        return self.session.ttl * SECOND

    @property
    def format(self) -> FormatRecord | None:
        """What ``volume init`` has fixed; None before the first range, or if it makes no sense."""
        kv = self.mirror.format
        try:
            return FormatRecord.from_bytes(kv.key, kv.value) if kv is not None else None
        except FormatError as error:
            self._bad_record(error)
            return None

    def snapshots(self) -> tuple[SnapshotRecord, ...]:
        """The table as the mirror has it, newest first; snapshots being created last."""
        return tuple(records_of(self.mirror.snapshots.values(), self._bad_record))

    def _bad_record(self, error: FormatError) -> None:
        """Once: snapshots are looked at whenever something changes."""
        if str(error) not in self._named:
            self._named.add(str(error))
            self.effects.log(ERROR, "bad_record", {"error": error})

    def locks(self) -> list[LockRow]:
        """Every hold and ticket of every member, waiters after holders."""
        mirror, rows = self.mirror, []
        for resource in sorted({*mirror.holds, *mirror.tickets}):
            for (node, mode), kv in sorted(mirror.holds.get(resource, {}).items()):
                rows.append(LockRow(resource, node, mode, False, mirror.seen_since(kv.key), kv.create_revision))
            for node, kv in sorted(mirror.tickets.get(resource, {}).items(), key=lambda item: item[1].create_revision):
                try:
                    mode = TicketRecord.from_bytes(kv.key, kv.value).mode
                except FormatError:
                    mode = 0
                rows.append(LockRow(resource, node, mode, True, mirror.seen_since(kv.key), kv.create_revision))
        return rows

    @property
    def protocol(self) -> int:
        """In force; 0 before it is known, or if its record makes no sense."""
        try:
            return self._joining.protocol() if self.mirror.format is not None else 0
        except FormatError:
            return 0

    def fencing_waits(self) -> list[tuple[str, str, int]]:
        """Members whose fencing is waited for: node, node of who fences it, seen since when."""
        return self._recovery.waiting()

    def fence_keys(self) -> dict[str, str]:
        """What each member record says for its fencing; of records that make sense."""
        keys = {}
        for node, kv in self.mirror.members.items():
            try:
                keys[node] = MemberRecord.from_bytes(kv.key, kv.value).fence_key
            except FormatError:
                continue  # the recovery names it
        return keys

    def members(self) -> list[MemberRow]:
        """Every member record."""
        rows = []
        for node, kv in sorted(self.mirror.members.items()):
            try:
                record = MemberRecord.from_bytes(kv.key, kv.value)
            except FormatError:
                rows.append(MemberRow(node, "unknown", ""))
                continue
            dead = record.state == ACTIVE and node not in self.mirror.alive
            state = "dead" if dead else record.state
            rows.append(MemberRow(node, state, record.by_node, record.speaks, record.started))
        return rows
