"""Several workers' volumes over one origin and its COW devices, all in memory, driven step by step.

Each host has its own engine and volume; devices are shared. ``step`` lets one thing happen: a completion, a
message to a worker, a message from one. The order is the seed's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from uuid import uuid4

from snapd import counters
from snapd.errors import Refused
from snapd.exstore.base import StoreConfig
from snapd.exstore.clusterized import OPTION, Clusterized
from snapd.exstore.types import store_types
from snapd.format.header import Header
from snapd.format.sidecar import Sidecar
from snapd.messages import Bumped, Forget, Grant, Invalidate, Message, Prepare, Revoke, SnapshotSpec
from snapd.units import KIB, SECTOR
from snapd.volume.cow import Expected, opener
from snapd.volume.request import FLUSH, READ, WRITE, ZERO, Export, Request
from snapd.volume.snapshot import Snapshot
from snapd.volume.table import Table
from snapd.volume.volume import Geometry, Volume
from tests.support.lock_sim import LockSim, Port
from tests.support.mem_engine import MemoryArena as Arena
from tests.support.mem_engine import MemoryDevice, MemoryEngine

VOLUME_UUID = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"
CHUNK = 4 * KIB


class Host:
    """One worker without its NBD server and loop."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.rig = rig
        self.name = name
        self.port: Port = rig.locks.join(name)
        self.arena = Arena(4 * 1024 * KIB)
        self.lease = True
        self.now = 0
        self.engine = MemoryEngine(self.arena, gate=lambda: self.lease, rng=rig.rng)
        self.words = memoryview(bytearray(counters.PAGE_BYTES)).cast("Q")
        self.volume = Volume(
            self.engine,
            rig.origin,
            Geometry(rig.chunk, rig.region, rig.copy_buffers),
            self.port.outbox.append,
            lambda: self.lease,
            lambda: self.now,
            self.words,
        )
        self.dropped: list[Snapshot] = []
        self.table = Table(
            self.volume,
            opener(Expected(VOLUME_UUID, rig.origin, rig.chunk), rig.device, rig.peek),
            make_store,
            self.dropped.extend,
            lambda: None,
            lambda: self.now,
        )
        self.buffers = [self.arena.allocate(256 * KIB) for _ in range(4)]

    def receive(self, message: Message) -> None:
        table = self.table
        handlers: dict[type, Callable[..., None]] = {
            Grant: table.granted,
            Revoke: table.revoked,
            Bumped: table.bumped,
            Prepare: table.prepare,
            Forget: table.forget,
            Invalidate: table.invalidate,
        }
        handlers[type(message)](message)
        self.turn()

    def turn(self) -> None:
        """End a turn of the loop: batches are made, operations handed over."""
        self.volume.set_stalled(not self.lease)
        self.volume.end_turn()
        self.engine.kick()

    def reap_one(self) -> bool:
        if not self.engine.reap_one():
            return False
        self.turn()
        return True

    def export(self, name: str) -> Export:
        return next(export for export in self.volume.exports() if export.name == name)

    def submit(
        self, export: Export, operation: int, offset: int, data: bytes | int, done: Callable[[int, bytes], None]
    ) -> None:
        """Start a request; ``done(error, data read)``."""
        length = data if isinstance(data, int) else len(data)
        where = self.buffers.pop() if operation in (READ, WRITE) else 0
        if isinstance(data, bytes):
            self.arena.view[where : where + length] = data

        def finished(request: Request, error: int) -> None:
            result = bytes(self.arena.view[where : where + length]) if operation == READ else b""
            if operation in (READ, WRITE):
                self.buffers.append(where)
            done(error, result)

        segments = [(where, length)] if operation in (READ, WRITE) else []
        self.volume.submit(Request(export, operation, offset, length, segments, False, finished))
        self.turn()


def make_store(config: StoreConfig) -> Clusterized:
    from dataclasses import replace

    store = store_types().find("clusterized_persistent")(replace(config, options=(OPTION + VOLUME_UUID,)))
    assert isinstance(store, Clusterized)
    return store


