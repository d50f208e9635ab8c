"""The member's locks: what the worker wants and gives back, turned into transactions, one at a time a resource.

``_step`` looks at one resource and takes the one next step; every event changes the state and calls it:

    worker gave something back             -> release, with the counters it owes
    a hold nobody uses (after a doubt)     -> give it to who waits for it (confirm), or release
    wanted, CR held and EX wanted          -> convert
    wanted, nothing held                   -> acquire; it leaves a ticket if somebody is in the way
    ticket at the head, nobody in the way  -> grant, once the mirror shows it: nobody polls
    ticket nobody wants                    -> withdraw
    held, and others wait                  -> ask the worker for it (bast)

Nothing here is believed twice: after a doubt, ``resync`` takes from the mirror what etcd holds for us, and the same
steps go on from there. *A crash at any point leaves holds without a user in etcd: they grant nothing to anybody
until recovery has fenced this member and marked the counters.*

A counter is put in the transaction that releases the tail or demotes a region, only upwards, and only if it is
still the one we know: who committed beyond its last bump holds the tail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from snapd.errors import FormatError
from snapd.lockspace import claims
from snapd.lockspace.entry import Entry, Exclusive
from snapd.lockspace.keys import Keys
from snapd.lockspace.kv import Compare, KeyValue, Operation, Put, Target, TxnResult
from snapd.lockspace.mirror import Mirror
from snapd.lockspace.ports import ERROR, WARNING, Effects, Settings, Timers
from snapd.lockspace.records import MAX_NUMBER, TicketRecord, counter_value, parse_number
from snapd.lockspace.session import Session
from snapd.lockspace.snapshots import table_of
from snapd.messages import CR, EX, MODE_NAMES, NL, UNTRUSTED, Bumped, Counter, Done, Grant, Revoke
from snapd.units import SECOND

REFUSED_PAUSE = SECOND // 100
"""After a transaction whose condition failed: the mirror was a moment behind and will show why."""

TICKET_GRACE = 2 * SECOND
"""How much older than the freeze limit another's table ticket must be before a frozen member deletes it."""


