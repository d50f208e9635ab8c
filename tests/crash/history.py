"""Random work of one or two hosts on a volume with a snapshot, everything they do to the devices recorded.

The COW device is full of what a used one holds: plausible old entries where areas will be, garbage elsewhere.
A history begins with a fresh snapshot, or with what a power failure left of an earlier history.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field, replace

from snapd.format.header import Header
from snapd.format.layout import Layout
from snapd.format.sidecar import Sidecar
from snapd.messages import UNTRUSTED, Invalidate, SnapshotSpec
from snapd.units import KIB, SECTOR
from snapd.volume.request import FLUSH, WRITE, ZERO
from tests.crash.recorder import Recorder, SharedDevice, Write, recorded_rig
from tests.support.worker_rig import VOLUME_UUID, Host, Rig

SPEC = SnapshotSpec("s1", "7c9c6a0e-4d0c-4d6d-9a51-6a1f6f0f7d10", "cow-s1", "active", False, 1)


@dataclass(frozen=True, slots=True)
class Shape:
    """How large everything is: chunks, and bytes a chunk."""

    origin: int = 120
    cow: int = 160
    chunk: int = KIB
    region: int = 16
    buffers: int = 3
    logical_block: int = SECTOR

    @property
    def layout(self) -> Layout:
        return Layout(self.chunk // SECTOR, self.cow * self.chunk)


@dataclass(frozen=True, slots=True)
class Image:
    """Both devices after a power failure. count: the entries that the COW device's list then had."""

    cow: bytes
    origin: bytes
    count: int


@dataclass
class History:
    """What was recorded.

    truth: the snapshot's content. entries: of the list in the end, in order. invalidated: the write of valid=0.
    acknowledged: moment, sector, and the stamp that the origin must have there at least from that moment on.
    written, kept: of a writable snapshot, the stamps that clients wrote by sector, and what they flushed, likewise.
    """

    shape: Shape
    truth: bytes
    before: Image
    recorder: Recorder
    entries: list[tuple[int, int]] = field(default_factory=list)
    invalidated: Write | None = None
    acknowledged: list[tuple[int, int, int]] = field(default_factory=list)
    written: dict[int, set[int]] = field(default_factory=dict)
    kept: list[tuple[int, int, int]] = field(default_factory=list)
    name: str = ""


