"""etcd's multi-version store in memory: revisions, transactions and their checks, history. No time, no network.

Follows etcd 3.4 and 3.5: etcdserver/apply.go, api/v3rpc/key.go (checks) and mvcc/kvstore_txn.go. A revision belongs
to a transaction that changed something; deleting nothing changes nothing, putting an equal value does.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from snapd.lockspace.kv import (
    Compare,
    Delete,
    Event,
    KeyValue,
    Operation,
    Put,
    Range,
    RangeResult,
    Target,
    Txn,
    TxnResult,
)

MAX_OPERATIONS = 128  # etcd's --max-txn-ops
TO_THE_END = "\0"  # as range_end: every key from ``key`` on


class Refusal(Exception):
    """etcd refuses the request; nothing was changed."""

    def __init__(self, message: str, no_space: bool = False) -> None:
        super().__init__(message)
        self.no_space = no_space


def contains(key: str, range_end: str, candidate: str) -> bool:
    """Whether [key, range_end) (just ``key`` if there is no end) contains ``candidate``."""
    if not range_end:
        return candidate == key
    return key <= candidate and (range_end == TO_THE_END or candidate < range_end)


class Store:
    """``changed`` is told the events of every new revision, in order."""

    def __init__(self, changed: Callable[[int, tuple[Event, ...]], None]) -> None:
        self.revision = 1
        self.compacted = 0
        self.live: dict[str, KeyValue] = {}
        self._changed = changed
        self._live_keys: list[str] = []
        self._keys: list[str] = []  # every key with history
        self._versions: dict[str, list[tuple[int, KeyValue | None]]] = {}
        self._log: list[tuple[int, tuple[Event, ...]]] = []
        self._events: list[Event] = []  # of the transaction that is being applied

    def copy(self, changed: Callable[[int, tuple[Event, ...]], None]) -> Store:
        """Return what a backup of this moment would hold."""
        twin = Store(changed)
        twin.revision, twin.compacted = self.revision, self.compacted
        twin.live = dict(self.live)
        twin._live_keys, twin._keys, twin._log = list(self._live_keys), list(self._keys), list(self._log)
        twin._versions = {key: list(versions) for key, versions in self._versions.items()}
        return twin

    def range(self, request: Range) -> RangeResult:
        """Answer a range at its revision; Refusal if that is compacted or in the future."""
        self._check_revision(request.revision)
        found: list[KeyValue] = []
        for kv in self._at(request.key, request.range_end, request.revision):
            if request.limit and len(found) == request.limit:
                return RangeResult(tuple(found), more=True)
            found.append(replace(kv, value=b"") if request.keys_only else kv)
        return RangeResult(tuple(found))

    def txn(self, txn: Txn, lease_exists: Callable[[int], bool]) -> TxnResult:
        """Check, then apply: nothing fails in the middle."""
        check_operations(txn)
        path = self._decide(txn)
        self._check_path(txn, path, lease_exists)
        result = self._apply(txn, path)
        self._finish()
        return replace(result, revision=self.revision)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete ``keys`` in one revision (a lease that ends)."""
        for key in sorted(keys):
            self._delete(key)
        self._finish()

    def history(self, key: str, range_end: str, start: int) -> Iterator[tuple[int, tuple[Event, ...]]]:
        """Yield the revisions from ``start`` on that changed the range, with its events."""
        for revision, events in self._log[bisect_left(self._log, start, key=lambda entry: entry[0]) :]:
            mine = tuple(event for event in events if contains(key, range_end, event.kv.key))
            if mine:
                yield revision, mine

    def compact(self, revision: int) -> None:
        """Forget what ``revision`` no longer shows."""
        if revision <= self.compacted:
            raise Refusal("etcdserver: mvcc: required revision has been compacted")
        if revision > self.revision:
            raise Refusal("etcdserver: mvcc: required revision is a future revision")
        self.compacted = revision
        self._log = [entry for entry in self._log if entry[0] >= revision]
        for key, versions in list(self._versions.items()):
            keep = max(0, sum(1 for changed, _ in versions if changed <= revision) - 1)
            rest = versions[keep:]
            if len(rest) == 1 and rest[0][1] is None and rest[0][0] <= revision:
                del self._versions[key]
                self._keys.remove(key)
            else:
                self._versions[key] = rest

    def _at(self, key: str, range_end: str, revision: int) -> Iterator[KeyValue]:
        if revision == 0 or (revision == self.revision and not self._events):
            for name in self._names(self._live_keys, key, range_end):
                yield self.live[name]
            return
        for name in self._names(self._keys, key, range_end):
            versions = self._versions[name]
            index = bisect_left(versions, revision + 1, key=lambda version: version[0])
            kv = versions[index - 1][1] if index else None
            if kv is not None:
                yield kv

    @staticmethod
    def _names(names: list[str], key: str, range_end: str) -> list[str]:
        first = bisect_left(names, key)
        if not range_end:
            return names[first : first + 1] if names[first : first + 1] == [key] else []
        return names[first:] if range_end == TO_THE_END else names[first : bisect_left(names, range_end)]

    def _check_revision(self, revision: int) -> None:
        if revision > self.revision:
            raise Refusal("etcdserver: mvcc: required revision is a future revision")
        if 0 < revision < self.compacted:
            raise Refusal("etcdserver: mvcc: required revision has been compacted")

    def _decide(self, txn: Txn) -> list[bool]:
        """Return the branches taken, depth first: every compare sees the state before the transaction."""
        succeeded = all(self._holds(compare) for compare in txn.compare)
        path = [succeeded]
        for operation in txn.success if succeeded else txn.failure:
            if isinstance(operation, Txn):
                path += self._decide(operation)
        return path

    def _holds(self, compare: Compare) -> bool:
        values = [
            kv.create_revision if compare.target is Target.CREATE else kv.mod_revision
            for kv in self._at(compare.key, compare.range_end, 0)
        ]
        if compare.less:
            return all(value < compare.revision for value in values or [0])
        return all(value == compare.revision for value in values or [0])

    def _check_path(self, txn: Txn, path: list[bool], lease_exists: Callable[[int], bool]) -> None:
        for operation in taken(txn, iter(path)):
            if isinstance(operation, Range):
                self._check_revision(operation.revision)
            elif isinstance(operation, Put) and operation.lease and not lease_exists(operation.lease):
                raise Refusal("etcdserver: requested lease not found")

    def _apply(self, txn: Txn, path: list[bool]) -> TxnResult:
        succeeded = path.pop(0)
        results: list[RangeResult | TxnResult | None] = []
        for operation in txn.success if succeeded else txn.failure:
            if isinstance(operation, Range):
                results.append(self.range(operation))
            elif isinstance(operation, Txn):
                results.append(self._apply(operation, path))
            else:
                if isinstance(operation, Put):
                    self._put(operation)
                else:
                    for name in self._names(self._live_keys, operation.key, operation.range_end):
                        self._delete(name)
                results.append(None)
        return TxnResult(succeeded, 0, tuple(results))

    def _put(self, put: Put) -> None:
        revision = self.revision + 1
        old = self.live.get(put.key)
        kv = KeyValue(put.key, put.value, old.create_revision if old else revision, revision, put.lease)
        if old is None:
            insort(self._live_keys, put.key)
        self.live[put.key] = kv
        self._record(put.key, kv)
        self._events.append(Event(kv, deleted=False))

    def _delete(self, key: str) -> None:
        del self.live[key]
        del self._live_keys[bisect_left(self._live_keys, key)]
        self._record(key, None)
        self._events.append(Event(KeyValue(key, b"", 0, self.revision + 1), deleted=True))

    def _record(self, key: str, kv: KeyValue | None) -> None:
        if key not in self._versions:
            insort(self._keys, key)
        self._versions.setdefault(key, []).append((self.revision + 1, kv))

    def _finish(self) -> None:
        if self._events:
            self.revision += 1
            events, self._events = tuple(self._events), []
            self._log.append((self.revision, events))
            self._changed(self.revision, events)