class Rig:
    """The shared world: devices, the lockspace, the hosts."""

    def __init__(
        self,
        hosts: int = 1,
        origin_chunks: int = 64,
        region_chunks: int = 16,
        seed: int | None = None,
        copy_buffers: int = 8,
        logical_block: int = 512,
        chunk: int = CHUNK,
    ) -> None:
        self.rng = random.Random(seed) if seed is not None else None
        self.chunk = chunk
        self.region = region_chunks * chunk
        self.copy_buffers = copy_buffers
        self.logical_block = logical_block
        self.locks = LockSim()
        self.devices: dict[str, MemoryDevice] = {}
        self.origin = self.add_device("origin", origin_chunks * chunk)
        for index in range(origin_chunks):
            self.origin.poke(index * chunk, bytes([index % 251 + 1]) * chunk)
        self.hosts = [Host(self, f"host-{letter}") for letter in "abcdefgh"[:hosts]]
        self.run()

    def add_device(self, path: str, size: int) -> MemoryDevice:
        device = MemoryDevice(size, self.logical_block)
        device.path = device.identity = path
        self.devices[path] = device
        return device

    def device(self, path: str) -> MemoryDevice:
        if path not in self.devices:
            raise Refused(f"{path}: no such device")
        return self.devices[path].open()

    def peek(self, device: MemoryDevice, offset: int, length: int) -> bytes:
        return device.peek(offset, length)

    def format(self, name: str, cow_chunks: int, writable: bool = False) -> SnapshotSpec:
        """Make a COW device ready: header, sidecar, zeroed first area, stale bytes everywhere else."""
        spec = SnapshotSpec(name, str(uuid4()), f"cow-{name}", "active", writable, 1)
        device = self.add_device(spec.path, cow_chunks * self.chunk)
        device.poke(0, b"\xaa" * device.size)
        header = Header(True, self.chunk // SECTOR)
        sidecar = Sidecar(VOLUME_UUID, spec.store, name, self.origin.size, 1)
        block = header.to_bytes() + sidecar.to_bytes(header.chunk_size)
        device.poke(0, block.ljust(self.chunk, b"\0") + bytes(self.chunk))
        return spec

    def snapshot(self, name: str, cow_chunks: int = 256, writable: bool = False, run: bool = True) -> SnapshotSpec:
        """Take a snapshot online; the hosts drain while ``run`` or the test steps."""
        spec = self.format(name, cow_chunks, writable)
        self.locks.change_table(self.hosts[0].name, lambda: self.locks.take(spec))
        if run:
            self.run()
        return spec

    def drop(self, name: str) -> None:
        """Delete a snapshot from the table."""

        def change() -> None:
            self.locks.snapshots = [spec for spec in self.locks.snapshots if spec.name != name]

        self.locks.change_table(self.hosts[0].name, change)
        self.run()

    def crash(self, host: Host) -> None:
        """The host is gone, its un-completed I/O with it; the others recover it."""
        self.hosts.remove(host)
        self.locks.crash(host.name)

    # ---- time

    def step(self) -> bool:
        """Let one thing happen; False if nothing can."""
        moves: list[Callable[[], bool]] = [lambda: self.locks.deliver(self.rng)]
        for host in self.hosts:
            moves.append(host.reap_one)
            moves.append(partial(self._receive, host))
        if self.rng:
            self.rng.shuffle(moves)
        return any(move() for move in moves)

    def _receive(self, host: Host) -> bool:
        if not host.port.inbox:
            return False
        host.receive(host.port.inbox.popleft())
        return True

    def run(self, limit: int = 200_000) -> None:
        """Step until nothing can happen any more."""
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError("still busy")

    # ---- requests, waited for

    def read(self, host: Host, export: str, offset: int, length: int) -> bytes:
        answers: list[tuple[int, bytes]] = []
        host.submit(host.export(export), READ, offset, length, lambda error, data: answers.append((error, data)))
        self.run()
        assert answers and answers[0][0] == 0, answers
        return answers[0][1]

    def write(self, host: Host, export: str, offset: int, data: bytes) -> int:
        answers: list[int] = []
        host.submit(host.export(export), WRITE, offset, data, lambda error, _: answers.append(error))
        self.run()
        assert answers, "never answered"
        return answers[0]

    def zero(self, host: Host, export: str, offset: int, length: int) -> int:
        answers: list[int] = []
        host.submit(host.export(export), ZERO, offset, length, lambda error, _: answers.append(error))
        self.run()
        return answers[0]

    def flush(self, host: Host, export: str) -> int:
        answers: list[int] = []
        host.submit(host.export(export), FLUSH, 0, 0, lambda error, _: answers.append(error))
        self.run()
        return answers[0]

    def read_all(self, host: Host, export: str) -> bytes:
        step = 64 * KIB
        size = self.origin.size
        return b"".join(self.read(host, export, offset, min(step, size - offset)) for offset in range(0, size, step))
