"""What an operator asks of a member, and what members ask of one another about snapshots.

Taking: nobody ever holds EX, so nobody's death or hang freezes the cluster.

    0. ``reserve``: nobody else creates one; the caller formats the COW device. Crash: an unused device
    1. s/<name> = creating, by this incarnation       crash: recovery, or anybody if it left in order, deletes it
    2. every member opens the COW device and says so in o/<store>/<node>; one that cannot refuses, by name
    3. a ticket for the table: everybody drains and gives the table back; after the freeze limit it is withdrawn
    4. the granting transaction puts s/<name> = active, its counter, a higher generation in every live record (see
       generations.py), and swaps the ticket for CR
                                                      crash before: as 1; after: the snapshot is there

Deleting a live snapshot, with the table's EX held:

    1. granting transaction: s/<name> = deleting      crash: the snapshot still works; anybody deletes it anew
    2. valid=0 in its header, with FUA                crash: the same
    3. s/<name>, its counter and extents deleted in the transaction that comes down to CR

Invalidating (a chunk cannot be copied, or a header says so): EX; valid=0 with FUA; s/<name> = invalid, for it and every
older one, in the transaction that comes down. *A crash before that leaves a live snapshot; who meets the header begins
again.* A header that cannot be written does not stop the origin: the record counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from snapd.cluster.generations import LIVE, next_generation, raised
from snapd.cluster.prepare import Preparation
from snapd.cluster.reservation import Reservation
from snapd.errors import CsnapError, LockspaceError, Refused
from snapd.lockspace.entry import Exclusive
from snapd.lockspace.keys import check_name
from snapd.lockspace.kv import Compare, Delete, Operation, Put, Target, TxnResult, prefix_end
from snapd.lockspace.member import Member
from snapd.lockspace.ports import ERROR, NOTICE, WARNING, Timer
from snapd.lockspace.records import MemberRecord, SnapshotRecord
from snapd.messages import CR, Invalidate, Invalidated, Message, Overflow, Prepared
from snapd.units import SECOND

MAX_SNAPSHOTS = 16
"""The counters page has so many slots, and every store costs the worker a chunk of locked memory."""

RESERVE_LIMIT = 5 * SECOND
"""For one transaction; etcd that is slower than that is not there."""

PREPARE_LIMIT = 10 * SECOND
"""How long every member may take to open a COW device; nothing is frozen meanwhile."""

Finished = Callable[[CsnapError | None], None]
"""Called once. None: done. Refused: nothing was changed, and the text says why and which host."""


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """A formatted COW device (header, sidecar, first area zeroed) that is to become a snapshot."""

    name: str
    store: str  # a new uuid
    path: str  # absolute, the same on every host
    identity: str  # hardware identity of the device
    writable: bool
    generation: int


@dataclass(slots=True, eq=False)
class _Work:
    """What this member is about: one thing at a time."""

    what: str  # reserve, take, delete, invalidate
    name: str
    done: Finished
    new: SnapshotRecord | None = None
    use: Exclusive | None = None
    timer: Timer | None = None
    unanswered: set[int] = field(default_factory=set)  # Invalidate requests
    registered: bool = False


class Cluster:
    """Snapshots of the volume: taken, deleted, invalidated. Registers itself with the member."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._keys, self._settings = member.keys, member.settings
        self._session, self._mirror, self._timers = member.session, member.mirror, member.timers
        self._effects = member.effects
        self._preparation = Preparation(member)
        self._reservation = Reservation(member)
        self._work: _Work | None = None
        self._lost: dict[str, str] = {}  # store -> why it must be invalidated
        self._busy = False
        self._requests = 0
        member.attach(self)

    # ---- asked by an operator

    def check_new(self, name: str, identity: str) -> None:
        """Raise Refused if this name or device is in use, before the device is formatted."""
        check_name("snapshot", name)
        records = self._member.snapshots()
        if len(records) >= MAX_SNAPSHOTS:
            raise Refused(f"snapshot {name}: the volume has {len(records)}, the most there can be")
        for record in records:
            if record.name == name:
                raise Refused(f"snapshot {name}: exists already ({record.state})")
            if record.identity == identity:
                raise Refused(f"snapshot {name}: the device {record.path} belongs to snapshot {record.name}")

    def reserve(self, name: str, identity: str, done: Finished) -> None:
        """Before a device is formatted. After ``done(None)`` the caller calls ``take`` or ``abandon``.

        It is ours until then, whatever becomes of the lease: like a hold, it ends with our own word or after fencing.
        """
        try:
            self.check_new(name, identity)
            self._check_free(f"snapshot {name}", self._member.state == "active")
        except Refused as error:
            done(error)
            return
        work = self._work = _Work("reserve", name, done)

        def reserved(error: CsnapError | None) -> None:
            if work.timer is not None:
                work.timer.cancel()
            if error is not None:
                self._work = None
            done(error)

        work.timer = self._timers.call_at(self._timers.now() + RESERVE_LIMIT, self._reservation.release)
        self._reservation.ask(name, reserved)

    def abandon(self) -> None:
        """No snapshot comes of it, and nothing is written to the device any more."""
        if self._work is not None and self._work.what == "reserve":
            self._work = None
        self._reservation.release()

    def take(self, snapshot: NewSnapshot, done: Finished) -> None:
        """Take a snapshot online, after ``reserve``. If refused, the caller undoes the formatting, then ``abandon``."""
        reserved, self._work = self._work, None
        if reserved is None or reserved.what != "reserve" or not self._reservation.held:
            done(Refused(f"snapshot {snapshot.name}: nothing was reserved for it"))
            return
        try:
            self.check_new(snapshot.name, snapshot.identity)
        except Refused as error:
            done(error)
            return
        record = SnapshotRecord(
            snapshot.name, snapshot.store, snapshot.path, snapshot.identity, "creating", snapshot.writable,
            next_generation(self._member.snapshots()), 0, self._settings.incarnation,
        )  # fmt: skip
        self._begin(_Work("take", snapshot.name, done, record), PREPARE_LIMIT)

    def delete(self, name: str, done: Finished) -> None:
        """Delete the only or oldest snapshot, or an invalid one. Its COW device is free afterwards."""
        records = {record.name: record for record in self._member.snapshots()}
        record = records.get(name)
        try:
            if record is None:
                raise Refused(f"snapshot {name}: there is none; snapshots: {', '.join(records) or 'none'}")
            older = [each.name for each in records.values() if each.state in LIVE and each.place < record.place]
            if record.state in LIVE and older:
                raise Refused(f"snapshot {name}: {', '.join(older)} is older and reads through it: delete that first")
            if record.state in ("creating", "deleting"):
                raise Refused(f"snapshot {name}: is {record.state}")
            self._check_free(f"snapshot {name}", self.may_delete())
        except Refused as error:
            done(error)
            return
        self._begin(_Work("delete", name, done), self._settings.limits.freeze)

    def may_delete(self) -> bool:
        """Also while joining: a COW device that is gone keeps every host from serving until its snapshot is deleted."""
        return self._member.state == "active" or (self._member.state == "joining" and self._member.has_table)

    def _check_free(self, what: str, may: bool) -> None:
        if self._work is not None:
            raise Refused(f"{what}: this host is about to {self._work.what} {self._work.name}: try again")
        if not may:
            raise Refused(f"{what}: this host is {self._member.state}: try again when it is active")

    def _begin(self, work: _Work, limit: int = 0) -> None:
        self._work = work
        if limit:
            work.timer = self._timers.call_at(self._timers.now() + limit, self._time_is_up)
        self.changed()

    def _end(self, error: CsnapError | None) -> None:
        work, self._work = self._work, None
        if work is None:
            return
        if work.timer is not None:
            work.timer.cancel()
        self._effects.log(
            NOTICE if error is None else WARNING,
            f"snapshot_{work.what}",
            {"snapshot": work.name, "result": error or "done"},
        )
        if work.what == "take" and error is None:
            self._reservation.release()  # else: the caller undoes the formatting first
        work.done(error)
        self.changed()

    def _time_is_up(self) -> None:
        work = self._work
        if work is None:
            return
        if work.use is not None:
            self._member.table.expire(work.use)
        elif work.what == "take":
            silent = self._silent(work)
            if not silent:
                self._end(LockspaceError(f"snapshot {work.name}: etcd has not answered in time: try again"))
            else:
                what = f"snapshot {work.name}: {', '.join(silent)}"
                self._end(Refused(f"{what}: has not opened the COW device within {PREPARE_LIMIT // SECOND} s"))
        else:
            self._end(LockspaceError(f"snapshot {work.name}: the table is busy or etcd does not answer: try again"))

    # ---- the member's operator

    def resync(self) -> None:
        """What was under way is void, or in the mirror."""
        self._busy = False
        self._preparation.resync()
        self._reservation.resync()

    def changed(self) -> None:
        """Look at everything."""
        if not self._mirror.ready or not self._session.usable:
            return
        self._preparation.step()
        self._reservation.step()
        work = self._work
        if work is not None and work.what == "reserve":
            return  # the caller is formatting
        if work is None:
            self._look_for_work()
        elif work.what == "take" and work.use is None:
            self._step_take(work)
        elif work.use is None:
            self._queue(work)
        else:
            self._member.table.look()  # a newcomer that the grant waits for may have opened the device

    def receive(self, message: Message) -> None:
        if isinstance(message, Prepared):
            self._preparation.prepared(message)
        elif isinstance(message, Overflow):
            self._lost.setdefault(message.store, message.reason)
            self.changed()
        elif isinstance(message, Invalidated):
            self._invalidated(message)

    def settle(self, incarnation: str) -> tuple[Operation, ...]:
        """What a dead member was creating is undone; what it was deleting still works, and is found later."""
        return tuple(
            Delete(self._keys.snapshot(record.name))
            for record in self._member.snapshots()
            if record.by == incarnation and record.state == "creating"
        )

    def ended(self, why: str) -> None:
        if self._work is not None and self._work.what == "reserve":
            self.abandon()
        else:
            self._end(LockspaceError(f"this host is at its end: {why}"))

    def _look_for_work(self) -> None:
        """Lost snapshots; what nobody is about any more."""
        records = self._member.snapshots()
        over = {record.store for record in records if record.state == "invalid"}
        # Not: those that the mirror does not show. The worker may know of a new snapshot before it does.
        self._lost = {store: why for store, why in self._lost.items() if store not in over}
        for record in records:
            if record.state == "creating" and self._is_orphan(record):
                self._undo(record)
            elif self._blocked():
                continue
            elif record.state == "deleting" and self._is_orphan(record) and self._is_first():
                self._begin(_Work("delete", record.name, lambda error: None), self._settings.limits.freeze)
                return
            elif record.store in self._lost and record.state in LIVE:
                self._begin(_Work("invalidate", record.name, lambda error: None))
                return

    def _blocked(self) -> bool:
        """A dead host has the table: asking for it would freeze the others, in vain, until fencing has succeeded."""
        return any(node not in self._mirror.alive for node, _ in self._mirror.holds.get("table", {}))

    def _is_orphan(self, record: SnapshotRecord) -> bool:
        """Nobody who is or has to be recovered is about it; or it is left from something we gave up."""
        if record.by == self._settings.incarnation:
            return True
        return record.by not in {member.incarnation for member in self._members()}

    def _is_first(self) -> bool:
        """One member is enough to tidy up: the first by name."""
        return self._settings.node == min(self._mirror.alive, default="")

    def _members(self) -> list[MemberRecord]:
        members = []
        for kv in self._mirror.members.values():
            try:
                members.append(MemberRecord.from_bytes(kv.key, kv.value))
            except CsnapError:
                continue  # the recovery names it
        return members

    def _record(self, name: str) -> SnapshotRecord | None:
        return next((record for record in self._member.snapshots() if record.name == name), None)

    # ---- taking

    def _step_take(self, work: _Work) -> None:
        new = work.new
        assert new is not None
        found = self._record(new.name)
        if found is None:
            if work.registered:
                self._end(Refused(f"snapshot {new.name}: its record was deleted meanwhile"))
            else:
                self._register(new)
            return
        if found.store != new.store:
            self._end(Refused(f"snapshot {new.name}: exists already ({found.state})"))
            return
        work.registered = True
        answers = self._mirror.opened.get(new.store, {})
        refusals = [f"{node}: {kv.value.decode(errors='replace')}" for node, kv in sorted(answers.items()) if kv.value]
        if refusals:
            self._end(Refused(f"snapshot {new.name}: {'; '.join(refusals)}"))
        elif not self._silent(work):
            self._queue(work)

    def _register(self, new: SnapshotRecord) -> None:
        key = self._keys.snapshot(new.name)
        self._send((Compare(key, Target.CREATE, 0),), (Put(key, new.to_bytes()),))

    def _undo(self, record: SnapshotRecord) -> None:
        kv = self._mirror.snapshots[record.name]
        self._send((Compare(kv.key, Target.MOD, kv.mod_revision),), (Delete(kv.key),))

    def _send(self, conditions: tuple[Compare, ...], operations: tuple[Operation, ...]) -> None:
        """One at a time; what became of it is read from the mirror."""
        if self._busy:
            return
        self._busy = True

        def answered(result: TxnResult | None) -> None:
            self._busy = False
            self._timers.call_at(self._timers.now() + SECOND // 100, self.changed)

        self._session.txn(conditions, operations, (), answered)

    def _silent(self, work: _Work) -> list[str]:
        """Members that have not opened the new COW device: also those that are dead and not recovered yet."""
        answers = self._mirror.opened.get(work.new.store, {}) if work.new is not None else {}
        return sorted(node for node in self._mirror.members if node not in answers)

    # ---- under the table's lock

    def _queue(self, work: _Work) -> None:
        if self._member.table.busy:
            return
        record = self._record(work.name)
        if work.what != "take" and (record is None or (work.what == "invalidate" and record.state == "invalid")):
            self._end(None)  # somebody else was quicker
            return
        if work.what == "take":
            if work.timer is not None:
                work.timer.cancel()
            limit = self._timers.now() + self._settings.limits.freeze
            work.timer = self._timers.call_at(limit, self._time_is_up)
        keep = work.what != "take" and record is not None and record.state != "invalid"
        work.use = Exclusive(
            keep,
            lambda: self._change(work, keep),
            lambda: self._granted(work, keep),
            lambda: self._withdrawn(work),
            lambda: self._end(None),
        )
        self._member.table.queue(work.use)

    def _change(self, work: _Work, keep: bool) -> tuple[Operation, ...] | None:
        """What the granting transaction puts. The mirror shows every change of the table by who had it before."""
        record = self._record(work.name)
        if work.what == "take":
            assert work.new is not None
            if self._silent(work):
                return None  # a newcomer: it opens the device first
            place = 1 + max((each.place for each in self._member.snapshots()), default=0)
            taken = replace(work.new, state="active", place=place, by="")
            counter = self._keys.counter(work.new.store)
            others = raised(self._keys, self._member.snapshots(), work.new.generation)
            return Put(self._keys.snapshot(work.name), taken.to_bytes()), Put(counter, b"0"), *others
        if record is None:
            return ()
        if not keep:
            return self._gone(record)
        if work.what == "delete" and record.state != "invalid":  # others may have invalidated it meanwhile
            deleting = replace(record, state="deleting", by=self._settings.incarnation)
            return (Put(self._keys.snapshot(work.name), deleting.to_bytes()),)
        return ()

    def _gone(self, record: SnapshotRecord) -> tuple[Operation, ...]:
        extents = self._keys.extent(record.store)
        return (
            Delete(self._keys.snapshot(record.name)),
            Delete(self._keys.counter(record.store)),
            Delete(extents, prefix_end(extents)),
        )

    def _granted(self, work: _Work, keep: bool) -> None:
        if work.timer is not None:
            work.timer.cancel()
        if not keep:
            self._end(None)
            return
        for record in self._affected(work):
            self._requests += 1
            work.unanswered.add(self._requests)
            self._effects.send(Invalidate(self._requests, record.store))
        if not work.unanswered:
            self._finish(work)

    def _affected(self, work: _Work) -> list[SnapshotRecord]:
        """Deleted: itself. Invalidated: itself and every older one, which reads through it."""
        record = self._record(work.name)
        if record is None or record.state == "invalid":
            return []
        if work.what == "delete":
            return [record]
        return [each for each in self._member.snapshots() if each.state in LIVE and each.place <= record.place]

    def _invalidated(self, message: Invalidated) -> None:
        work = self._work
        if work is None or message.request not in work.unanswered:
            return
        if message.error:
            self._effects.log(ERROR, "header_not_invalidated", {"snapshot": work.name, "error": message.error})
        work.unanswered.discard(message.request)
        if not work.unanswered:
            self._finish(work)

    def _finish(self, work: _Work) -> None:
        affected = self._affected(work)
        operations: tuple[Operation, ...] = ()
        if work.what == "delete":
            record = self._record(work.name)
            operations = self._gone(record) if record is not None else ()
        else:
            for record in affected:
                self._effects.log(ERROR, "snapshot_invalid", {"snapshot": record.name, "reason": self._why(work)})
                invalid = replace(record, state="invalid", by="")
                operations = (*operations, Put(self._keys.snapshot(record.name), invalid.to_bytes()))
        assert work.use is not None
        self._member.table.finish(work.use, operations)

    def _why(self, work: _Work) -> str:
        record = self._record(work.name)
        return self._lost.get(record.store, "") if record is not None else ""

    def _withdrawn(self, work: _Work) -> None:
        """No grant; nothing was changed."""
        if work.what == "invalidate":
            self._work = None  # it must be: ``_look_for_work`` begins again, when it can
            self.changed()
            return
        late = sorted(node for node, mode in self._mirror.holds.get("table", {}) if mode == CR)
        others = [node for node in late if node != self._settings.node] or late
        if work.use is not None and work.use.expired:
            seconds = self._settings.limits.freeze / SECOND
            who = ", ".join(others or self._silent(work)) or "nobody's fault: etcd"
            error: CsnapError = Refused(f"snapshot {work.name}: {who} did not answer within {seconds:g} s; all go on")
        else:
            error = LockspaceError(f"snapshot {work.name}: the lock was lost meanwhile: try again")
        self._end(error)
