"""An etcd in memory and in virtual time, under the contract of ``snapd.lockspace.kv``; tests/contract/test_kv.py
runs the same tests over it and over a real one.

    scheduler = Scheduler()
    etcd = FakeEtcd(scheduler)
    kv = etcd.client("host-a")          # a Kv
    etcd.fault = lambda call: Fault(drop_response=True) if call.kind == "txn" else NO_FAULT

A request travels ``latency`` to the server, is applied there at once, and its response travels ``latency`` back.
A request whose client has given up may still be applied later. Each watch stream delivers in order; streams
and responses overtake one another as ``fault`` delays them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from snapd.lockspace.kv import (
    Event,
    Failure,
    LeaseResult,
    Put,
    Range,
    RangeResult,
    Txn,
    TxnResult,
    WatchEvents,
    WatchLost,
    WatchProgress,
    prefix_end,
)
from snapd.lockspace.lineage import Lineage
from tests.support.etcd_store import Refusal, Store, check_operations, contains
from tests.support.virtual_time import Scheduler, Timer

SECOND = 1_000_000_000
MIN_TTL = 2  # what etcd grants at least with its default election timeout
DEFAULT_LATENCY = 100_000  # ns, one way

T = TypeVar("T")
Notice = WatchEvents | WatchProgress | WatchLost


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is about to be sent; or, with kind "notice", a message of a watch stream about to be delivered."""

    client: str
    kind: str  # txn range lease_grant lease_keepalive lease_revoke watch progress notice
    request: object
    number: int  # counts all calls of all clients


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a call. A dropped request is never applied; a dropped response was."""

    drop_request: bool = False
    drop_response: bool = False
    fail: bool = False  # applied, and the client hears "unavailable": ambiguous at once, not after the timeout
    request_delay: int = 0
    response_delay: int = 0
    duplicate: bool = False  # a message of a watch stream comes twice, as after a resumed stream


NO_FAULT = Fault()


@dataclass(slots=True)
class _Lease:
    ttl: int
    expires: int
    timer: Timer


@dataclass(frozen=True, slots=True)
class Backup:
    """What FakeEtcd.backup() kept."""

    store: Store
    leases: dict[int, int]


class FakeEtcd:
    """The server. What may be set or called at any time: ``fault``, ``no_space`` and the methods."""

    def __init__(self, scheduler: Scheduler, latency: int = DEFAULT_LATENCY, min_ttl: int = MIN_TTL) -> None:
        self.scheduler = scheduler
        self.latency = latency
        self.fault: Callable[[Call], Fault] = lambda call: NO_FAULT
        self.no_space = False
        self.cluster_id = 0xC0FFEE
        self.store = Store(self._changed)
        self.calls = 0
        self._min_ttl = min_ttl
        self._leases: dict[int, _Lease] = {}
        self._lease_ids = 0x1000
        self._streams: list[FakeWatch] = []
        self._down = False
        self._frozen: list[Callable[[], None]] | None = None

    def client(self, name: str) -> FakeClient:
        return FakeClient(self, name)

    def stop(self) -> None:
        """Stop serving: calls fail at once with "unavailable", watch streams end."""
        self._down = True
        self.disconnect_watches()

    def start(self) -> None:
        """Serve again; as after every election, leases start at their full TTL."""
        self._down = False
        self.change_leader()

    def freeze(self) -> None:
        """Take requests and do nothing (SIGSTOP, lost quorum): they are applied at ``thaw``."""
        self._frozen = []

    def thaw(self) -> None:
        waiting, self._frozen = self._frozen or [], None
        for action in waiting:
            action()

    def change_leader(self) -> None:
        """Give every lease its full TTL again."""
        for lease in self._leases:
            self._renew(lease)

    def compact(self, revision: int) -> None:
        self.store.compact(revision)

    def disconnect_watches(self, client: str = "") -> None:
        """End the streams of one client, or of all."""
        for stream in [s for s in self._streams if not client or s.client == client]:
            self._streams.remove(stream)
            stream.send(WatchLost("unavailable: disconnected"))

    def backup(self) -> Backup:
        return Backup(self.store.copy(self._changed), {lease: entry.ttl for lease, entry in self._leases.items()})

    def restore(self, backup: Backup, cluster_id: int = 0) -> None:
        """Go back to a backup, under another ``cluster_id`` if one is given."""
        self.disconnect_watches()
        self.cluster_id = cluster_id or self.cluster_id
        self.store = backup.store.copy(self._changed)
        for entry in self._leases.values():
            entry.timer.cancel()
        self._leases.clear()
        for lease, ttl in backup.leases.items():
            self._add_lease(lease, ttl)

    def lease_alive(self, lease: int) -> bool:
        return lease in self._leases

    def expire(self, lease: int) -> None:
        """End a lease now: its keys go in one revision."""
        entry = self._leases.pop(lease, None)
        if entry is not None:
            entry.timer.cancel()
            self.store.delete([key for key, kv in self.store.live.items() if kv.lease == lease])

    # what requests do; each raises Refusal and then has changed nothing

    def txn(self, txn: Txn) -> TxnResult:
        check_operations(txn)
        if self.no_space and _puts_at_top(txn):
            raise Refusal("etcdserver: mvcc: database space exceeded", no_space=True)
        return self.store.txn(txn, self.lease_alive)

    def lease_grant(self, ttl: int) -> LeaseResult:
        if self.no_space:
            raise Refusal("etcdserver: mvcc: database space exceeded", no_space=True)
        self._lease_ids += 1
        ttl = max(ttl, self._min_ttl)
        self._add_lease(self._lease_ids, ttl)
        return LeaseResult(self._lease_ids, ttl)

    def lease_keepalive(self, lease: int) -> LeaseResult:
        return LeaseResult(lease, self._renew(lease) if lease in self._leases else 0)

    def lease_revoke(self, lease: int) -> LeaseResult:
        self.expire(lease)
        return LeaseResult(lease, 0)

    def receive(self, action: Callable[[], None], refused: Callable[[], None]) -> None:
        """A request arrives: handle it now, when thawed, or refuse it."""
        if self._down:
            refused()
        elif self._frozen is not None:
            self._frozen.append(action)
        else:
            action()

    def ask_fault(self, client: str, kind: str, request: object) -> Fault:
        self.calls += 1
        return self.fault(Call(client, kind, request, self.calls))

    def open_stream(self, stream: FakeWatch) -> None:
        if 0 < stream.start < self.store.compacted:
            stream.send(WatchLost(f"compacted: revision {stream.start} is below {self.store.compacted}"))
            return
        self._streams.append(stream)
        if stream.start:
            past = list(self.store.history(stream.prefix, prefix_end(stream.prefix), stream.start))
            if past:
                stream.send(WatchEvents(tuple(event for _, events in past for event in events), past[-1][0]))

    def close_stream(self, stream: FakeWatch) -> None:
        self._streams = [other for other in self._streams if other is not stream]

    def close_streams(self, client: FakeClient) -> None:
        self._streams = [other for other in self._streams if other.owner is not client]

    def serves(self, stream: FakeWatch) -> bool:
        return stream in self._streams

    def _changed(self, revision: int, events: tuple[Event, ...]) -> None:
        for stream in self._streams:
            if revision >= stream.start:
                end = prefix_end(stream.prefix)
                mine = tuple(event for event in events if contains(stream.prefix, end, event.kv.key))
                if mine:
                    stream.send(WatchEvents(mine, revision))

    def _add_lease(self, lease: int, ttl: int) -> None:
        expires = self.scheduler.now() + ttl * SECOND
        self._leases[lease] = _Lease(ttl, expires, self.scheduler.call_at(expires, lambda: self._lapse(lease)))

    def _renew(self, lease: int) -> int:
        entry = self._leases[lease]
        entry.timer.cancel()
        self._add_lease(lease, entry.ttl)
        return entry.ttl

    def _lapse(self, lease: int) -> None:
        """The TTL has passed: nothing expires while etcd is down, and only afterwards if it is frozen."""
        if not self._down:
            self.receive(lambda: self._lapse_now(lease), lambda: None)

    def _lapse_now(self, lease: int) -> None:
        if lease in self._leases and self._leases[lease].expires <= self.scheduler.now():
            self.expire(lease)


class FakeClient:
    """A Kv: one process's connection. ``reachable = False`` cuts its network, both ways."""

    def __init__(self, etcd: FakeEtcd, name: str) -> None:
        self.name = name
        self.etcd = etcd
        self.lineage = Lineage()
        self._reachable = True
        self._paused = False
        self._cut_off: deque[Callable[[], None]] = deque()  # stream messages that wait for the network
        self._inbox: deque[Callable[[], None]] = deque()  # what waits for the process to run again
        self._dead = False

    @property
    def reachable(self) -> bool:
        return self._reachable

    @reachable.setter
    def reachable(self, value: bool) -> None:
        """Calls are lost meanwhile; watch streams are TCP: what they missed arrives afterwards."""
        self._reachable = value
        self.etcd.scheduler.call_soon(self._catch_up)

    def pause(self) -> None:
        """SIGSTOP: nothing is delivered until ``resume``."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self.etcd.scheduler.call_soon(self._work_off)

    def kill(self) -> None:
        """SIGKILL: nothing is delivered ever again; what was sent may still be applied."""
        self._dead = True
        self.etcd.close_streams(self)

    def deliver(self, delivery: Callable[[], None]) -> None:
        """Hand something to the owner, in order."""
        self._inbox.append(delivery)
        self._work_off()

    def deliver_stream(self, delivery: Callable[[], None]) -> None:
        """A message of a watch stream has come as far as this host's network."""
        self._cut_off.append(delivery)
        self._catch_up()

    def _work_off(self) -> None:
        while self._inbox and not self._paused:
            delivery = self._inbox.popleft()
            if not self._dead:
                delivery()

    def _catch_up(self) -> None:
        while self._cut_off and self._reachable:
            self.deliver(self._cut_off.popleft())

    def txn(self, txn: Txn, timeout: int, done: Callable[[TxnResult | Failure], None]) -> None:
        self._call("txn", txn, timeout, lambda: self.etcd.txn(txn), lambda result, revision: done(result), txn.writes())

    def range(self, request: Range, timeout: int, done: Callable[[RangeResult | Failure, int], None]) -> None:
        self._call("range", request, timeout, lambda: self.etcd.store.range(request), done, ambiguous=False)

    def lease_grant(self, ttl: int, timeout: int, done: Callable[[LeaseResult | Failure], None]) -> None:
        self._call(
            "lease_grant", ttl, timeout, lambda: self.etcd.lease_grant(ttl), lambda result, revision: done(result)
        )

    def lease_keepalive(self, lease: int, timeout: int, done: Callable[[LeaseResult | Failure], None]) -> None:
        self._call(
            "lease_keepalive",
            lease,
            timeout,
            lambda: self.etcd.lease_keepalive(lease),
            lambda result, revision: done(result),
        )

    def lease_revoke(self, lease: int, timeout: int, done: Callable[[LeaseResult | Failure], None]) -> None:
        self._call(
            "lease_revoke", lease, timeout, lambda: self.etcd.lease_revoke(lease), lambda result, revision: done(result)
        )

    def watch(self, prefix: str, start_revision: int, notify: Callable[[Notice], None]) -> FakeWatch:
        stream = FakeWatch(self, prefix, start_revision, notify)
        self.send("watch", stream, lambda: self.etcd.open_stream(stream), lambda: stream.send(WatchLost("unavailable")))
        return stream

    def send(self, kind: str, request: object, action: Callable[[], None], refused: Callable[[], None]) -> Fault:
        """Put a request on its way."""
        fault = self.etcd.ask_fault(self.name, kind, request)
        if self._reachable and not fault.drop_request:
            delay = self.etcd.latency + fault.request_delay
            self.etcd.scheduler.call_later(delay, lambda: self.etcd.receive(action, refused))
        return fault

    def _call(
        self,
        kind: str,
        request: object,
        timeout: int,
        apply: Callable[[], T],
        done: Callable[[T | Failure, int], None],
        ambiguous: bool = True,
    ) -> None:
        floor = self.lineage.newest
        finished = False

        def finish(result: T | Failure, cluster_id: int, revision: int) -> None:
            nonlocal finished
            if finished:
                return
            finished = True
            timer.cancel()
            if cluster_id and not isinstance(result, Failure):
                lags = kind == "lease_keepalive"
                lost = self.lineage.check(cluster_id) if lags else self.lineage.check(cluster_id, revision, floor)
                if lost is not None:
                    done(lost, 0)
                    return
            done(result, revision)

        def reply(result: T | Failure, cluster_id: int = 0, revision: int = 0) -> None:
            if self._reachable and not fault.drop_response:
                delay = self.etcd.latency + fault.response_delay
                self.etcd.scheduler.call_later(
                    delay, lambda: self.deliver(lambda: finish(result, cluster_id, revision))
                )

        def arrive() -> None:
            try:
                result = apply()
            except Refusal as error:
                reply(Failure(str(error), ambiguous=False, no_space=error.no_space))
                return
            if fault.fail:
                reply(Failure("unavailable: connection reset", ambiguous))
            else:
                reply(result, self.etcd.cluster_id, self.etcd.store.revision)

        def give_up() -> None:
            self.deliver(lambda: finish(Failure("deadline exceeded", ambiguous), 0, 0))

        fault = self.send(kind, request, arrive, lambda: reply(Failure("unavailable", ambiguous)))
        timer = self.etcd.scheduler.call_later(timeout, give_up)


