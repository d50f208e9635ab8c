"""A witness of the lockspace: it watches a volume's keys in etcd as long as a test runs, and says what must not be.

    - a region, a tail or the table is held EX by one host and by another one in any mode
    - a counter's value goes back (one that is marked untrusted says nothing)

After a compaction or a restored backup it begins anew: what happened meanwhile it has not seen.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue
from types import TracebackType

from snapd.lockspace.etcd import Etcd
from snapd.lockspace.keys import Keys
from snapd.lockspace.kv import Event, Failure, KeyValue, WatchEvents, WatchLost, WatchProgress
from snapd.lockspace.pages import read_prefix
from snapd.lockspace.records import UNTRUSTED_MARK, MemberRecord, counter_value
from snapd.messages import EX
from tests.support.etcd_server import wait_for

SECOND = 1_000_000_000
AGAIN = 0.1  # seconds until it tries again
LIMIT = 60.0


class Observer:
    """See the module. ``problems`` is to be empty. Times are of the machine's monotonic clock."""

    def __init__(self, endpoints: Sequence[str], cluster_uuid: str) -> None:
        self.problems: list[str] = []
        self.members: dict[str, str] = {}  # node -> state
        self.coordinators: dict[str, str] = {}  # node -> who fences or cleans it up
        self.died: dict[str, float] = {}  # node -> when its liveness key was last seen to go
        self.fenced: dict[str, float] = {}  # node -> when it was last seen to be fenced
        self.handed_over = 0  # regions seen to go from one host to another
        self._keys = Keys(cluster_uuid)
        self._actions: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._etcd = Etcd(endpoints, self._actions.put)
        self._holds: dict[str, set[tuple[str, int]]] = defaultdict(set)
        self._owners: dict[str, str] = {}
        self._counters: dict[str, int] = {}
        self.revision = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def __enter__(self) -> Observer:
        self._actions.put(self._read)
        self._thread.start()
        wait_for(lambda: self.revision > 0, "the observer has read etcd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(LIMIT)
        self._etcd.close()

    def wait_fenced(self, node: str, since: float, limit: float = LIMIT) -> float:
        """Wait until ``node`` has been fenced; return when."""
        wait_for(lambda: self.fenced.get(node, 0) > since, f"{node} is fenced", limit)
        return self.fenced[node]

    def wait_gone(self, node: str, limit: float = LIMIT) -> None:
        """Wait until nothing is left of the member."""
        wait_for(lambda: node not in self.members, f"{node} is recovered", limit)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._actions.get(timeout=AGAIN)()
            except Empty:
                continue

    # ---- reading and watching

    def _read(self) -> None:
        def received(result: tuple[KeyValue, ...] | Failure, revision: int) -> None:
            if isinstance(result, Failure):
                self._later(self._read)
                return
            self._holds.clear()
            self._counters.clear()
            self.members.clear()
            self.revision = revision
            self._apply([Event(kv, deleted=False) for kv in result])
            self._watch()

        read_prefix(self._etcd, self._keys.prefix, 2 * SECOND, received)

    def _watch(self) -> None:
        def notified(notice: WatchEvents | WatchProgress | WatchLost) -> None:
            if isinstance(notice, WatchEvents):
                self._receive(notice)
            elif isinstance(notice, WatchLost):
                self._later(self._read if "compacted" in notice.reason else self._watch)

        self._etcd.watch(self._keys.prefix, self.revision + 1, notified)

    def _later(self, action: Callable[[], None]) -> None:
        threading.Timer(AGAIN, lambda: self._actions.put(action)).start()

    def _receive(self, notice: WatchEvents) -> None:
        by_revision: dict[int, list[Event]] = defaultdict(list)
        for event in notice.events:
            by_revision[event.kv.mod_revision].append(event)
        for revision in sorted(by_revision):
            if revision > self.revision:
                self._apply(by_revision[revision])
        self.revision = max(self.revision, notice.revision)

    # ---- judging

    def _apply(self, events: Iterable[Event]) -> None:
        """All events of one revision: then the state is one that etcd had."""
        touched = set()
        for event in events:
            parsed = self._keys.parse(event.kv.key)
            if parsed is None:
                continue
            if parsed.kind == "h":
                holders = self._holds[parsed.resource]
                (holders.discard if event.deleted else holders.add)((parsed.node, parsed.mode))
                touched.add(parsed.resource)
            elif parsed.kind == "v":
                self._count(parsed.store, event)
            elif parsed.kind == "a" and event.deleted:
                self.died[parsed.node] = time.monotonic()
            elif parsed.kind == "m":
                self._note_member(parsed.node, event)
        for resource in touched:
            self._judge(resource)

    def _judge(self, resource: str) -> None:
        holders = self._holds[resource]
        owners = {node for node, mode in holders if mode == EX}
        if not owners:
            return
        if len({node for node, _ in holders}) > 1:
            self.problems.append(f"{resource}: held by {sorted(holders)}")
        (owner, *_) = owners
        if self._owners.get(resource, owner) != owner:
            self.handed_over += resource.startswith("region/")
        self._owners[resource] = owner

    def _count(self, store: str, event: Event) -> None:
        if event.deleted:
            self._counters.pop(store, None)
        elif event.kv.value != UNTRUSTED_MARK:
            value, before = counter_value(event.kv.key, event.kv.value), self._counters.get(store, 0)
            if value < before:
                self.problems.append(f"{event.kv.key}: {value} after {before}")
            self._counters[store] = max(value, before)

    def _note_member(self, node: str, event: Event) -> None:
        if event.deleted:
            self.members.pop(node, None)
            self.coordinators.pop(node, None)
            return
        record = MemberRecord.from_bytes(event.kv.key, event.kv.value)
        self.members[node] = record.state
        self.coordinators[node] = record.by_node
        if record.state == "fenced" and record.by_node != node:
            self.fenced[node] = time.monotonic()