def first_truth(shape: Shape) -> bytes:
    """The origin when the snapshot was taken: every sector another, with stamp 0."""
    return b"".join(stamped(0, sector) for sector in range(shape.origin * shape.chunk // SECTOR))


def stamped(stamp: int, sector: int) -> bytes:
    """A sector that says which write it is from."""
    return struct.pack("<QQ", stamp, sector) * (SECTOR // 16)


def stamp_of(data: bytes) -> int:
    """The stamp; of zeros 0."""
    return int.from_bytes(data[:8], "little")


def used_device(shape: Shape, rng: random.Random) -> bytes:
    """A COW device that was used before: entries of an older snapshot in every area, garbage as data."""
    layout = shape.layout
    device = bytearray(rng.randbytes(shape.cow * shape.chunk))
    news = [chunk for chunk in range(2, layout.total_chunks) if not layout.is_metadata(chunk)]
    for area in range(-(-layout.total_chunks // layout.stride)):
        where = layout.area_chunk(area) * shape.chunk
        for slot in range(layout.epa):
            old, new = rng.randrange(shape.origin), rng.choice(news)
            device[where + 16 * slot : where + 16 * slot + 16] = struct.pack("<QQ", old, new)
    return bytes(device[: shape.cow * shape.chunk])


def formatted(shape: Shape, device: bytes) -> bytes:
    """``device`` with a fresh store on it."""
    header = Header(True, shape.chunk // SECTOR)
    sidecar = Sidecar(VOLUME_UUID, SPEC.store, SPEC.name, shape.origin * shape.chunk, 1)
    beginning = (header.to_bytes() + sidecar.to_bytes(header.chunk_size)).ljust(shape.chunk, b"\0") + bytes(shape.chunk)
    return beginning + device[len(beginning) :]


def fresh(shape: Shape, rng: random.Random) -> Image:
    """The moment after the snapshot was taken."""
    return Image(formatted(shape, used_device(shape, rng)), first_truth(shape), 0)


def open_rig(
    shape: Shape, recorder: Recorder, image: Image, hosts: int, seed: int | None, writable: bool = False
) -> Rig:
    """Hosts that find ``image`` and a snapshot whose counter nobody trusts, as after everybody's death."""
    rig = recorded_rig(
        recorder,
        hosts=hosts,
        origin_chunks=shape.origin,
        region_chunks=shape.region,
        seed=seed,
        copy_buffers=shape.buffers,
        logical_block=shape.logical_block,
        chunk=shape.chunk,
    )
    rig.origin.poke(0, image.origin)
    cow = rig.devices[SPEC.path] = SharedDevice(len(image.cow), shape.logical_block, SPEC.path)
    cow.poke(0, image.cow)

    def take() -> None:
        rig.locks.take(replace(SPEC, writable=writable))
        revision, _ = rig.locks.counters[SPEC.store]
        rig.locks.counters[SPEC.store] = (revision, UNTRUSTED)

    rig.locks.change_table(rig.hosts[0].name, take)
    return rig


def committed(rig: Rig) -> int:
    """Entries that some host knows to be committed."""
    stores = [host.volume.snapshots.get(SPEC.store) for host in rig.hosts]
    return max((each.store.core.count for each in stores if each is not None and each.store is not None), default=0)


class _Writers:
    """Clients of the hosts: stamped writes, no two on one sector at a time, and flushes."""

    def __init__(self, history: History, rig: Rig, rng: random.Random) -> None:
        self._history, self._rig, self._rng = history, rig, rng
        self._busy: set[int] = set()
        self._answered: dict[int, int] = {}
        self._zeroed: dict[int, int] = {}  # zeros carry no stamp: what a sector had before is not asked for any more
        self._busy_snapshot: set[int] = set()
        self._answered_snapshot: dict[int, int] = {}
        self._stamp = 1

    def flush(self, host: Host) -> None:
        known, recorder = dict(self._answered), self._history.recorder

        def flushed(error: int, _: bytes) -> None:
            assert not error
            self._history.acknowledged += [
                (recorder.now, sector, stamp) for sector, stamp in known.items() if stamp > self._zeroed.get(sector, 0)
            ]

        host.submit(host.export("origin"), FLUSH, 0, 0, flushed)

    def write_snapshot(self, host: Host) -> None:
        """A write of the snapshot itself: whole chunks, or a part of one; or a flush of it."""
        history, shape, rng = self._history, self._history.shape, self._rng
        export = host.export(f"snapshot/{SPEC.name}")
        if rng.random() < 0.3:
            known = dict(self._answered_snapshot)

            def flushed(error: int, _: bytes) -> None:
                assert not error
                history.kept += [(history.recorder.now, sector, stamp) for sector, stamp in known.items()]

            host.submit(export, FLUSH, 0, 0, flushed)
            return
        length = rng.choice((shape.logical_block, shape.chunk, 2 * shape.chunk))
        offset = rng.randrange((shape.origin * shape.chunk - length) // shape.logical_block + 1) * shape.logical_block
        numbers = range(offset // SECTOR, (offset + length) // SECTOR)
        if not host.buffers or not self._busy_snapshot.isdisjoint(numbers):
            return
        self._busy_snapshot.update(numbers)
        stamp = self._stamp
        self._stamp += 1
        for sector in numbers:
            history.written.setdefault(sector, set()).add(stamp)

        def written(error: int, _: bytes) -> None:
            assert not error
            self._busy_snapshot.difference_update(numbers)
            self._answered_snapshot.update(dict.fromkeys(numbers, stamp))

        host.submit(export, WRITE, offset, b"".join(stamped(stamp, at) for at in numbers), written)

    def write(self, host: Host) -> None:
        shape, rng = self._history.shape, self._rng
        block = shape.logical_block
        length = rng.choice((block, block, shape.chunk, 3 * shape.chunk))
        offset = rng.randrange((shape.origin * shape.chunk - length) // block + 1) * block
        numbers = range(offset // SECTOR, (offset + length) // SECTOR)
        if not host.buffers or not self._busy.isdisjoint(numbers):
            return
        self._busy.update(numbers)
        stamp = self._stamp
        self._stamp += 1

        def written(error: int, _: bytes) -> None:
            assert not error
            self._busy.difference_update(numbers)
            for sector in numbers:
                if zero:
                    self._answered.pop(sector, None)
                else:
                    self._answered[sector] = stamp

        zero = rng.random() < 0.1
        if zero:
            self._zeroed.update(dict.fromkeys(numbers, stamp))
            self._history.acknowledged = [each for each in self._history.acknowledged if each[1] not in numbers]
            host.submit(host.export("origin"), ZERO, offset, length, written)
        else:
            host.submit(host.export("origin"), WRITE, offset, b"".join(stamped(stamp, at) for at in numbers), written)


def record(shape: Shape, before: Image, hosts: int, seed: int, requests: int, writable: bool = False) -> History:
    """Let ``hosts`` hosts do ``requests`` requests in the order of ``seed``, to their end. An overflow invalidates.

    writable: half of the requests go to the snapshot.
    """
    rng = random.Random(seed)
    recorder = Recorder()
    history = History(shape, first_truth(shape), before, recorder)
    rig = open_rig(shape, recorder, before, hosts, seed, writable)
    recorder.observe = lambda: committed(rig)
    mark = rig.locks._mark_invalid

    def invalidate(store: str) -> None:
        """What the control process asks of a worker while it holds the table's EX, everybody drained."""
        if rig.locks.snapshots[0].state == "active":
            known = len(recorder.writes)
            host = rig.hosts[0]
            host.receive(Invalidate(1, store))
            while not any(message.__class__.__name__ == "Invalidated" for message in host.port.outbox):
                if not host.reap_one():
                    host.table.tick()  # it waited for a re-read
                    host.turn()
            (history.invalidated,) = recorder.writes[known:]
            mark(store)

    rig.locks._mark_invalid = invalidate  # type: ignore[method-assign]
    rig.run()
    writers = _Writers(history, rig, rng)
    sent = 0
    while sent < requests:
        host = rng.choice(rig.hosts)
        for _ in range(rng.randrange(1, 5)):  # at once: copies that share a commit
            sent += 1
            if writable and rng.random() < 0.5:
                writers.write_snapshot(host)
            elif rng.random() < 0.8:
                writers.write(host)
            else:
                writers.flush(host)
        for _ in range(rng.randrange(40)):
            rig.step()
    rig.run()
    recorder.end()
    history.entries = entries_of(shape, bytes(rig.devices[SPEC.path].data))
    history.name = f"seed {seed}, {hosts} hosts, {before.count} entries before"
    return history


def entries_of(shape: Shape, cow: bytes) -> list[tuple[int, int]]:
    """The list as the kernel reads it."""
    found: list[tuple[int, int]] = []
    layout = shape.layout
    for area in range(layout.total_chunks // layout.stride + 1):
        where = layout.area_chunk(area) * shape.chunk
        for old, new in struct.iter_unpack("<QQ", cow[where : where + shape.chunk]):
            if not new:
                return found
            found.append((old, new))
    return found