class FakeWatch:
    """One stream. Delivers in order, whatever the delays."""

    def __init__(self, owner: FakeClient, prefix: str, start: int, notify: Callable[[Notice], None]) -> None:
        self.owner = owner
        self.client = owner.name
        self.prefix = prefix
        self.start = start
        self._notify = notify
        self._ended = False
        self._last = 0  # when the newest message sent will arrive

    def request_progress(self) -> None:
        self.owner.send("progress", self, self._progress, lambda: None)

    def cancel(self) -> None:
        self._ended = True
        self.owner.etcd.close_stream(self)

    def send(self, notice: Notice) -> None:
        """The server sends a message."""
        fault = self.owner.etcd.ask_fault(self.client, "notice", notice)
        if not fault.drop_response:  # a hung stream; TCP loses nothing in the middle
            scheduler = self.owner.etcd.scheduler
            self._last = max(self._last, scheduler.now() + self.owner.etcd.latency + fault.response_delay)
            for _ in range(1 + fault.duplicate):
                scheduler.call_at(self._last, lambda: self.owner.deliver_stream(lambda: self._tell(notice)))

    def _progress(self) -> None:
        if self.owner.etcd.serves(self):
            self.send(WatchProgress())

    def _tell(self, notice: Notice) -> None:
        if not self._ended:
            self._ended = isinstance(notice, WatchLost)
            self._notify(notice)


def _puts_at_top(txn: Txn) -> bool:
    """etcd counts the space that a transaction may need without looking into nested ones."""
    return any(isinstance(operation, Put) for operation in (*txn.success, *txn.failure))
