"""A lockspace in one process: grants, basts, counters and extents for several workers, no etcd.

It speaks the worker's messages (snapd.messages) and keeps the rules that the lockspace keeps: FIFO tickets,
CR and EX, counters bumped only by the holder of the tail and only upwards, extents recorded with the tail's
release. Delivery is in order for each worker and at a time the test chooses, so interleavings can be explored.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator

from snapd.messages import (
    CR,
    EX,
    NL,
    UNTRUSTED,
    Bumped,
    Counter,
    Done,
    Grant,
    Message,
    Overflow,
    Revoke,
    Serving,
    SnapshotSpec,
    Want,
)


class Port:
    """One worker's two queues: to it (``inbox``) and from it (``outbox``)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inbox: deque[Message] = deque()
        self.outbox: deque[Message] = deque()
        self.seen: list[Message] = []
        self.serving = False


class LockSim:
    """See the module. ``grants`` counts granting transactions, for tests that claim none was needed."""

    def __init__(self) -> None:
        self.ports: dict[str, Port] = {}
        self.holds: dict[str, dict[str, int]] = {}
        self.queue: dict[str, deque[tuple[str, int]]] = {}
        self.revoked: dict[str, set[str]] = {}
        self.counters: dict[str, tuple[int, int]] = {}
        self.extents: dict[str, dict[str, int]] = {}
        self.snapshots: list[SnapshotSpec] = []
        self.revision = 1
        self.grants = 0
        self.table_op: tuple[str, Callable[[], None]] | None = None

    def join(self, name: str) -> Port:
        port = self.ports[name] = Port(name)
        self._want(name, "table", CR)
        return port

    def crash(self, name: str) -> None:
        """The host is gone and fenced: every counter becomes untrusted, then its holds and extents go."""
        del self.ports[name]
        for store in self.counters:
            self.revision += 1
            self.counters[store] = (self.revision, UNTRUSTED)
        for extents in self.extents.values():
            extents.pop(name, None)
        for resource in list(self.queue):
            self.queue[resource] = deque(item for item in self.queue[resource] if item[0] != name)
        for resource, holds in list(self.holds.items()):
            holds.pop(name, None)
            self._grant(resource)

    def deliver(self, rng: random.Random | None = None) -> bool:
        """Handle one message from a worker; False if there is none."""
        ready = [port for port in self.ports.values() if port.outbox]
        if not ready:
            return False
        port = rng.choice(ready) if rng else ready[0]
        message = port.outbox.popleft()
        port.seen.append(message)
        if isinstance(message, Want):
            self._want(port.name, message.resource, message.mode)
        elif isinstance(message, Done):
            self._done(port.name, message)
        elif isinstance(message, Serving):
            port.serving = not message.error
        elif isinstance(message, Overflow):
            self.change_table(port.name, lambda: self._mark_invalid(message.store))
        return True

    def change_table(self, coordinator: str, change: Callable[[], None]) -> None:
        """Drain every host, change the table, let them go on: a snapshot is taken, dropped or invalidated."""
        if self.table_op is None:
            self.table_op = (coordinator, change)
            self.queue.setdefault("table", deque()).appendleft((coordinator, EX))
            self._grant("table")

    def take(self, spec: SnapshotSpec) -> None:
        """Change of the table: a new newest snapshot with an empty store."""
        self.revision += 1
        self.counters[spec.store] = (self.revision, 0)
        self.snapshots.insert(0, spec)

    def _mark_invalid(self, store: str) -> None:
        found = False
        for index, spec in enumerate(self.snapshots):
            found = found or spec.store == store
            if found:
                self.snapshots[index] = SnapshotSpec(
                    spec.name, spec.store, spec.path, "invalid", spec.writable, spec.generation
                )

    def _want(self, name: str, resource: str, mode: int) -> None:
        self.holds.setdefault(resource, {}).pop(name, None)  # EX wanted under CR: the CR is given up
        self.queue.setdefault(resource, deque()).append((name, mode))
        self._grant(resource)

    def _conflicts(self, resource: str, name: str, mode: int) -> Iterator[tuple[str, int]]:
        for holder, held in self.holds.setdefault(resource, {}).items():
            if holder != name and (mode == EX or held == EX):
                yield holder, held

    def _grant(self, resource: str) -> None:
        queue = self.queue.setdefault(resource, deque())
        while queue:
            name, mode = queue[0]
            conflicts = list(self._conflicts(resource, name, mode))
            if resource == "table" and mode == EX and self.holds["table"].get(name):
                conflicts.append((name, CR))
            if conflicts:
                self._bast(resource, mode, [holder for holder, _ in conflicts])
                return
            queue.popleft()
            if resource == "table" and mode == EX:
                assert self.table_op is not None
                change, self.table_op = self.table_op[1], None
                change()
                continue
            self._give(resource, name, mode)

    def _bast(self, resource: str, mode: int, holders: list[str]) -> None:
        told = self.revoked.setdefault(resource, set())
        for holder in holders:
            if holder not in told:
                told.add(holder)
                target = NL if mode == EX or resource == "table" else CR
                self.ports[holder].inbox.append(Revoke(resource, target))

    def _give(self, resource: str, name: str, mode: int) -> None:
        self.holds[resource][name] = mode
        self.revoked.setdefault(resource, set()).discard(name)
        self.revision += 1
        self.grants += 1
        kind, _, store = resource.partition("/")
        skip = max(self.extents.get(store, {}).values(), default=0) if kind == "tail" else 0
        table = tuple(self.snapshots) if kind == "table" else ()
        counters = tuple(Counter(uuid, revision, value) for uuid, (revision, value) in self.counters.items())
        self.ports[name].inbox.append(Grant(resource, mode, self.revision, counters, skip, table))

    def _done(self, name: str, message: Done) -> None:
        port = self.ports[name]
        for store, count in message.committed:
            held = self.holds.get(f"tail/{store}", {}).get(name)
            if held and store in self.counters:
                _, value = self.counters[store]
                assert value == UNTRUSTED or count >= value, "a counter would go back"
                if value == UNTRUSTED or count > value:
                    self.revision += 1
                    self.counters[store] = (self.revision, count)
                    port.inbox.append(Bumped(store, self.revision))
        kind, _, store = message.resource.partition("/")
        if kind == "tail" and message.reserved:
            self.extents.setdefault(store, {})[name] = message.reserved
        self.revoked.setdefault(message.resource, set()).discard(name)
        if message.mode:
            self.holds[message.resource][name] = message.mode
        else:
            self.holds[message.resource].pop(name, None)
        if message.resource == "table":
            self.queue["table"].append((name, CR))
        self._grant(message.resource)
