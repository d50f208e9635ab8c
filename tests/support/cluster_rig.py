"""Members that know snapshots: a LockRig with a Cluster on each host, whose scripted workers open devices."""

from __future__ import annotations

import json
from uuid import NAMESPACE_URL, uuid5

from snapd.cluster.cluster import Cluster, NewSnapshot
from snapd.errors import CsnapError
from snapd.messages import Forget, Invalidate, Invalidated, Message, Overflow, Prepare, Prepared
from tests.support.lock_rig import Host, LockRig


class ClusterRig(LockRig):
    """A LockRig whose members know snapshots, and whose workers open and invalidate devices."""

    def __init__(self, *nodes: str) -> None:
        self.clusters: dict[str, Cluster] = {}
        self.open: dict[str, set[str]] = {}
        self.undoing = False  # a refused creation's formatting is not undone yet
        self.invalidated: list[tuple[str, str]] = []
        self.refusing: dict[str, str] = {}
        self.silent: set[str] = set()
        super().__init__(*nodes)

    def add(self, node: str, machine: str = "", boot: str = "boot-1", start: bool = True) -> Host:
        host = super().add(node, machine, boot, start=False)
        self.clusters[node] = Cluster(host.member)
        self.open[node] = set()
        host.extra = lambda message: self._worker(host, message)
        if start:
            host.run(host.member.start)
        return host

    def _worker(self, host: Host, message: Message) -> None:
        if host.node in self.silent:
            return
        if isinstance(message, Prepare):
            error = self.refusing.get(host.node, "")
            if not error:
                self.open[host.node].add(message.snapshot.store)
            host.tell(Prepared(message.request, error))
        elif isinstance(message, Forget):
            self.open[host.node].discard(message.store)
        elif isinstance(message, Invalidate):
            self.invalidated.append((host.node, message.store))
            host.tell(Invalidated(message.request, ""))

    def start_take(self, node: str, name: str) -> list[CsnapError | None]:
        """Begin; the list gets the outcome."""
        outcome: list[CsnapError | None] = []
        new = NewSnapshot(name, str(uuid5(NAMESPACE_URL, name)), f"/dev/{name}", f"id-{name}", False, 1)

        def reserved(error: CsnapError | None) -> None:
            if error is None:
                self.clusters[node].take(new, taken)
            else:
                outcome.append(error)

        def taken(error: CsnapError | None) -> None:
            outcome.append(error)
            if error is not None and not self.undoing:
                self.clusters[node].abandon()

        self.clusters[node].reserve(name, new.identity, reserved)
        return outcome

    def take(self, node: str, name: str, seconds: float = 20) -> CsnapError | None:
        outcome = self.start_take(node, name)
        self.until(lambda: bool(outcome), seconds)
        self.settle()
        return outcome[0]

    def delete(self, node: str, name: str, seconds: float = 20) -> CsnapError | None:
        outcome: list[CsnapError | None] = []
        self.clusters[node].delete(name, outcome.append)
        self.until(lambda: bool(outcome), seconds)
        self.settle()
        return outcome[0]

    def lose(self, node: str, name: str) -> None:
        """The worker of ``node`` cannot copy into this snapshot."""
        self.hosts[node].tell(Overflow(self.store(name), "full"))
        self.run(2)

    def record(self, name: str) -> dict[str, object]:
        return json.loads(self.stored()[f"s/{name}"])  # type: ignore[no-any-return]

    def store(self, name: str) -> str:
        return str(self.record(name)["store"])

    def tables(self) -> dict[str, list[tuple[str, str]]]:
        """What every live worker was told last: (name, state), newest first."""
        return {
            node: [(spec.name, spec.state) for spec in host.worker.held["table"].snapshots]
            for node, host in self.hosts.items()
            if not host.dead and host.failure is None and "table" in host.worker.held
        }

    def same_table(self, *expected: tuple[str, str]) -> bool:
        tables = self.tables()
        return len(tables) == len(self.hosts) and all(table == list(expected) for table in tables.values())
