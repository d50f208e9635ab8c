"""Every resource of this member, and what is done with one whatever it is: send, give to the worker, look again.

Shared by ``locks`` (what the worker wants) and ``table_use`` (what the cluster does to the table).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from snapd.errors import FormatError
from snapd.lockspace import claims
from snapd.lockspace.entry import Entry
from snapd.lockspace.keys import Keys, is_store
from snapd.lockspace.kv import KeyValue, TxnResult
from snapd.lockspace.mirror import Mirror
from snapd.lockspace.ports import ERROR, Effects, Settings, Timers
from snapd.lockspace.records import MAX_NUMBER, TicketRecord, counter_value, parse_number
from snapd.lockspace.session import Session
from snapd.lockspace.snapshots import records_of, table_of
from snapd.messages import EX, MODE_NAMES, NL, Counter, Grant
from snapd.units import SECOND

REFUSED_PAUSE = SECOND // 100
"""After a transaction whose condition failed: the mirror was a moment behind and will show why."""


class Resources:
    """``step`` is set by ``Locks``: it takes the next step of an entry."""

    step: Callable[[Entry], None]

    def __init__(
        self, settings: Settings, keys: Keys, session: Session, mirror: Mirror, timers: Timers, effects: Effects
    ) -> None:
        self.settings, self.keys, self.session, self.mirror = settings, keys, session, mirror
        self.timers, self.effects = timers, effects
        self.entries: dict[str, Entry] = {}
        self.counters: dict[str, tuple[int, int]] = {}  # store -> (mod_revision, value), the newest known
        self.transactions = 0
        """Sent so far; for tests that claim how many something takes."""
        self.refusals = 0
        """Grants that were tried in vain."""

    def entry(self, resource: str) -> Entry:
        entry = self.entries.get(resource)
        if entry is None:
            entry = self.entries[resource] = Entry(resource)
        return entry

    def forget(self, entry: Entry) -> None:
        """Not the table: a use of it may wait there with nothing else, its ticket deleted by others."""
        if entry.unused and entry.kind != "table" and self.entries.get(entry.resource) is entry:
            self.calm(entry)
            del self.entries[entry.resource]

    def calm(self, entry: Entry) -> None:
        if entry.revoke_timer is not None:
            entry.revoke_timer.cancel()
        if entry.timer is not None:
            entry.timer.cancel()
        entry.revoke_timer = entry.timer = None

    # ---- sending

    def who(self) -> claims.Who:
        session, settings = self.session, self.settings
        return claims.Who(self.keys, settings.node, settings.incarnation, session.lease, session.alive)

    def send(self, entry: Entry, branches: claims.Branches, done: Callable[[Entry, TxnResult], None]) -> None:
        """Send; ``done`` is called with the answer, also of a failed condition. One at a time a resource."""
        entry.busy = True
        self.transactions += 1

        def answered(result: TxnResult | None) -> None:
            entry.busy = False
            if result is not None:
                done(entry, result)
                self.step(entry)
                self.forget(entry)
            # None: nothing happened; ready() follows the pause

        self.session.txn(*branches, answered)

    def later(self, entry: Entry, when: int) -> None:
        """Look at the entry again at ``when``."""
        if entry.timer is not None:
            entry.timer.cancel()

        def look() -> None:
            entry.timer = None
            self.step(entry)

        entry.timer = self.timers.call_at(when, look)

    def refused(self, entry: Entry) -> None:
        """A condition failed that the mirror said would hold: it is behind. Look again soon."""
        self.refusals += 1
        entry.quiet = self.timers.now() + REFUSED_PAUSE
        self.later(entry, entry.quiet)

    # ---- what the mirror shows

    def at_head(self, entry: Entry) -> bool:
        """Whether the mirror shows our ticket, no conflicting one before it, and no conflicting hold."""
        mirror, node = self.mirror, self.settings.node
        if not mirror.reached(entry.ticket):
            return False
        tickets = mirror.tickets.get(entry.resource, {})
        mine = tickets.get(node)
        if mine is None or mine.create_revision != entry.ticket:
            entry.ticket = 0  # deleted by others, or with the lease
            self.later(entry, self.timers.now())
            return False
        for other, kv in tickets.items():
            ahead = other != node and kv.create_revision < entry.ticket
            if ahead and EX in (entry.ticket_mode, self.ticket_mode(kv)):
                return False
        holds = mirror.holds.get(entry.resource, {})
        return not any(mode == EX or entry.ticket_mode == EX for _, mode in holds)

    def ticket_mode(self, kv: KeyValue) -> int:
        """The mode of a ticket; one that makes no sense is taken to conflict with everything."""
        try:
            return TicketRecord.from_bytes(kv.key, kv.value).mode
        except FormatError:
            return EX

    def learn(self, kvs: Iterable[KeyValue]) -> None:
        """Counters as etcd has them; an older one teaches nothing."""
        for kv in kvs:
            store = kv.key.rpartition("/")[2]
            if kv.mod_revision > self.counters.get(store, (0, 0))[0]:
                self.counters[store] = (kv.mod_revision, counter_value(kv.key, kv.value))

    def dropped(self, store: str) -> bool:
        """Whether ``store`` is gone: its counter absent in a mirror newer than what we know of it.

        A counter that was never seen belongs to nobody, or to a snapshot of an etcd that was restored: see ``record``.
        """
        revision = self.counters.get(store, (0, 0))[0]
        if not revision:
            return self.record(store) is None
        return store not in self.mirror.counters and self.mirror.reached(revision)

    def record(self, store: str) -> KeyValue | None:
        """The record of the snapshot whose store this is, as the mirror has it."""
        records = records_of(self.mirror.snapshots.values(), lambda error: None)
        return next((self.mirror.snapshots[each.name] for each in records if each.store == store), None)

    # ---- the worker

    def give(self, entry: Entry, ranges: claims.Ranges) -> None:
        """Tell the worker, with everything it may believe from now on."""
        now = self.timers.now()
        entry.given, entry.want, entry.given_at, entry.revoked = entry.hold, NL, now, None
        self.count_grant(entry.hold, entry.kind, now - entry.want_since)
        self.learn(ranges[0])
        counters = tuple(
            Counter(store, kv.mod_revision, counter_value(kv.key, kv.value))
            for kv in ranges[0]
            if is_store(store := kv.key.rpartition("/")[2])  # a foreign key must not make the message too long
        )
        skip = self._skip(ranges[1]) if entry.kind == "tail" else 0
        snapshots = table_of(ranges[1], self._bad_record) if entry.kind == "table" else ()
        self.effects.send(Grant(entry.resource, entry.hold, entry.token, counters, skip, snapshots))

    def count_grant(self, mode: int, resource: str, waited: int) -> None:
        self.effects.observe("lock_wait_seconds", {"mode": MODE_NAMES[mode], "resource": resource}, waited)
        self.count_acquisition(mode, resource, "granted")

    def count_acquisition(self, mode: int, resource: str, result: str) -> None:
        """result: granted, or withdrawn: nobody here wants it any more."""
        labels = {"mode": MODE_NAMES[mode], "resource": resource, "source": "granted", "result": result}
        self.effects.observe("lock_acquisitions_total", labels, 1)

    def _bad_record(self, error: FormatError) -> None:
        self.effects.log(ERROR, "bad_record", {"error": error})

    def _skip(self, extents: tuple[KeyValue, ...]) -> int:
        """The first COW chunk behind all extents. One that makes no sense may be any: then nothing is free."""
        skip = 0
        for kv in extents:
            try:
                skip = max(skip, parse_number(kv.key, kv.value))
            except FormatError as error:
                self.effects.log(ERROR, "bad_extent", {"error": error})
                skip = MAX_NUMBER
        return skip

    def limit(self, entry: Entry) -> None:
        """What the worker is asked for must be done within a TTL. Past the deadline it cannot finish anything, so a
        stall does not count: an outage of etcd is a pause for who was asked, too.

        Nor does the time in which the worker waits for a tail: its batch needs it before a region can be given back.
        *Why: while the tail of a dead host waits for fencing, which may take minutes, or etcd is full, every host that
        was asked for such a region would end its own lease.* Who holds a tail waits for nobody, so no two hung hosts
        excuse one another."""
        self._limit_from(entry, self.timers.now())

    def _limit_from(self, entry: Entry, begun: int) -> None:
        if entry.revoke_timer is not None:
            entry.revoke_timer.cancel()
        limit = begun + self.session.ttl * SECOND
        entry.revoke_timer = self.timers.call_at(limit, lambda: self._unanswered(entry, begun))

    def _unanswered(self, entry: Entry, begun: int) -> None:
        now, since = self.timers.now(), self.session.since
        waits = entry.kind != "tail" and any(other.want for other in self.entries.values() if other.kind == "tail")
        if self.session.stalled or waits or since > begun:
            self._limit_from(entry, now if self.session.stalled or waits else since)
            return
        self.session.give_up(f"{entry.resource}: asked back {self.session.ttl} s ago and still in use")
