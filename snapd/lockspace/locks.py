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

from collections.abc import Iterable

from snapd.lockspace import claims
from snapd.lockspace.entry import Entry
from snapd.lockspace.kv import Compare, Operation, Put, Target, TxnResult
from snapd.lockspace.ports import ERROR
from snapd.lockspace.resources import Resources
from snapd.lockspace.table_use import TableUse
from snapd.messages import CR, EX, MODE_NAMES, NL, UNTRUSTED, Bumped, Done, Revoke


class Locks:
    """See the module. Does nothing before ``begin`` and nothing after ``end``."""

    def __init__(self, resources: Resources, table: TableUse) -> None:
        self._all = resources
        self._table = table
        self._running = False
        resources.step = self._step

    # ---- life

    def begin(self) -> None:
        """The member has joined; its old holds are gone, so is what was seen of them. The table is wanted."""
        self._running = True
        self.resync()
        self.want("table", CR)

    def end(self) -> None:
        """Send nothing more."""
        self._running = False
        for entry in self._all.entries.values():
            self._all.calm(entry)

    # ---- the worker

    def want(self, resource: str, mode: int) -> None:
        """The worker waits for ``resource``; an EX wanted under CR gives the CR up."""
        entry = self._all.entry(resource)
        self._given_back(entry, NL, "upgrade")
        entry.want, entry.want_since = mode, self._all.timers.now()
        self._step(entry)

    def done(self, message: Done) -> None:
        """The worker no longer uses ``message.resource`` beyond ``message.mode``."""
        entry = self._all.entry(message.resource)
        self._given_back(entry, message.mode)
        entry.done = message
        for store, count in message.committed:
            tail = self._all.entries.get(f"tail/{store}")
            if tail is not None:
                tail.told = (tail.token, max(count, tail.told[1]) if tail.told[0] == tail.token else count)
        if message.resource == "table" and not self._table.queued:
            entry.want, entry.want_since = CR, self._all.timers.now()
        self._step(entry)

    def _given_back(self, entry: Entry, mode: int, why: str = "own") -> None:
        now = self._all.timers.now()
        if entry.given > mode:
            labels = {"mode": MODE_NAMES[entry.given], "resource": entry.kind}
            self._all.effects.observe("lock_hold_seconds", labels, now - entry.given_at)
            reason = why if entry.revoked is None else "asked"
            names = {"from": MODE_NAMES[entry.given], "to": MODE_NAMES[mode], "reason": reason}
            self._all.effects.observe("lock_demotions_total", names, 1)
            entry.leaving_since = 0 if entry.revoked is None else entry.revoked_at
            entry.given = mode
        entry.revoked = None
        if entry.revoke_timer is not None:
            entry.revoke_timer.cancel()
            entry.revoke_timer = None

    def _released(self, entry: Entry) -> None:
        """Others can have it now: what they asked for is done."""
        if entry.leaving_since:
            took = self._all.timers.now() - entry.leaving_since
            self._all.effects.observe("lock_demotion_seconds", {"resource": entry.kind}, took)
            entry.leaving_since = 0

    def given_back_tails(self) -> tuple[tuple[str, int], ...]:
        """What the releases of tails owe that are still under way."""
        pending = [
            entry.done for entry in self._all.entries.values() if entry.kind == "tail" and entry.done is not None
        ]
        return tuple(owed for done in pending for owed in done.committed)

    # ---- the mirror

    def changed(self, resources: Iterable[str] | None) -> None:
        """Holds or tickets of these changed; None: anything may have."""
        self._all.learn(self._all.mirror.counters.values())
        if resources is None:
            self.ready()
            return
        for resource in resources:
            entry = self._all.entries.get(resource)
            if entry is not None:
                self._step(entry)

    def ready(self) -> None:
        """A pause, a stall or a doubt has ended."""
        for entry in list(self._all.entries.values()):
            self._step(entry)
            self._all.forget(entry)

    def resync(self) -> None:
        """Nothing of ours is under way any more: what the mirror shows for this node is what etcd holds."""
        node = self._all.settings.node
        for resource, holds in self._all.mirror.holds.items():
            if (node, CR) in holds or (node, EX) in holds:
                self._all.entry(resource)
        for resource, tickets in self._all.mirror.tickets.items():
            if node in tickets:
                self._all.entry(resource)
        self._all.learn(self._all.mirror.counters.values())
        for entry in list(self._all.entries.values()):
            self._resync(entry)

    def _resync(self, entry: Entry) -> None:
        node, holds = self._all.settings.node, self._all.mirror.holds.get(entry.resource, {})
        entry.busy = False
        mode = next((mode for mode in (EX, CR) if (node, mode) in holds), NL)
        token = holds[node, mode].create_revision if mode else 0
        ticket = self._all.mirror.tickets.get(entry.resource, {}).get(node)
        if mode < entry.given:
            self._all.effects.log(ERROR, "hold_vanished", {"resource": entry.resource, "mode": MODE_NAMES[entry.given]})
            self._all.session.hold_lost(f"{entry.resource}: a hold of this member has vanished")
            return
        entry.hold, entry.token = mode, token
        entry.ticket = ticket.create_revision if ticket else 0
        entry.ticket_mode = self._all.ticket_mode(ticket) if ticket else NL
        if entry.done is not None and entry.hold <= entry.done.mode:
            entry.done = None  # that release was applied
            self._released(entry)
        if entry.resource == "table":
            self._table.resync(entry)

    # ---- the decision

    def _step(self, entry: Entry) -> None:
        if entry.busy or not self._running or not self._all.session.usable or self._all.timers.now() < entry.quiet:
            return
        if entry.done is not None:
            self._release(entry, entry.done)
        elif entry.resource == "table" and self._table.step(entry):
            pass
        elif entry.hold > entry.given:
            self._unused_hold(entry)
        elif entry.ticket and entry.ticket_mode != entry.want:
            self._withdraw(entry)
        elif entry.ticket:
            self._try_grant(entry)
        elif entry.want:
            self._all.send(entry, claims.acquire(self._all.who(), entry.resource, entry.want), self._acquired)
        if not entry.busy:
            self._bast(entry)

    # ---- getting

    def _acquired(self, entry: Entry, result: TxnResult) -> None:
        if result.succeeded:
            entry.hold, entry.token = entry.want, result.revision
            self._all.give(entry, claims.ranges(result))
        elif not self._ticketed(entry, result):
            self._all.refused(entry)

    def _ticketed(self, entry: Entry, result: TxnResult) -> bool:
        """The ELSE branch: a ticket, if its nested conditions held; whether they did."""
        nested = next((found for found in result.results if isinstance(found, TxnResult)), None)
        if nested is None or not nested.succeeded:
            return False
        entry.hold = entry.token = NL  # a conversion gave the CR up
        entry.ticket, entry.ticket_mode = result.revision, entry.want
        return True

    def _converted(self, entry: Entry, result: TxnResult) -> None:
        if result.succeeded:
            entry.hold, entry.token = EX, result.revision
            self._all.give(entry, claims.ranges(result))
        elif not self._ticketed(entry, result):
            self._all.session.doubt(f"{entry.resource}: the CR that is to be converted is not there")

    def _unused_hold(self, entry: Entry) -> None:
        """Held, but the worker was not told: a CR to convert, or what a lost answer left."""
        if entry.hold == CR and entry.want == EX:
            self._all.send(entry, claims.convert(self._all.who(), entry.resource, entry.token), self._converted)
        elif entry.want:
            self._all.send(
                entry, claims.confirm(self._all.who(), entry.resource, entry.hold, entry.token), self._confirmed
            )
        else:
            self._release(entry, Done(entry.resource, entry.given))

    def _confirmed(self, entry: Entry, result: TxnResult) -> None:
        if result.succeeded:
            self._all.give(entry, claims.ranges(result))
        else:
            self._all.session.doubt(f"{entry.resource}: the hold that the mirror shows is not there")

    def _try_grant(self, entry: Entry) -> None:
        if self._all.at_head(entry):
            self._all.send(
                entry, claims.grant(self._all.who(), entry.resource, entry.want, entry.ticket), self._granted
            )
        elif entry.resource == "table":
            self._table.thaw_by_force(entry)

    def _granted(self, entry: Entry, result: TxnResult) -> None:
        if not result.succeeded:
            self._all.refused(entry)
            return
        entry.ticket = 0
        entry.hold, entry.token = entry.want, result.revision
        self._all.give(entry, claims.ranges(result))

    # ---- giving back

    def _release(self, entry: Entry, done: Done) -> None:
        if entry.hold <= done.mode:
            entry.done = None
            self._step(entry)
            return
        puts, when, bumps = self._owed(done)
        told = {store: self._all.counters.get(store) for store, _ in bumps}
        if entry.kind == "tail" and done.reserved:
            store = entry.resource.partition("/")[2]
            puts = (*puts, Put(self._all.keys.extent(store, self._all.settings.node), str(done.reserved).encode()))

        def released(entry: Entry, result: TxnResult) -> None:
            if not result.succeeded:
                moved = any(self._all.counters.get(store) != known for store, known in told.items())
                if not moved and told and not entry.refused:  # another release of ours was quicker; its answer comes
                    entry.refused = True
                    self._all.refused(entry)
                elif not moved:
                    self._all.session.doubt(f"{entry.resource}: a counter moved, or the hold is not where it was")
                return  # made anew with the counters that we know by then
            entry.refused = False
            for store, count in bumps:
                self._all.counters[store] = (result.revision, count)
                self._all.effects.send(Bumped(store, result.revision))
            entry.hold, entry.token = done.mode, (result.revision if done.mode else 0)
            self._released(entry)
            if entry.done is done:
                entry.done = None

        branches = claims.release(self._all.who(), entry.resource, entry.hold, entry.token, done.mode, puts, when)
        self._all.send(entry, branches, released)

    def _owed(self, done: Done) -> tuple[tuple[Operation, ...], tuple[Compare, ...], tuple[tuple[str, int], ...]]:
        """What this release owes: puts of counters, each under the condition that it is the one we know.

        A tail that the worker gave back is ours until etcd says so: what its release owes, every other one owes too,
        or a region could be had with a counter that does not cover what was committed in it. What counts is the most
        that was told under this grant of the tail: a release may be overtaken, its counter marked meanwhile, and under
        a later grant its count says nothing, others may have appended and died without a bump.
        """
        puts: list[Operation] = []
        when: list[Compare] = []
        bumps: list[tuple[str, int]] = []
        for store in dict(self.given_back_tails() + done.committed):
            tail = self._all.entries.get(f"tail/{store}")
            revision, value = self._all.counters.get(store, (0, UNTRUSTED))
            if tail is None or tail.hold != EX or tail.told[0] != tail.token or self._all.dropped(store):
                continue  # without the tail nothing is owed; a dropped store has no counter
            count = tail.told[1]
            if value != UNTRUSTED and count < value:
                self._all.effects.log(ERROR, "counter_behind", {"store": store, "committed": count, "counter": value})
            elif count != value:
                key = self._all.keys.counter(store)
                held = self._all.keys.hold(tail.resource, EX, self._all.settings.node)
                when.append(Compare(held, Target.CREATE, tail.token))  # the answer to its release may be on its way
                when.append(Compare(key, Target.MOD, revision))
                record = None if revision else self._all.record(store)
                if record is not None:  # a counter is made only for a snapshot that is there
                    when.append(Compare(record.key, Target.MOD, record.mod_revision))
                puts.append(Put(key, str(count).encode()))
                bumps.append((store, count))
        return tuple(puts), tuple(when), tuple(bumps)

    def _withdraw(self, entry: Entry) -> None:
        """Delete a ticket that nobody wants any more."""

        mode = entry.ticket_mode

        def gone(entry: Entry, result: TxnResult) -> None:
            entry.ticket = 0
            if mode != EX or entry.kind != "table":  # that one is counted by the use it was for
                self._all.count_acquisition(mode, entry.kind, "withdrawn")

        self._all.send(entry, claims.withdraw(self._all.who(), entry.resource, entry.ticket), gone)

    # ---- others wait

    def _bast(self, entry: Entry) -> None:
        if not entry.given or entry.done is not None:
            return
        target = self._asked(entry)
        if target is None or (entry.revoked is not None and entry.revoked <= target):
            return
        now = self._all.timers.now()
        earliest = entry.given_at + self._all.settings.minimum_hold
        if entry.kind == "region" and now < earliest:
            if entry.timer is None:
                self._all.later(entry, earliest)
            return
        if entry.revoked is None:
            entry.revoked_at = now
            self._all.limit(entry)
        entry.revoked = target
        self._all.effects.send(Revoke(entry.resource, target))

    def _asked(self, entry: Entry) -> int | None:
        """The mode that the tickets of others leave us, None if none conflicts with what we have."""
        modes = [
            self._all.ticket_mode(kv)
            for node, kv in self._all.mirror.tickets.get(entry.resource, {}).items()
            if node != self._all.settings.node or (entry.resource == "table" and self._table.queued)
        ]
        modes = [mode for mode in modes if mode >= entry.conflicting]
        if not modes:
            return None
        return NL if EX in modes or entry.kind != "region" else CR
