"""One use of the table without anybody beside it: a snapshot is taken, deleted or invalidated.

    queued     a ticket for EX; the worker keeps its CR until it is asked for it, like everybody
    granted    the transaction that makes the change; it leaves CR (a snapshot is taken), or EX
    held       EX, until ``finish`` makes the rest of the change and comes down to CR in one transaction
    withdrawn  its time is up, or the ticket is gone (with the lease; deleted by a member that was frozen too long)

An answer that was lost needs no memory: after a doubt the mirror shows the ticket, the hold, or neither.
"""

from __future__ import annotations

from snapd.lockspace import claims
from snapd.lockspace.entry import Entry, Exclusive
from snapd.lockspace.kv import Operation, TxnResult
from snapd.lockspace.ports import WARNING
from snapd.lockspace.resources import Resources
from snapd.messages import CR, EX, NL
from snapd.units import SECOND

TICKET_GRACE = 2 * SECOND
"""How much older than the freeze limit another's table ticket must be before a frozen member deletes it."""


class TableUse:
    """See the module. One use at a time."""

    def __init__(self, resources: Resources) -> None:
        self._all = resources
        self._use: Exclusive | None = None

    @property
    def queued(self) -> bool:
        """Whether a ticket of ours for EX is out: the worker's CR comes back only with, or after, the grant."""
        return self._use is not None and self._use.ticket > 0

    def queue(self, use: Exclusive) -> None:
        """Queue for the table; one at a time. ``granted`` or ``withdrawn`` is called, once."""
        assert self._use is None
        self._use = use
        use.since = self._all.timers.now()
        self._all.step(self._all.entry("table"))

    @property
    def busy(self) -> bool:
        """Whether some use of the table is queued or under way here."""
        return self._use is not None

    def look(self) -> None:
        """What ``change`` depends on may have changed."""
        self._all.step(self._all.entry("table"))

    def expire(self, use: Exclusive) -> None:
        """Its time is up: ``withdrawn``, unless the grant was quicker."""
        use.expired = True
        self._all.step(self._all.entry("table"))

    def finish(self, use: Exclusive, change: tuple[Operation, ...]) -> None:
        """Make the change and come down from EX to CR in one transaction; ``finished`` when it is done."""
        use.finish = change
        entry = self._all.entry("table")
        self._all.calm(entry)  # the worker has answered; what is left is etcd's part
        self._all.step(entry)

    def step(self, entry: Entry) -> bool:
        """The step that the table's entry takes for the use; False if it takes none."""
        use = self._use
        if use is None:
            return False
        if use.held:
            if use.finish is not None:
                branches = claims.release(
                    self._all.who(),
                    "table",
                    EX,
                    entry.token,
                    CR,
                    use.finish,
                    reads=claims.reads(self._all.keys, "table"),
                )
                self._all.send(entry, branches, self._finished)
            return True
        if use.expired or (use.ticket and not entry.ticket):
            self._withdrawn(entry, use)
            return entry.busy  # the next use may have taken a step already
        if not use.ticket:
            if entry.given and not entry.ticket:
                self._all.send(entry, claims.queue(self._all.who(), "table", EX), self._queued)
            return entry.busy
        if not entry.hold and self._all.at_head(entry):
            change = use.change()
            if change is not None:
                hold = EX if use.keep else CR
                self._all.send(
                    entry, claims.grant(self._all.who(), "table", EX, entry.ticket, hold, change), self._granted
                )
        return True

    def _queued(self, entry: Entry, result: TxnResult) -> None:
        if not result.succeeded:
            self._all.refused(entry)
            return
        entry.ticket, entry.ticket_mode = result.revision, EX
        if self._use is not None:
            self._use.ticket = result.revision

    def _granted(self, entry: Entry, result: TxnResult) -> None:
        use = self._use
        if not result.succeeded or use is None:
            self._all.refused(entry)
            return
        entry.ticket = 0
        entry.hold, entry.token = (EX if use.keep else CR), result.revision
        self._enter(entry, use, claims.ranges(result))

    def _enter(self, entry: Entry, use: Exclusive, ranges: claims.Ranges | None = None) -> None:
        """``ranges`` None: the answer was lost. Then the CR is confirmed, and given with what that reads."""
        now = self._all.timers.now()
        self._all.count_grant(EX, "table", now - use.since)
        use.since = now
        if use.keep:
            use.held = True
            entry.want = NL
            self._all.limit(entry)
        else:
            self._use = None
            self._go_on(entry, ranges)
        use.granted()

    def _finished(self, entry: Entry, result: TxnResult) -> None:
        if not result.succeeded:
            self._all.session.doubt("the table's EX is not where it was")
            return
        entry.hold, entry.token = CR, result.revision
        self._came_down(entry, claims.ranges(result))

    def _came_down(self, entry: Entry, ranges: claims.Ranges | None = None) -> None:
        use, self._use = self._use, None
        assert use is not None
        self._all.calm(entry)
        held = self._all.timers.now() - use.since
        self._all.effects.observe("lock_hold_seconds", {"mode": "EX", "resource": "table"}, held)
        self._all.effects.observe("lock_demotions_total", {"from": "EX", "to": "CR", "reason": "own"}, 1)
        self._go_on(entry, ranges)
        use.finished()

    def _withdrawn(self, entry: Entry, use: Exclusive) -> None:
        self._use = None
        self._all.count_acquisition(EX, "table", "withdrawn")
        if not entry.given and not entry.want:
            self._go_on(entry, None)
        use.withdrawn()

    def _go_on(self, entry: Entry, ranges: claims.Ranges | None) -> None:
        """Back to an ordinary CR for the worker."""
        entry.want, entry.want_since = CR, self._all.timers.now()
        if ranges is not None:
            self._all.give(entry, ranges)

    def resync(self, entry: Entry) -> None:
        """The table's entry was just taken from the mirror; what became of the use?"""
        use = self._use
        if use is None:
            return
        if use.held:
            if entry.hold != EX:
                self._came_down(entry)  # it was applied
        elif entry.ticket and entry.ticket_mode == EX:
            use.ticket = entry.ticket
        elif use.ticket and entry.hold and entry.token > use.ticket:
            self._enter(entry, use)
        elif use.ticket:
            self._withdrawn(entry, use)

    def thaw_by_force(self, entry: Entry) -> None:
        """Frozen by another's ticket for longer than it may: delete it, so that no hang freezes the cluster."""
        limit = self._all.settings.limits.freeze + TICKET_GRACE
        for node, kv in self._all.mirror.tickets.get("table", {}).items():
            if node == self._all.settings.node or self._all.ticket_mode(kv) != EX or kv.create_revision > entry.ticket:
                continue
            due = self._all.mirror.seen_since(kv.key) + limit
            if self._all.timers.now() < due:
                self._all.later(entry, due)
            else:
                self._all.effects.log(WARNING, "table_ticket_deleted", {"member": node})
                branches = claims.withdraw(self._all.who(), "table", kv.create_revision, node)
                self._all.send(entry, branches, lambda entry, result: None)
            return
