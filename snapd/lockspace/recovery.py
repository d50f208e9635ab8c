"""Recovery of dead members, by any survivor; and of what an older incarnation of this node held, by itself.

    m/<d>                   step, each under ALIVE and mod(m/<d>)               a crash before it leaves
    active, a/<d> absent    m/<d> = fencing, by me                              a dead member, as before
    fencing                 the fencer makes sure that <d> writes no more       fencing: the next one fences again
                            m/<d> = fenced                                      nothing of it is granted yet
    fenced                  its unfinished snapshots are finished or undone     as before
                            every counter = ?                                   holds that grant nothing
                            its holds deleted, in batches                       fewer holds, all counters marked
                            its extents and c/<d> deleted                       space that nobody refers to
                            m/<d> deleted (its own: active)                     nothing

Whose coordinator is dead too is taken over by another survivor, at the state that m/<d> says. The counters are marked
before the first hold goes: whoever is granted a lock of a dead member reads everything under the tail first.

A person may take the fencer's place (``confirm``): m/<d> = fenced under the same compares, whoever coordinates goes on.

No storm: nobody begins before it has had an unbroken lease and watch, unstalled, for one whole TTL itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from snapd.errors import CsnapError, FormatError, Refused
from snapd.lockspace.fencing.base import Fencer
from snapd.lockspace.keys import Keys
from snapd.lockspace.kv import Compare, Delete, KeyValue, Operation, Put, Target, TxnResult
from snapd.lockspace.mirror import Mirror
from snapd.lockspace.ports import ERROR, NOTICE, WARNING, Effects, Settings, Timers
from snapd.lockspace.records import ACTIVE, FENCED, FENCING, UNTRUSTED_MARK, MemberRecord
from snapd.lockspace.session import Session, margin
from snapd.units import SECOND

BATCH = 100
"""Operations in one transaction; etcd takes 128."""

LOOK_AGAIN = SECOND // 4

Settle = Callable[[str], tuple[Operation, ...]]
"""Asked with a dead incarnation: what undoes its snapshots; nothing if there are none."""


class Case:
    """One member that this one recovers. ``marked``: the counters that it has marked; all anew after a doubt."""

    __slots__ = ("busy", "fenced", "fencing", "marked", "record", "revision")

    def __init__(self, record: MemberRecord, revision: int) -> None:
        self.record = record
        self.revision = revision  # mod_revision of m/<d>
        self.busy = False
        self.fencing = self.fenced = False
        self.marked: set[str] = set()


class Recovery:
    """``look`` is called whenever something changed. ``settle`` is set by who knows what snapshots are."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        session: Session,
        mirror: Mirror,
        timers: Timers,
        effects: Effects,
        fencer: Fencer,
        own_record: Callable[[], MemberRecord],
    ) -> None:
        self._settings, self._keys, self._session, self._mirror = settings, keys, session, mirror
        self._timers, self._effects, self._fencer = timers, effects, fencer
        self._own_record = own_record
        self.settle: Settle = lambda incarnation: ()
        self._cases: dict[str, Case] = {}
        self._waits: dict[str, tuple[str, int]] = {}  # members being fenced, by whomever: by whom, seen since
        self._seen: dict[str, MemberRecord] = {}  # other members, by node
        self._scheduled = False
        self._gone_since: dict[str, int] = {}  # members without liveness: since when it was seen missing
        self._named: set[str] = set()  # records that make no sense: once each

    def resync(self) -> None:
        """What was under way is void, or shown by the mirror."""
        for case in self._cases.values():
            case.busy = False
            case.marked.clear()

    def look(self) -> None:
        """Begin, take over, or go on with whatever recovery can take a step now."""
        mirror = self._mirror
        if not mirror.ready or not self._session.usable:
            return
        self._gone_since = {node: at for node, at in self._gone_since.items() if node not in mirror.alive}
        for node, kv in list(mirror.members.items()):
            try:
                record = MemberRecord.from_bytes(kv.key, kv.value)
            except FormatError as error:
                self._name(error)
                continue
            self._watch(record)
            if record.by == self._settings.incarnation:
                self._go_on(self._case(node, record, kv.mod_revision))
            elif node != self._settings.node and node not in mirror.alive:
                self._take(node, record, kv)
        for node in [node for node in self._cases if node not in mirror.members]:
            self._fencer.forget(self._cases.pop(node).record)
        for node in [node for node in self._seen if node not in mirror.members]:
            self._waits.pop(node, None)
            self._fencer.left(self._seen.pop(node))

    def waiting(self) -> list[tuple[str, str, int]]:
        """Members whose fencing is waited for: node, node of who fences it, seen since when."""
        return [(node, by, since) for node, (by, since) in sorted(self._waits.items())]

    def _watch(self, record: MemberRecord) -> None:
        if record.node != self._settings.node:
            before = self._seen.get(record.node)
            self._seen[record.node] = record
            if before is not None and before.incarnation != record.incarnation:
                self._fencer.left(before)
        if record.state != FENCING:
            self._waits.pop(record.node, None)
        elif self._waits.get(record.node, ("", 0))[0] != record.by_node:
            since = self._waits.get(record.node, ("", self._timers.now()))[1]
            self._waits[record.node] = (record.by_node, since)

    def confirm(self, node: str, done: Callable[[CsnapError | None], None]) -> None:
        """A person says that ``node`` writes no more: its fencing is done. ``done`` once. Raises Refused."""
        kv = self._mirror.members.get(node)
        if kv is None:
            raise Refused(f"{node}: no such member; members: {', '.join(sorted(self._mirror.members)) or 'none'}")
        record = MemberRecord.from_bytes(kv.key, kv.value)
        if node in self._mirror.alive:
            raise Refused(f"{node}: is alive: its liveness key stands, so it may write at any moment; stop it first")
        if record.state == FENCED:
            raise Refused(f"{node}: is fenced already, and is being cleaned up by {record.by_node}")
        if not self._session.usable:
            raise Refused("this host has no lease, or etcd takes no writes: ask another host, or wait")
        if record.state == ACTIVE:
            record = replace(record, by=self._settings.incarnation, by_node=self._settings.node)
        fenced = replace(record, state=FENCED)
        conditions = (
            Compare(self._keys.alive(node), Target.CREATE, 0),
            Compare(kv.key, Target.MOD, kv.mod_revision),
        )

        def answered(result: TxnResult | None) -> None:
            if result is None or not result.succeeded:
                done(Refused(f"{node}: its record has changed meanwhile; look at csnap status, then ask again"))
                return
            labels = {"target": node, "method": "confirmed", "result": "done"}
            self._effects.observe("fence_events_total", labels, 1)
            self._effects.log(WARNING, "fenced_by_confirmation", {"member": node, "was": record.state})
            done(None)

        self._session.txn(conditions, (Put(kv.key, fenced.to_bytes()),), (), answered)

    def _case(self, node: str, record: MemberRecord, revision: int) -> Case:
        case = self._cases.get(node)
        if case is None or case.record.incarnation != record.incarnation:
            case = self._cases[node] = Case(record, revision)
        case.record, case.revision = record, revision
        return case

    def _name(self, error: FormatError) -> None:
        if str(error) not in self._named:
            self._named.add(str(error))
            self._effects.log(ERROR, "bad_record", {"error": error})

    # ---- beginning

    def _quiet(self) -> bool:
        """An unbroken lease and watch for one TTL; if not yet, look again then."""
        since = max(self._session.since, self._mirror.unbroken_since)
        due = since + self._session.ttl * SECOND
        if self._timers.now() >= due:
            return True
        self._look_at(due)
        return False

    def _surely_gone(self, node: str) -> bool:
        """One that lives revives at once: an old leader of etcd that wakes may end leases that were renewed."""
        now = self._timers.now()
        due = self._gone_since.setdefault(node, now) + margin(self._session.ttl)
        if now < due:
            self._look_at(due)
        return now >= due

    def _look_at(self, when: int) -> None:
        if not self._scheduled:
            self._scheduled = True

            def look() -> None:
                self._scheduled = False
                self.look()

            self._timers.call_at(when, look)

    def _take(self, node: str, record: MemberRecord, kv: KeyValue) -> None:
        """Become the coordinator: of a member that is dead, or whose coordinator is."""
        conditions = [Compare(self._keys.alive(node), Target.CREATE, 0)]
        if record.state != ACTIVE:
            coordinator = self._mirror.alive.get(record.by_node)
            if coordinator is not None and coordinator.value == record.by.encode():
                return
            key = self._keys.alive(record.by_node)
            revision = coordinator.mod_revision if coordinator is not None else 0
            conditions.append(Compare(key, Target.MOD, revision))
        if not self._quiet() or not self._surely_gone(node):
            return
        case = self._case(node, record, kv.mod_revision)
        if case.busy:
            return
        state = FENCING if record.state == ACTIVE else record.state
        taken = replace(record, state=state, by=self._settings.incarnation, by_node=self._settings.node)
        self._effects.log(WARNING, "recovery_taken", {"member": node, "state": record.state})
        self._send(case, (Put(kv.key, taken.to_bytes()),), tuple(conditions))

    def _send(
        self,
        case: Case,
        operations: tuple[Operation, ...],
        conditions: tuple[Compare, ...] = (),
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """One step, under the revision of m/<d> that it was decided from. The mirror shows what became of it."""
        if case.busy:
            return
        case.busy = True
        unchanged = Compare(self._keys.member(case.record.node), Target.MOD, case.revision)

        def answered(result: TxnResult | None) -> None:
            case.busy = False
            if result is not None and result.succeeded:
                done()
            shown = result is not None and self._mirror.reached(result.revision)  # else its next change brings ``look``
            self._look_at(self._timers.now() + (0 if shown else LOOK_AGAIN))

        self._session.txn((unchanged, *conditions), operations, (), answered)

    # ---- the steps

    def _go_on(self, case: Case) -> None:
        if case.busy:
            return
        if case.record.state == FENCING:
            self._fence(case)
        elif case.record.state == FENCED:
            if case.fencing and not case.fenced:  # confirmed by a person meanwhile
                case.fenced = True
                self._fencer.forget(case.record)
            self._clean(case)

    def _fence(self, case: Case) -> None:
        record = case.record
        if case.fenced:
            fenced = replace(record, state=FENCED)
            self._send(case, (Put(self._keys.member(record.node), fenced.to_bytes()),))
        elif not case.fencing:
            case.fencing = True
            self._effects.log(WARNING, "fencing", {"member": record.node, "method": self._fencer.method})

            def done() -> None:
                case.fenced = True
                labels = {"target": record.node, "method": self._fencer.method, "result": "done"}
                self._effects.observe("fence_events_total", labels, 1)
                self._effects.log(WARNING, "fenced", {"member": record.node, "method": self._fencer.method})
                self._look_at(self._timers.now())

            self._fencer.fence(record, done)

    def _clean(self, case: Case) -> None:
        node, mirror = case.record.node, self._mirror
        unfinished = self.settle(case.record.incarnation)
        marks = [kv.key for kv in mirror.counters.values() if kv.key not in case.marked][:BATCH]
        holds = self._holds_of(node)
        extents = [nodes[node].key for nodes in (*mirror.extents.values(), mirror.creations) if node in nodes]
        if unfinished:
            self._send(case, unfinished[:BATCH])
        elif marks:
            self._send(case, tuple(Put(key, UNTRUSTED_MARK) for key in marks), done=lambda: case.marked.update(marks))
        elif holds or extents:
            self._send(case, tuple(Delete(key) for key in (holds or extents)[:BATCH]))
        else:
            key = self._keys.member(node)
            last: Operation = Delete(key)
            if node == self._settings.node:
                last = Put(key, self._own_record().to_bytes())
            self._effects.log(NOTICE, "recovered", {"member": node})
            self._send(case, (last,))

    def _holds_of(self, node: str) -> list[str]:
        """The keys of its holds; the table's last: while it stands, no snapshot can be taken or dropped."""
        keys = [
            (resource == "table", kv.key)
            for resource, holds in self._mirror.holds.items()
            for (holder, _), kv in holds.items()
            if holder == node
        ]
        return [key for _, key in sorted(keys)]
