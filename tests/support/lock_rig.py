"""Several members over one simulated etcd, in virtual time, each with a scripted worker.

rig = LockRig("host-a", "host-b")
rig.a.want("region/1", EX); rig.settle()
assert rig.a.holds("region/1") == EX
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

from snapd.errors import CsnapError
from snapd.lockspace.kv import Kv, Put, Range, Txn, prefix_end
from snapd.lockspace.member import Member
from snapd.lockspace.ports import Limits, Settings
from snapd.lockspace.protocol import Speaks
from snapd.lockspace.records import MemberRecord
from snapd.messages import NL, Bumped, Done, FencedNotice, Grant, Message, Revoke, Serving, Stopped, Want
from snapd.units import SECOND
from tests.support.fake_etcd import FakeEtcd
from tests.support.virtual_time import Scheduler, Timer

UUID = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"
STORE = "11111111-2222-4333-8444-555555555555"
TTL = 4
STARTED = 1_700_000_000
SPEAKS = Speaks()


class PlayedFencer:
    """Fences when the test says so, or at once."""

    method = "played"

    def __init__(self) -> None:
        self.at_once = True
        self.fenced: list[str] = []
        self.gone: list[str] = []
        self._waiting: list[tuple[MemberRecord, Callable[[], None]]] = []

    def fence(self, record: MemberRecord, done: Callable[[], None]) -> None:
        self._waiting.append((record, done))
        if self.at_once:
            self.confirm()

    def forget(self, record: MemberRecord) -> None:
        self._waiting = [pair for pair in self._waiting if pair[0].incarnation != record.incarnation]

    def left(self, record: MemberRecord) -> None:
        self.gone.append(record.incarnation)

    def confirm(self) -> None:
        """The machine is off."""
        waiting, self._waiting = self._waiting, []
        for record, done in waiting:
            self.fenced.append(record.node)
            done()

    @property
    def asked(self) -> list[str]:
        return [record.node for record, _ in self._waiting]


class Worker:
    """What the worker would do: remember grants; give back at once what is asked for, unless it is in use."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.held: dict[str, Grant] = {}
        self.in_use: set[str] = set()
        self.committed: dict[str, int] = {}
        self.reserved = 0
        self.received: list[Message] = []
        self.asked: dict[str, int] = {}
        self.serving = False
        self.opens = ""  # or why it cannot open a COW device

    def receive(self, message: Message) -> None:
        self.received.append(message)
        if isinstance(message, Grant):
            self.held[message.resource] = message
            if message.resource == "table" and not self.serving and not self.opens:
                self.serving = True
                self.host.tell(Serving(""))
        elif isinstance(message, Revoke):
            self.asked[message.resource] = message.mode
            if message.resource not in self.in_use:
                self.give_back(message.resource)
        else:
            self.host.extra(message)

    def give_back(self, resource: str, mode: int | None = None) -> None:
        keep = self.asked.pop(resource, NL) if mode is None else mode
        grant = self.held.get(resource)
        if grant is None or grant.mode <= keep:
            return
        if keep:
            self.held[resource] = replace(grant, mode=keep)
        else:
            del self.held[resource]
        committed = tuple(
            (store, count)
            for store, count in self.committed.items()
            if f"tail/{store}" in self.held or resource == f"tail/{store}"
        )
        self.host.tell(Done(resource, keep, committed, self.reserved if resource.startswith("tail") else 0))


