"""The world of one history: virtual time, etcd, the array, hosts, fencing, power; and what it tells when asked."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from snapd.format.layout import Layout
from snapd.lockspace.kv import Event
from snapd.lockspace.records import MemberRecord
from snapd.units import KIB, SECOND, SECTOR
from tests.sim.clock import SKEW, UNIT, HostClock
from tests.sim.disk import Disk, Trouble
from tests.sim.host import Host
from tests.sim.oracle import Oracle, Violation
from tests.support.fake_etcd import FakeEtcd
from tests.support.virtual_time import Scheduler

UUID = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"


@dataclass(frozen=True, slots=True)
class Shape:
    """Small, so that everything happens often: an area of 64 entries, regions of 16 chunks."""

    hosts: int = 3
    chunk: int = KIB
    region: int = 16 * KIB
    chunks: int = 96
    copy_buffers: int = 8
    ttl: int = 3
    fencing: str = "pr"
    """pr: writes of the fenced way fail. off: the host loses power. deadline: nobody is fenced, and the deadline alone
    has to do, under the faults for which it can (``faults.GENTLE``)."""
    skew: bool = True


class Etcd(FakeEtcd):
    """A FakeEtcd whose every revision is seen at once."""

    watcher: Callable[[tuple[Event, ...]], None] = staticmethod(lambda events: None)

    def _changed(self, revision: int, events: tuple[Event, ...]) -> None:
        self.watcher(events)
        super()._changed(revision, events)


class World:
    """See the module. ``rng`` decides what happens; disks and etcd have sources of their own."""

    def __init__(self, seed: int, shape: Shape, trace: Callable[[str], None] | None = None) -> None:
        self.seed, self.shape = seed, shape
        self.tracing = trace is not None
        self._trace = trace
        self.rng = random.Random(seed)
        self.disk_rng = random.Random(seed + 1)
        self.etcd_rng = random.Random(seed + 2)
        self.uuid, self.prefix = UUID, f"/csnap/{UUID}/"
        self.scheduler = Scheduler()
        self.etcd = Etcd(self.scheduler)
        self.trouble = Trouble()
        self.absent: set[tuple[str, str]] = set()  # (node, path) that cannot be opened there
        self.small: set[str] = set()  # paths of COW devices that may become full
        self.commands = {True: 0, False: 0}
        self.fences = self.power_losses = 0
        self.disks: dict[str, Disk] = {}
        self.origin = self._make("origin", shape.chunks * shape.chunk)
        for number in range(4):
            small = self.rng.random() < 0.4
            chunks = self.rng.randrange(8, 40) if small else 4 * shape.chunks
            self._make_cow(f"/dev/cow{number}", chunks, small)
        stamp = b"".join(
            [
                (place + 1 << 16 | place).to_bytes(8, "little") * (SECTOR // 8)
                for place in range(self.origin.size // SECTOR)
            ]
        )
        self.origin.poke(0, stamp)
        self.hosts: dict[str, Host] = {}
        self.oracle = Oracle(self)
        self.etcd.watcher = self.oracle.changed
        for letter in "abcd"[: shape.hosts]:
            rate = UNIT + (self.rng.randrange(-SKEW, SKEW) if shape.skew else 0)
            clock = HostClock(self.scheduler, self.rng.randrange(1000) * SECOND, rate)
            self.hosts[f"host-{letter}"] = Host(self, f"host-{letter}", clock)

    def _make(self, path: str, size: int) -> Disk:
        disk = self.disks[path] = Disk(size, path)
        return disk

    def _make_cow(self, path: str, chunks: int, small: bool) -> None:
        """Full of what an earlier life left: areas of entries that would be believed."""
        size = self.shape.chunk
        disk = self._make(path, chunks * size)
        layout = Layout(size // SECTOR, disk.size)
        data = bytearray(b"\xaa" * disk.size)
        area = 0
        while layout.area_chunk(area) < layout.total_chunks:
            for slot in range(layout.epa):
                at = layout.area_chunk(area) * size + slot * 16
                new = 2 + (area * layout.epa + slot) % (layout.total_chunks - 2)
                data[at : at + 16] = (slot % self.shape.chunks).to_bytes(8, "little") + new.to_bytes(8, "little")
            area += 1
        data[:size] = bytes(size)
        disk.poke(0, bytes(data))
        if small:
            self.small.add(path)

    # ---- fencing

    def fence(self, record: MemberRecord, done: Callable[[], None]) -> None:
        """The agent takes a while; then what that incarnation has in flight is aborted, and all later I/O fails."""
        self.scheduler.call_later(self.rng.randrange(1_000_000, 2 * SECOND), lambda: self._fenced(record, done))

    def _fenced(self, record: MemberRecord, done: Callable[[], None]) -> None:
        self.fences += 1
        self.note("fence", record.incarnation, method=self.shape.fencing)
        self.cut_off(record)
        done()

    def left(self, record: MemberRecord) -> None:
        """Somebody takes that incarnation's key away: it is no member any more."""
        kv = self.etcd.store.live.get(f"{self.prefix}m/{record.node}")
        for worker in self.hosts[record.node].workers():
            if worker.incarnation == record.incarnation:
                if kv is not None and json.loads(kv.value)["incarnation"] == record.incarnation:
                    raise Violation(f"{record.incarnation} is a member, and its key is taken away")
                worker.way.fenced = worker.way.fenced or self.shape.fencing == "pr"

    def cut_off(self, record: MemberRecord) -> None:
        host = self.hosts[record.node]
        if self.shape.fencing == "deadline":
            return
        if self.shape.fencing == "off":
            if host.boot_id == record.boot_id and not host.powered_off:
                host.lose_power()
                self.scheduler.call_later(self.rng.randrange(SECOND, 8 * SECOND), host.boot)
            return
        for worker in host.workers():
            if worker.incarnation == record.incarnation:
                worker.way.fenced = True

    # ---- power

    def lose_power(self) -> None:
        """The array's, and with it every host's."""
        self.power_losses += 1
        self.note("array", "power lost")
        for host in self.hosts.values():
            host.lose_power()
        for disk in self.disks.values():
            disk.power_loss(self.disk_rng)
        self.oracle.power_lost()
        for host in self.hosts.values():
            self.scheduler.call_later(self.rng.randrange(SECOND), host.boot)

    # ---- telling

    def note(self, who: str, what: str, **fields: Any) -> None:
        if self._trace is not None:
            rest = " ".join(f"{key}={value}" for key, value in fields.items())
            self._trace(f"{self.scheduler.now() / SECOND:12.6f} {who:8} {what} {rest}")

    def digest(self) -> tuple[int, ...]:
        """Two histories that are the same have the same."""
        rngs = (self.rng, self.disk_rng, self.etcd_rng)
        return (self.scheduler.now(), self.etcd.store.revision, self.etcd.calls, *(rng.getrandbits(32) for rng in rngs))
