"""Leaving in order: counters, holds, extents, the member itself. What is left undone is a dead member like any other.

It begins with a doubt: the epoch is bumped, so nothing of ours is in flight and the mirror is definitive.

    1. the counters that are owed      *a crash here leaves holds; recovery marks the counters*
    2. the holds, in batches
    3. extents, m/<me> and a/<me>      *the last transaction; then the lease is revoked, and the tickets go with it*
"""

from __future__ import annotations

from collections.abc import Callable

from snapd.lockspace.keys import Keys
from snapd.lockspace.kv import Compare, Delete, Kv, Operation, Put, Target, TxnResult
from snapd.lockspace.mirror import Mirror
from snapd.lockspace.ports import Settings, Timer, Timers
from snapd.lockspace.records import counter_value
from snapd.lockspace.session import START, TXN_TIMEOUT, Session
from snapd.messages import EX, UNTRUSTED
from snapd.units import SECOND

BATCH = 100
"""Operations in one transaction; etcd takes 128."""

LOOK_AGAIN = SECOND // 200
"""After each transaction; by then the mirror usually shows it. If not, the same is done again, which is harmless."""


class Leaving:
    """``done(clean)`` is called once. ``committed``: what the worker said when it stopped, and before."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        kv: Kv,
        session: Session,
        mirror: Mirror,
        timers: Timers,
        joined: Callable[[], bool],
        in_doubt: Callable[[], bool],
        committed: tuple[tuple[str, int], ...],
        done: Callable[[bool], None],
    ) -> None:
        self._settings, self._keys, self._kv = settings, keys, kv
        self._session, self._mirror, self._timers = session, mirror, timers
        self._joined, self._in_doubt = joined, in_doubt
        self._committed: dict[str, int] = {}
        for store, count in committed:
            self._committed[store] = max(self._committed.get(store, 0), count)
        self._done: Callable[[bool], None] | None = done
        self._busy = self._last = self._gone = False
        self._timer: Timer | None = None

    def begin(self, limit: int) -> None:
        self._timer = self._timers.call_at(self._timers.now() + limit, lambda: self._session.out(None))
        if self._session.phase != START:
            self._session.doubt("leaving")
        elif not self._in_doubt():
            self._go()
        # else: the join becomes known first, or the host that stops would leave a dead member for others to fence
        self.step()

    def came_to_nothing(self) -> None:
        """The join that was under way has failed: nothing was ever held."""
        if self._session.phase == START:
            self._go()

    def step(self) -> None:
        """The next step, whenever the session or the mirror changed."""
        if self._busy or self._gone or not self._session.usable:
            return
        if not self._joined():  # what an older incarnation held is for recovery, which marks the counters first
            self._end_lease()
            return
        conditions, operations = self._next()
        self._busy = True

        def answered(result: TxnResult | None) -> None:
            self._busy = False
            if result is None:
                return
            if not result.succeeded:
                self._session.doubt("leaving: a counter was marked meanwhile")
            elif self._last:
                self._go()
            else:
                self._timers.call_at(self._timers.now() + LOOK_AGAIN, self.step)

        self._last = Delete(self._keys.alive(self._settings.node)) in operations
        self._session.txn(conditions, operations, (), answered)

    def gone(self) -> bool:
        """Whether the mirror shows that the last transaction was applied; its answer may be late, or lost."""
        if self._last and not self._gone and self._settings.node not in self._mirror.members:
            self._go()
        return self._gone

    def _go(self) -> None:
        self._gone = True
        self._end_lease()

    def _end_lease(self) -> None:
        if self._session.lease:
            self._kv.lease_revoke(self._session.lease, TXN_TIMEOUT, lambda result: None)
        self._session.out(None)

    def resync(self) -> None:
        """What was under way is void, or in the mirror."""
        self._busy = False

    def _next(self) -> tuple[tuple[Compare, ...], tuple[Operation, ...]]:
        node, mirror = self._settings.node, self._mirror
        conditions: list[Compare] = []
        puts: list[Operation] = []
        for store, count in self._committed.items():
            kv = mirror.counters.get(store)
            if kv is None or (node, EX) not in mirror.holds.get(f"tail/{store}", {}):
                continue
            value = counter_value(kv.key, kv.value)
            if value == UNTRUSTED or count > value:
                conditions.append(Compare(kv.key, Target.MOD, kv.mod_revision))
                puts.append(Put(kv.key, str(count).encode()))
        if puts:
            return tuple(conditions), tuple(puts)
        holds = [kv.key for holds in mirror.holds.values() for (holder, _), kv in holds.items() if holder == node]
        if holds:
            return (), tuple(Delete(key) for key in holds[:BATCH])
        mine = [
            nodes[node].key
            for nodes in (*mirror.extents.values(), *mirror.opened.values(), mirror.creations)
            if node in nodes
        ]
        mine = [*mine[: BATCH - 2], self._keys.member(node), self._keys.alive(node)]
        return (), tuple(Delete(key) for key in mine)

    def ended(self, in_order: bool) -> None:
        """The session is out."""
        if self._timer is not None:
            self._timer.cancel()
        done, self._done = self._done, None
        if done is not None:
            done(in_order and self._gone)
