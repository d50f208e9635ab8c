"""A Kv that counts: how long etcd takes and what it answers. The same interface around any Kv.

``lag``: own transactions that etcd has answered and the watch has not shown yet, in revisions. It is above 0 for a
moment after every transaction; if it stays there, the watch is behind and waiters learn late that they may go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from snapd.lockspace.kv import (
    Failure,
    Kv,
    LeaseResult,
    Range,
    RangeResult,
    Txn,
    TxnResult,
    Watch,
    WatchEvents,
    WatchLost,
    WatchProgress,
)

T = TypeVar("T")

Observe = Callable[[str, dict[str, str], int], None]
Notice = WatchEvents | WatchProgress | WatchLost


def code(result: object) -> str:
    """The label of an outcome: bounded, and what the caller must do about it."""
    if not isinstance(result, Failure):
        return "ok"
    for name in ("wrong_cluster", "no_space", "ambiguous", "refused"):
        if getattr(result, name):
            return name
    return "unavailable"


class ObservedKv:
    """See the module. ``no_space``: the last transaction that failed or succeeded says that etcd is full."""

    def __init__(self, kv: Kv, observe: Observe, now: Callable[[], int]) -> None:
        self._kv, self._observe, self._now = kv, observe, now
        self.no_space = False
        self._written = 0
        self._shown = 0

    @property
    def lag(self) -> int:
        return max(0, self._written - self._shown)

    def txn(self, txn: Txn, timeout: int, done: Callable[[TxnResult | Failure], None]) -> None:
        begun = self._now()
        writes = txn.writes()

        def received(result: TxnResult | Failure) -> None:
            self._count("txn", result, begun)
            if isinstance(result, Failure):
                self.no_space = self.no_space or result.no_space
            elif result.succeeded and writes:
                self.no_space = False
                self._written = max(self._written, result.revision)
            done(result)

        self._kv.txn(txn, timeout, received)

    def range(self, request: Range, timeout: int, done: Callable[[RangeResult | Failure, int], None]) -> None:
        begun = self._now()

        def received(result: RangeResult | Failure, revision: int) -> None:
            self._count("range", result, begun)
            done(result, revision)

        self._kv.range(request, timeout, received)

    def lease_grant(self, ttl: int, timeout: int, done: Callable[[LeaseResult | Failure], None]) -> None:
        self._kv.lease_grant(ttl, timeout, self._counted("lease_grant", done))

    def lease_keepalive(self, lease: int, timeout: int, done: Callable[[LeaseResult | Failure], None]) -> None:
        self._kv.lease_keepalive(lease, timeout, self._counted("lease_keepalive", done))

    def lease_revoke(self, lease: int, timeout: int, done: Callable[[LeaseResult | Failure], None]) -> None:
        self._kv.lease_revoke(lease, timeout, self._counted("lease_revoke", done))

    def watch(self, prefix: str, start_revision: int, notify: Callable[[Notice], None]) -> Watch:
        self._shown = max(self._shown, start_revision - 1)

        def notified(notice: Notice) -> None:
            if isinstance(notice, WatchEvents):
                self._shown = max(self._shown, notice.revision)
            notify(notice)

        return self._kv.watch(prefix, start_revision, notified)

    def _counted(self, op: str, done: Callable[[T], None]) -> Callable[[T], None]:
        begun = self._now()

        def received(result: T) -> None:
            self._count(op, result, begun)
            done(result)

        return received

    def _count(self, op: str, result: object, begun: int) -> None:
        self._observe("etcd_request_seconds", {"op": op, "code": code(result)}, self._now() - begun)
