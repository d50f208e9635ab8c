"""A mirror of everything under the cluster's prefix: exactly what etcd held at ``revision``.

It has one source, which is in order by itself: a range at one revision, then the events of a watch opened right
behind it. Answers to transactions are not merged in; who sent one knows its outcome and its revision, and asks
``reached(revision)`` before believing the mirror about anything that has to do with it. A progress answer proves
that the stream lives and advances nothing.

Keys that make no sense are kept out and named once; values are parsed by whoever needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from snapd.lockspace.keys import Keys, Parsed
from snapd.lockspace.kv import Event, Failure, KeyValue, Kv, Watch, WatchEvents, WatchLost, WatchProgress
from snapd.lockspace.pages import read_prefix
from snapd.lockspace.ports import WARNING, Effects, Timer, Timers
from snapd.units import SECOND

RANGE_TIMEOUT = 3 * SECOND
RETRY = SECOND // 4
"""Between attempts to read everything anew."""

PROGRESS = 3 * SECOND // 2
"""Between progress requests; an answer takes 0.2 to 0.6 ms."""

SILENCE = 4 * SECOND
"""A stream that says nothing for so long, two requests unanswered, is dropped."""

K = TypeVar("K")

Changed = Callable[[set[str] | None], None]
"""Told the resources whose holds or tickets changed, with "" for all other keys; None: anything may have."""


class Mirror:
    """``changed`` and ``wrong_cluster`` are called when everything is consistent again."""

    def __init__(
        self,
        keys: Keys,
        kv: Kv,
        timers: Timers,
        effects: Effects,
        changed: Changed,
        wrong_cluster: Callable[[str], None],
    ) -> None:
        self.revision = 0
        self.ready = False
        self.unbroken_since = 0
        """Since when the watch has been open without a gap."""
        self._keys, self._kv, self._timers, self._effects = keys, kv, timers, effects
        self._changed, self._wrong_cluster = changed, wrong_cluster
        self._watch: Watch | None = None
        self._attempt = 0  # answers to older ones are ignored
        self._heard = 0
        self._ticker: Timer | None = None
        self._named: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        self.format: KeyValue | None = None
        self.holds: dict[str, dict[tuple[str, int], KeyValue]] = {}  # resource -> (node, mode)
        self.tickets: dict[str, dict[str, KeyValue]] = {}  # resource -> node
        self.members: dict[str, KeyValue] = {}
        self.alive: dict[str, KeyValue] = {}
        self.snapshots: dict[str, KeyValue] = {}
        self.counters: dict[str, KeyValue] = {}
        self.extents: dict[str, dict[str, KeyValue]] = {}  # store -> node
        self.creations: dict[str, KeyValue] = {}  # node
        self.opened: dict[str, dict[str, KeyValue]] = {}
        self.since: dict[str, tuple[int, int]] = {}  # hold or ticket key -> (create_revision, first seen)

    def reached(self, revision: int) -> bool:
        """Whether the mirror shows everything up to ``revision``."""
        return self.ready and self.revision >= revision

    def seen_since(self, key: str) -> int:
        """When this hold or ticket was first seen here."""
        return self.since.get(key, (0, self._timers.now()))[1]

    # ---- keeping it

    def open(self) -> None:
        """Read everything and watch from there. Also when it is open already: anew."""
        self.close()
        self._attempt += 1
        attempt = self._attempt

        def received(result: tuple[KeyValue, ...] | Failure, revision: int) -> None:
            if attempt != self._attempt:
                return
            if isinstance(result, Failure):
                if result.wrong_cluster:
                    self._wrong_cluster(result.message)
                else:
                    self._again(attempt)
                return
            self._load(result, revision)

        read_prefix(self._kv, self._keys.prefix, RANGE_TIMEOUT, received)

    def close(self) -> None:
        """Stop watching; nothing is reported any more."""
        self._attempt += 1
        self.ready = False
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    def _again(self, attempt: int) -> None:
        self._timers.call_at(self._timers.now() + RETRY, lambda: self.open() if attempt == self._attempt else None)

    def _load(self, kvs: tuple[KeyValue, ...], revision: int) -> None:
        since = self.since
        self._clear()
        self.since = since
        for kv in kvs:
            self._set(kv)
        self.since = {kv.key: self.since[kv.key] for kv in kvs if kv.key in self.since}
        self.revision, self.ready = revision, True
        self.unbroken_since = self._heard = self._timers.now()
        attempt = self._attempt
        self._watch = self._kv.watch(self._keys.prefix, revision + 1, lambda notice: self._notified(attempt, notice))
        self._tick(attempt)
        self._changed(None)

    def _tick(self, attempt: int) -> None:
        if attempt != self._attempt or self._watch is None:
            return
        now = self._timers.now()
        if now - self._heard > SILENCE:
            self._lost("silent")
            return
        self._watch.request_progress()
        self._ticker = self._timers.call_at(now + PROGRESS, lambda: self._tick(attempt))

    def _notified(self, attempt: int, notice: WatchEvents | WatchProgress | WatchLost) -> None:
        if attempt != self._attempt:
            return
        self._heard = self._timers.now()
        if isinstance(notice, WatchLost):
            self._lost(notice.reason)
        elif isinstance(notice, WatchEvents):
            touched = {self._apply(event) for event in notice.events if event.kv.mod_revision > self.revision}
            self.revision = max(self.revision, notice.revision)
            if touched:
                self._changed(touched)

    def _lost(self, reason: str) -> None:
        self._effects.log(WARNING, "watch_lost", {"reason": reason})
        self.close()
        self._again(self._attempt)

    # ---- its content

    def _apply(self, event: Event) -> str:
        kv = event.kv
        parsed = self._keys.parse(kv.key)
        if parsed is None:
            return ""
        if event.deleted:
            self._remove(parsed, kv.key)
        else:
            self._set(kv)
        return parsed.resource

    def _set(self, kv: KeyValue) -> None:
        parsed = self._keys.parse(kv.key)
        if parsed is None:
            if kv.key not in self._named:
                self._named.add(kv.key)
                self._effects.log(WARNING, "foreign_key", {"key": kv.key})
            return
        if parsed.kind in ("h", "q") and self.since.get(kv.key, (0, 0))[0] != kv.create_revision:
            self.since[kv.key] = (kv.create_revision, self._timers.now())
        match parsed.kind:
            case "h":
                self.holds.setdefault(parsed.resource, {})[parsed.node, parsed.mode] = kv
            case "q":
                self.tickets.setdefault(parsed.resource, {})[parsed.node] = kv
            case "x":
                self.extents.setdefault(parsed.store, {})[parsed.node] = kv
            case "o":
                self.opened.setdefault(parsed.store, {})[parsed.node] = kv
            case "format":
                self.format = kv
            case _:
                self._flat(parsed)[parsed.node or parsed.store or parsed.name] = kv

    def _remove(self, parsed: Parsed, key: str) -> None:
        self.since.pop(key, None)
        match parsed.kind:
            case "h":
                _discard(self.holds, parsed.resource, (parsed.node, parsed.mode))
            case "q":
                _discard(self.tickets, parsed.resource, parsed.node)
            case "x":
                _discard(self.extents, parsed.store, parsed.node)
            case "o":
                _discard(self.opened, parsed.store, parsed.node)
            case "format":
                self.format = None
            case _:
                self._flat(parsed).pop(parsed.node or parsed.store or parsed.name, None)

    def _flat(self, parsed: Parsed) -> dict[str, KeyValue]:
        return {"m": self.members, "a": self.alive, "c": self.creations, "s": self.snapshots, "v": self.counters}[
            parsed.kind
        ]


def _discard(table: dict[str, dict[K, KeyValue]], outer: str, inner: K) -> None:
    """Remove an entry, and its row when that was the last one."""
    row = table.get(outer, {})
    row.pop(inner, None)
    if not row:
        table.pop(outer, None)