class Host:
    """A member, its worker, what it was told; also the member's Effects."""

    def __init__(self, rig: LockRig, node: str, machine: str, boot: str, speaks: Speaks, incarnation: str = "") -> None:
        self.rig, self.node = rig, node
        self.deadline = 0
        self.states: list[str] = []
        self.failure: CsnapError | None = None
        self.logged: list[tuple[str, dict[str, object]]] = []
        self.observed: list[tuple[str, dict[str, str], int]] = []
        self.frozen = self.dead = False
        self.wanted: set[str] = set()  # for tests that must not ask twice
        self._kept: list[Callable[[], None]] = []
        self.proven: Callable[[MemberRecord], bool] = lambda record: True
        self.fencer = PlayedFencer()
        self.worker = Worker(self)
        self.extra: Callable[[Message], None] = lambda message: None
        self.settings = Settings(
            UUID,
            node,
            machine,
            boot,
            incarnation or f"{node}-{uuid4().hex[:8]}",
            f"/run/{node}/lock",
            ttl=TTL,
            limits=Limits(2 * SECOND),
            speaks=speaks,
            started=STARTED,
        )
        self.kv = cast(Kv, HostKv(self, rig.etcd.client(self.settings.incarnation)))
        self.member = Member(self.settings, self.kv, self, self, self.fencer, lambda record: self.proven(record))

    # Timers

    def now(self) -> int:
        return self.rig.scheduler.now()

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer:
        return self.rig.scheduler.call_at(when, lambda: self.run(callback))

    def run(self, callback: Callable[[], None]) -> None:
        """Run something of this host's: not while it is stopped, never after its death."""
        if self.dead:
            return
        if self.frozen:
            self._kept.append(callback)
        else:
            callback()

    def pause(self) -> None:
        """SIGSTOP."""
        self.frozen = True

    def wake(self) -> None:
        """SIGCONT: everything that came meanwhile is handled now."""
        self.frozen = False
        kept, self._kept = self._kept, []
        for callback in kept:
            self.run(callback)

    def kill(self) -> None:
        self.dead = True

    # Effects

    def send(self, message: Message) -> None:
        self.rig.scheduler.call_soon(lambda: self.run(lambda: self.worker.receive(message)))

    def tell(self, message: Message) -> None:
        """From the worker."""
        self.rig.scheduler.call_soon(lambda: self.run(lambda: self.member.receive(message)))

    def set_deadline(self, deadline: int) -> None:
        self.deadline = deadline

    def state(self, state: str, why: str) -> None:
        self.states.append(state)

    def failed(self, error: CsnapError) -> None:
        assert self.failure is None
        self.failure = error

    def log(self, priority: int, event: str, fields: dict[str, object]) -> None:
        self.logged.append((event, fields))

    def observe(self, name: str, labels: dict[str, str], value: int) -> None:
        self.observed.append((name, labels, value))

    # what tests ask

    def want(self, resource: str, mode: int) -> None:
        self.tell(Want(resource, mode))

    def holds(self, resource: str) -> int:
        grant = self.worker.held.get(resource)
        return grant.mode if grant else NL

    def grants(self, resource: str) -> list[Grant]:
        return [each for each in self.worker.received if isinstance(each, Grant) and each.resource == resource]

    def bumps(self) -> list[Bumped]:
        return [each for each in self.worker.received if isinstance(each, Bumped)]

    def events(self, name: str) -> list[dict[str, object]]:
        return [fields for event, fields in self.logged if event == name]

    @property
    def fenced(self) -> bool:
        return any(isinstance(message, FencedNotice) for message in self.worker.received)

    def stop(self) -> list[bool]:
        """Leave in order; the list gets the verdict."""
        verdict: list[bool] = []
        self.worker.received.clear()
        committed = tuple(item for item in self.worker.committed.items() if f"tail/{item[0]}" in self.worker.held)
        self.member.receive(Stopped(committed))
        self.member.leave(verdict.append)
        return verdict


class HostKv:
    """The host's etcd client: answers wait while it is stopped, and nothing comes after its death."""

    def __init__(self, host: Host, client: object) -> None:
        self._host, self._client = host, client

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def wrapped(*arguments: Any) -> Any:
            if self._host.dead:
                return None
            *rest, done = arguments
            return call(*rest, lambda *answer: self._host.run(lambda: done(*answer)))

        return wrapped


class LockRig:
    """The world: etcd, time, hosts."""

    def __init__(self, *nodes: str, ready: bool = True) -> None:
        self.scheduler = Scheduler()
        self.etcd = FakeEtcd(self.scheduler)
        self.hosts: dict[str, Host] = {}
        for node in nodes:
            self.add(node)
        if ready and nodes:
            self.until(lambda: all(host.member.state == "active" for host in self.hosts.values()))

    def add(
        self, node: str, machine: str = "", boot: str = "boot-1", start: bool = True, speaks: Speaks = SPEAKS
    ) -> Host:
        """A new incarnation of ``node``; the older one, if any, is no longer reachable by name."""
        host = self.hosts[node] = Host(self, node, machine or f"machine-{node}", boot, speaks)
        if start:
            host.run(host.member.start)
        return host

    def __getattr__(self, letter: str) -> Host:
        return self.hosts[f"host-{letter}"]

    def until(self, predicate: Callable[[], bool], seconds: float = 60) -> None:
        self.scheduler.run_until(predicate, int(seconds * SECOND))

    def run(self, seconds: float) -> None:
        self.scheduler.run_for(int(seconds * SECOND))

    def settle(self) -> None:
        """Long enough for whatever needs no timeout."""
        self.run(0.5)

    def key(self, suffix: str) -> bytes | None:
        """The key's value in etcd, None if it is absent."""
        return self.stored().get(suffix)

    def stored(self) -> dict[str, bytes]:
        """Everything under the cluster's prefix, without it."""
        prefix = f"/csnap/{UUID}/"
        found = self.etcd.store.range(Range(prefix, prefix_end(prefix))).kvs
        return {kv.key[len(prefix) :]: kv.value for kv in found}

    def counter(self, store: str = STORE, value: bytes = b"0") -> None:
        """A store exists: its counter is put from outside."""
        self.put(f"v/{store}", value)

    def put(self, suffix: str, value: bytes) -> None:
        self.etcd.client("test").txn(Txn((), (Put(f"/csnap/{UUID}/{suffix}", value),)), SECOND, lambda result: None)
        self.settle()