class Locks:
    """See the module. Does nothing before ``begin`` and nothing after ``end``."""

    def __init__(
        self, settings: Settings, keys: Keys, session: Session, mirror: Mirror, timers: Timers, effects: Effects
    ) -> None:
        self._settings, self._keys, self._session, self._mirror = settings, keys, session, mirror
        self._timers, self._effects = timers, effects
        self._entries: dict[str, Entry] = {}
        self._counters: dict[str, tuple[int, int]] = {}  # store -> (mod_revision, value), the newest known
        self._running = False
        self._exclusive: Exclusive | None = None
        self.transactions = 0
        """Sent so far; for tests that claim how many something takes."""
        self.refusals = 0
        """Grants that were tried in vain."""

    # ---- life

    def begin(self) -> None:
        """The member has joined; its old holds are gone. The table is wanted from now on."""
        self._running = True
        self.want("table", CR)

    def end(self) -> None:
        """Send nothing more."""
        self._running = False
        for entry in self._entries.values():
            self._calm(entry)

    def _calm(self, entry: Entry) -> None:
        if entry.revoke_timer is not None:
            entry.revoke_timer.cancel()
        if entry.timer is not None:
            entry.timer.cancel()
        entry.revoke_timer = entry.timer = None

    def _entry(self, resource: str) -> Entry:
        entry = self._entries.get(resource)
        if entry is None:
            entry = self._entries[resource] = Entry(resource)
        return entry

    # ---- the worker

    def want(self, resource: str, mode: int) -> None:
        """The worker waits for ``resource``; an EX wanted under CR gives the CR up."""
        entry = self._entry(resource)
        self._given_back(entry, NL)
        entry.want, entry.want_since = mode, self._timers.now()
        self._step(entry)

    def done(self, message: Done) -> None:
        """The worker no longer uses ``message.resource`` beyond ``message.mode``."""
        entry = self._entry(message.resource)
        self._given_back(entry, message.mode)
        entry.done = message
        queued = self._exclusive is not None and self._exclusive.ticket
        if message.resource == "table" and not queued:
            entry.want, entry.want_since = CR, self._timers.now()
        self._step(entry)

    def _given_back(self, entry: Entry, mode: int) -> None:
        now = self._timers.now()
        if entry.given > mode:
            labels = {"mode": MODE_NAMES[entry.given], "resource": entry.kind}
            self._effects.observe("lock_hold_seconds", labels, now - entry.given_at)
            reason = "own" if entry.revoked is None else "asked"
            names = {"from": MODE_NAMES[entry.given], "to": MODE_NAMES[mode], "reason": reason}
            self._effects.observe("lock_demotions_total", names, 1)
            if entry.revoked is not None:
                self._effects.observe("lock_demotion_seconds", {"resource": entry.kind}, now - entry.revoked_at)
            entry.given = mode
        entry.revoked = None
        if entry.revoke_timer is not None:
            entry.revoke_timer.cancel()
            entry.revoke_timer = None

    # ---- the mirror

    def changed(self, resources: Iterable[str] | None) -> None:
        """Holds or tickets of these changed; None: anything may have."""
        self.learn(self._mirror.counters.values())
        if resources is None:
            self.ready()
            return
        for resource in resources:
            entry = self._entries.get(resource)
            if entry is not None:
                self._step(entry)

    def learn(self, kvs: Iterable[KeyValue]) -> None:
        """Counters as etcd has them; an older one teaches nothing."""
        for kv in kvs:
            store = kv.key.rpartition("/")[2]
            if kv.mod_revision > self._counters.get(store, (0, 0))[0]:
                self._counters[store] = (kv.mod_revision, counter_value(kv.key, kv.value))

    def ready(self) -> None:
        """A pause, a stall or a doubt has ended."""
        for entry in list(self._entries.values()):
            self._step(entry)
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        if entry.unused and self._entries.get(entry.resource) is entry:
            self._calm(entry)
            del self._entries[entry.resource]

    def resync(self) -> None:
        """Nothing of ours is under way any more: what the mirror shows for this node is what etcd holds."""
        node = self._settings.node
        for resource, holds in self._mirror.holds.items():
            if (node, CR) in holds or (node, EX) in holds:
                self._entry(resource)
        for resource, tickets in self._mirror.tickets.items():
            if node in tickets:
                self._entry(resource)
        self.learn(self._mirror.counters.values())
        for entry in list(self._entries.values()):
            self._resync(entry)

    def _resync(self, entry: Entry) -> None:
        node, holds = self._settings.node, self._mirror.holds.get(entry.resource, {})
        entry.busy = False
        mode = next((mode for mode in (EX, CR) if (node, mode) in holds), NL)
        token = holds[node, mode].create_revision if mode else 0
        ticket = self._mirror.tickets.get(entry.resource, {}).get(node)
        if mode < entry.given:
            self._effects.log(ERROR, "hold_vanished", {"resource": entry.resource, "mode": MODE_NAMES[entry.given]})
            self._session.hold_lost(f"{entry.resource}: a hold of this member has vanished")
            return
        entry.hold, entry.token = mode, token
        entry.ticket = ticket.create_revision if ticket else 0
        entry.ticket_mode = self._ticket_mode(ticket) if ticket else NL
        if entry.done is not None and entry.hold <= entry.done.mode:
            entry.done = None  # that release was applied
        use = self._exclusive
        if use is not None and entry.resource == "table":
            self._resync_exclusive(entry, use)

    # ---- the decision

    def _step(self, entry: Entry) -> None:
        if entry.busy or not self._running or not self._session.usable:
            return
        use = self._exclusive if entry.resource == "table" else None
        if entry.done is not None:
            self._release(entry, entry.done)
        elif use is not None and self._step_exclusive(entry, use):
            pass
        elif entry.hold > entry.given:
            self._unused_hold(entry)
        elif entry.ticket and entry.ticket_mode != entry.want:
            self._withdraw(entry)
        elif entry.ticket:
            self._try_grant(entry)
        elif entry.want:
            self._send(entry, claims.acquire(self._who(), entry.resource, entry.want), self._acquired)
        if not entry.busy:
            self._bast(entry)

    def _who(self) -> claims.Who:
        session, settings = self._session, self._settings
        return claims.Who(self._keys, settings.node, settings.incarnation, session.lease, session.alive)

    def _send(self, entry: Entry, branches: claims.Branches, done: Callable[[Entry, TxnResult], None]) -> None:
        """Send; ``done`` is called with the answer, also of a failed condition. One at a time a resource."""
        entry.busy = True
        self.transactions += 1

        def answered(result: TxnResult | None) -> None:
            entry.busy = False
            if result is not None:
                done(entry, result)
                self._step(entry)
                self._forget(entry)
            # None: nothing happened; ready() follows the pause

        self._session.txn(*branches, answered)

    def _later(self, entry: Entry, when: int) -> None:
        """Look at the entry again at ``when``."""
        if entry.timer is not None:
            entry.timer.cancel()

        def look() -> None:
            entry.timer = None
            self._step(entry)

        entry.timer = self._timers.call_at(when, look)

    def _refused(self, entry: Entry) -> None:
        """A condition failed that the mirror said would hold: it is behind. Look again soon."""
        entry.busy = True
        self.refusals += 1

        def again() -> None:
            entry.busy = False
            self._step(entry)

        self._timers.call_at(self._timers.now() + REFUSED_PAUSE, again)

    # ---- getting

    def _acquired(self, entry: Entry, result: TxnResult) -> None:
        if result.succeeded:
            entry.hold, entry.token = entry.want, result.revision
            self._give(entry, claims.ranges(result))
        else:
            self._ticketed(entry, result)

    def _ticketed(self, entry: Entry, result: TxnResult) -> None:
        """The ELSE branch: a ticket, if its nested conditions held."""
        nested = next((found for found in result.results if isinstance(found, TxnResult)), None)
        if nested is None or not nested.succeeded:
            self._refused(entry)
            return
        entry.hold = entry.token = NL  # a conversion gave the CR up
        entry.ticket, entry.ticket_mode = result.revision, entry.want

    def _converted(self, entry: Entry, result: TxnResult) -> None:
        if result.succeeded:
            entry.hold, entry.token = EX, result.revision
            self._give(entry, claims.ranges(result))
        else:
            self._ticketed(entry, result)

    def _unused_hold(self, entry: Entry) -> None:
        """Held, but the worker was not told: a CR to convert, or what a lost answer left."""
        if entry.hold == CR and entry.want == EX:
            self._send(entry, claims.convert(self._who(), entry.resource, entry.token), self._converted)
        elif entry.want:
            self._send(entry, claims.confirm(self._who(), entry.resource, entry.hold, entry.token), self._confirmed)
        else:
            self._release(entry, Done(entry.resource, entry.given))

    def _confirmed(self, entry: Entry, result: TxnResult) -> None:
        if result.succeeded:
            self._give(entry, claims.ranges(result))
        else:
            self._session.doubt(f"{entry.resource}: the hold that the mirror shows is not there")

    def _try_grant(self, entry: Entry) -> None:
        if self._at_head(entry):
            self._send(entry, claims.grant(self._who(), entry.resource, entry.want, entry.ticket), self._granted)
        elif entry.resource == "table":
            self._thaw_by_force(entry)

    def _at_head(self, entry: Entry) -> bool:
        """Whether the mirror shows our ticket, no conflicting one before it, and no conflicting hold."""
        mirror, node = self._mirror, self._settings.node
        if not mirror.reached(entry.ticket):
            return False
        tickets = mirror.tickets.get(entry.resource, {})
        mine = tickets.get(node)
        if mine is None or mine.create_revision != entry.ticket:
            entry.ticket = 0  # deleted by others, or with the lease
            self._later(entry, self._timers.now())
            return False
        for other, kv in tickets.items():
            ahead = other != node and kv.create_revision < entry.ticket
            if ahead and EX in (entry.ticket_mode, self._ticket_mode(kv)):
                return False
        holds = mirror.holds.get(entry.resource, {})
        return not any(mode == EX or entry.ticket_mode == EX for _, mode in holds)

    def _ticket_mode(self, kv: KeyValue) -> int:
        """The mode of a ticket; one that makes no sense is taken to conflict with everything."""
        try:
            return TicketRecord.from_bytes(kv.key, kv.value).mode
        except FormatError:
            return EX

    def _granted(self, entry: Entry, result: TxnResult) -> None:
        if not result.succeeded:
            self._refused(entry)
            return
        entry.ticket = 0
        entry.hold, entry.token = entry.want, result.revision
        self._give(entry, claims.ranges(result))

    def _give(self, entry: Entry, ranges: claims.Ranges) -> None:
        """Tell the worker, with everything it may believe from now on."""
        now = self._timers.now()
        entry.given, entry.want, entry.given_at, entry.revoked = entry.hold, NL, now, None
        labels = {"mode": MODE_NAMES[entry.hold], "resource": entry.kind}
        self._effects.observe("lock_wait_seconds", labels, now - entry.want_since)
        self._effects.observe("lock_acquisitions_total", {**labels, "source": "granted", "result": "granted"}, 1)
        self.learn(ranges[0])
        counters = tuple(
            Counter(kv.key.rpartition("/")[2], kv.mod_revision, counter_value(kv.key, kv.value)) for kv in ranges[0]
        )
        skip = self._skip(ranges[1]) if entry.kind == "tail" else 0
        snapshots = table_of(ranges[1], self._effects) if entry.kind == "table" else ()
        self._effects.send(Grant(entry.resource, entry.hold, entry.token, counters, skip, snapshots))

    def _skip(self, extents: tuple[KeyValue, ...]) -> int:
        """The first COW chunk behind all extents. One that makes no sense may be any: then nothing is free."""
        skip = 0
        for kv in extents:
            try:
                skip = max(skip, parse_number(kv.key, kv.value))
            except FormatError as error:
                self._effects.log(ERROR, "bad_extent", {"error": error})
                skip = MAX_NUMBER
        return skip

    # ---- giving back

    def _release(self, entry: Entry, done: Done) -> None:
        if entry.hold <= done.mode:
            entry.done = None
            self._step(entry)
            return
        puts, when, bumps = self._owed(done)
        if entry.kind == "tail" and done.reserved:
            store = entry.resource.partition("/")[2]
            puts = (*puts, Put(self._keys.extent(store, self._settings.node), str(done.reserved).encode()))

        def released(entry: Entry, result: TxnResult) -> None:
            if not result.succeeded:
                self._session.doubt(f"{entry.resource}: released under a counter that was marked meanwhile")
                return
            for store, count in bumps:
                self._counters[store] = (result.revision, count)
                self._effects.send(Bumped(store, result.revision))
            entry.hold, entry.token = done.mode, (result.revision if done.mode else 0)
            if entry.done is done:
                entry.done = None

        branches = claims.release(self._who(), entry.resource, entry.hold, entry.token, done.mode, puts, when)
        self._send(entry, branches, released)

    def _owed(self, done: Done) -> tuple[tuple[Operation, ...], tuple[Compare, ...], tuple[tuple[str, int], ...]]:
        """What this release owes: puts of counters, each under the condition that it is the one we know."""
        puts: list[Operation] = []
        when: list[Compare] = []
        bumps: list[tuple[str, int]] = []
        for store, count in done.committed:
            tail = self._entries.get(f"tail/{store}")
            revision, value = self._counters.get(store, (0, UNTRUSTED))
            if tail is None or tail.hold != EX or store not in self._mirror.counters:
                continue  # without the tail nothing is owed; a dropped store has no counter
            if value != UNTRUSTED and count < value:
                self._effects.log(ERROR, "counter_behind", {"store": store, "committed": count, "counter": value})
            elif count != value:
                key = self._keys.counter(store)
                when.append(Compare(key, Target.MOD, revision))
                puts.append(Put(key, str(count).encode()))
                bumps.append((store, count))
        return tuple(puts), tuple(when), tuple(bumps)

    def _withdraw(self, entry: Entry) -> None:
        """Delete a ticket that nobody wants any more."""

        def gone(entry: Entry, result: TxnResult) -> None:
            entry.ticket = 0

        self._send(entry, claims.withdraw(self._who(), entry.resource, entry.ticket), gone)

    # ---- others wait

    def _bast(self, entry: Entry) -> None:
        if not entry.given or entry.done is not None:
            return
        target = self._asked(entry)
        if target is None or (entry.revoked is not None and entry.revoked <= target):
            return
        now = self._timers.now()
        earliest = entry.given_at + self._settings.minimum_hold
        if entry.kind == "region" and now < earliest:
            if entry.timer is None:
                self._later(entry, earliest)
            return
        if entry.revoked is None:
            entry.revoked_at = now
            self._limit(entry)
        entry.revoked = target
        self._effects.send(Revoke(entry.resource, target))

    def _asked(self, entry: Entry) -> int | None:
        """The mode that the tickets of others leave us, None if none conflicts with what we have."""
        modes = [
            self._ticket_mode(kv)
            for node, kv in self._mirror.tickets.get(entry.resource, {}).items()
            if node != self._settings.node or (entry.resource == "table" and self._exclusive is not None)
        ]
        modes = [mode for mode in modes if mode >= entry.conflicting]
        if not modes:
            return None
        return NL if EX in modes or entry.kind != "region" else CR

    def _limit(self, entry: Entry) -> None:
        """What the worker is asked for must be done within a TTL."""
        if entry.revoke_timer is not None:
            entry.revoke_timer.cancel()
        limit = self._timers.now() + self._session.ttl * SECOND
        entry.revoke_timer = self._timers.call_at(limit, lambda: self._unanswered(entry))

    def _unanswered(self, entry: Entry) -> None:
        self._session.give_up(f"{entry.resource}: asked back {self._session.ttl} s ago and still in use")

    # ---- the table, for itself

    def exclusive(self, use: Exclusive) -> None:
        """Queue for the table; one at a time. ``granted`` or ``withdrawn`` is called, once."""
        assert self._exclusive is None
        self._exclusive = use
        self._step(self._entry("table"))

    @property
    def exclusive_wanted(self) -> bool:
        """Whether some use of the table is queued or under way here."""
        return self._exclusive is not None

    def expire(self, use: Exclusive) -> None:
        """Its time is up: ``withdrawn``, unless the grant was quicker."""
        use.expired = True
        self._step(self._entry("table"))

    def finish(self, use: Exclusive, change: tuple[Operation, ...]) -> None:
        """Make the change and come down from EX to CR in one transaction; ``finished`` when it is done."""
        use.finish = change
        entry = self._entry("table")
        self._calm(entry)  # the worker has answered; what is left is etcd's part
        self._step(entry)

    def _step_exclusive(self, entry: Entry, use: Exclusive) -> bool:
        """The step that the table takes for ``use``; False if it takes none."""
        if use.held:
            if use.finish is not None:
                branches = claims.release(
                    self._who(), "table", EX, entry.token, CR, use.finish, reads=claims.reads(self._keys, "table")
                )
                self._send(entry, branches, self._finished)
            return True
        if use.expired or (use.ticket and not entry.ticket):
            self._withdrawn(entry, use)
            return False
        if not use.ticket:
            if entry.given and not entry.ticket:
                self._send(entry, claims.queue(self._who(), "table", EX), self._queued)
            return entry.busy
        if not entry.hold and self._at_head(entry):
            change = use.change()
            if change is not None:
                hold = EX if use.keep else CR
                self._send(entry, claims.grant(self._who(), "table", EX, entry.ticket, hold, change), self._exclusively)
        return True

    def _queued(self, entry: Entry, result: TxnResult) -> None:
        if not result.succeeded:
            self._refused(entry)
            return
        entry.ticket, entry.ticket_mode = result.revision, EX
        if self._exclusive is not None:
            self._exclusive.ticket = result.revision

    def _exclusively(self, entry: Entry, result: TxnResult) -> None:
        use = self._exclusive
        if not result.succeeded or use is None:
            self._refused(entry)
            return
        entry.ticket = 0
        entry.hold, entry.token = (EX if use.keep else CR), result.revision
        self._exclusively_granted(entry, use, claims.ranges(result))

    def _exclusively_granted(self, entry: Entry, use: Exclusive, ranges: claims.Ranges | None = None) -> None:
        """``ranges`` None: the answer was lost. Then the CR is confirmed, and given with what that reads."""
        if use.keep:
            use.held = True
            entry.want = NL
            self._limit(entry)
        else:
            self._exclusive = None
            self._go_on(entry, ranges)
        use.granted()

    def _finished(self, entry: Entry, result: TxnResult) -> None:
        if not result.succeeded:
            self._session.doubt("the table's EX is not where it was")
            return
        entry.hold, entry.token = CR, result.revision
        self._came_down(entry, claims.ranges(result))

    def _came_down(self, entry: Entry, ranges: claims.Ranges | None = None) -> None:
        use, self._exclusive = self._exclusive, None
        assert use is not None
        self._calm(entry)
        self._go_on(entry, ranges)
        use.finished()

    def _withdrawn(self, entry: Entry, use: Exclusive) -> None:
        self._exclusive = None
        if not entry.given and not entry.want:
            self._go_on(entry, None)
        use.withdrawn()

    def _go_on(self, entry: Entry, ranges: claims.Ranges | None) -> None:
        """Back to an ordinary CR for the worker."""
        entry.want, entry.want_since = CR, self._timers.now()
        if ranges is not None:
            self._give(entry, ranges)

    def _resync_exclusive(self, entry: Entry, use: Exclusive) -> None:
        """The table's entry was just taken from the mirror; what became of this use?"""
        if use.held:
            if entry.hold != EX:
                self._came_down(entry)  # it was applied
        elif entry.ticket and entry.ticket_mode == EX:
            use.ticket = entry.ticket
        elif use.ticket and entry.hold and entry.token > use.ticket:
            self._exclusively_granted(entry, use)
        elif use.ticket:
            self._withdrawn(entry, use)

    def _thaw_by_force(self, entry: Entry) -> None:
        """Frozen by another's ticket for longer than it may: delete it, so that no hang freezes the cluster."""
        limit = self._settings.freeze_limit + TICKET_GRACE
        for node, kv in self._mirror.tickets.get("table", {}).items():
            if node == self._settings.node or self._ticket_mode(kv) != EX or kv.create_revision > entry.ticket:
                continue
            due = self._mirror.seen_since(kv.key) + limit
            if self._timers.now() < due:
                self._later(entry, due)
            else:
                self._effects.log(WARNING, "table_ticket_deleted", {"member": node})
                branches = claims.withdraw(self._who(), "table", kv.create_revision, node)
                self._send(entry, branches, lambda entry, result: None)
            return