def taken(txn: Txn, path: Iterator[bool]) -> Iterator[Operation]:
    """Yield the operations, nested ones too, of the branches in ``path``."""
    for operation in txn.success if next(path) else txn.failure:
        if isinstance(operation, Txn):
            yield from taken(operation, path)
        else:
            yield operation


def check_operations(txn: Txn) -> None:
    """Raise Refusal for what etcd refuses before it looks at any key."""
    _check_count(txn, MAX_OPERATIONS)
    _check_overlap(txn.success)
    _check_overlap(txn.failure)


def _check_count(txn: Txn, limit: int) -> None:
    count = max(len(txn.compare), len(txn.success), len(txn.failure))
    if count > limit:
        raise Refusal("etcdserver: too many operations in txn request")
    for item in (*txn.compare, *txn.success, *txn.failure):
        if isinstance(item, Txn):
            _check_count(item, limit - count)
        elif not item.key:
            raise Refusal("etcdserver: key is not provided")


def _check_overlap(operations: tuple[Operation, ...]) -> tuple[set[str], list[Delete]]:
    """Return the keys put and the ranges deleted below; no key may be changed twice."""
    deletes = [operation for operation in operations if isinstance(operation, Delete)]
    puts: set[str] = set()

    def add(key: str, exclusive: frozenset[str] = frozenset()) -> None:
        if (key in puts and key not in exclusive) or any(contains(d.key, d.range_end, key) for d in deletes):
            raise Refusal("etcdserver: duplicate key given in txn request")
        puts.add(key)

    for operation in operations:
        if isinstance(operation, Txn):
            then_puts, then_deletes = _check_overlap(operation.success)
            else_puts, else_deletes = _check_overlap(operation.failure)
            for key in then_puts:
                add(key)
            for key in else_puts:
                add(key, frozenset(then_puts))  # one or the other
            deletes += then_deletes + else_deletes
    for operation in operations:
        if isinstance(operation, Put):
            add(operation.key)
    return puts, deletes
