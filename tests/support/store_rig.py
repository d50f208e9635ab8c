"""One clusterized store on a COW device in memory, its lockspace played by the test."""

from __future__ import annotations

from collections.abc import Callable

from snapd.errors import CsnapError
from snapd.exstore.base import StoreConfig
from snapd.exstore.clusterized import OPTION, Clusterized
from snapd.exstore.persistent import Persistent
from snapd.exstore.types import store_types
from snapd.format.header import Header
from snapd.format.layout import ENTRY_BYTES, Layout
from snapd.units import KIB, SECTOR
from tests.support.mem_engine import MemoryArena, MemoryDevice, MemoryEngine

VOLUME_UUID = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"
CHUNK = 4 * KIB
EPA = CHUNK // ENTRY_BYTES
ORIGIN_CHUNKS = 1 << 20


class Ports:
    """Records what the store asks for; ``deferred`` calls are made by ``turn``."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.released: list[int] = []
        self.regions: set[int] = set()
        self.wanted_regions: list[int] = []
        self.deferred: list[Callable[[], None]] = []
        self.errors: list[CsnapError] = []
        self.table = True  # held
        self.writes = 0  # uses of the table that no request waits for

    def want_tail(self) -> None:
        self.asked.append("tail")

    def release_tail(self, reserved: int) -> None:
        self.released.append(reserved)

    def covered(self, old: int) -> bool:
        return old in self.regions

    def want_region(self, old: int) -> None:
        self.wanted_regions.append(old)

    def defer(self, call: Callable[[], None]) -> None:
        self.deferred.append(call)

    def begin_write(self) -> bool:
        self.writes += int(self.table)
        return self.table

    def end_write(self) -> None:
        self.writes -= 1

    def lost(self, error: CsnapError) -> None:
        self.errors.append(error)


def cow_device(chunks: int, entries: list[tuple[int, int]] | None = None, chunk: int = CHUNK) -> MemoryDevice:
    """A formatted device full of stale bytes but for header and first area, with ``entries`` on it."""
    device = MemoryDevice(chunks * chunk)
    device.poke(0, b"\xaa" * device.size)
    device.poke(0, Header(True, chunk // SECTOR).to_bytes().ljust(chunk, b"\0") + bytes(chunk))
    layout = Layout(chunk // SECTOR, device.size)
    for index, (old, new) in enumerate(entries or []):
        area, slot = divmod(index, layout.epa)
        if slot == 0:
            device.poke(layout.area_chunk(area) * chunk, bytes(chunk))
        where = layout.area_chunk(area) * chunk + slot * ENTRY_BYTES
        device.poke(where, old.to_bytes(8, "little") + new.to_bytes(8, "little"))
        if slot + 1 == layout.epa and layout.area_chunk(area + 1) < layout.total_chunks:
            device.poke(layout.area_chunk(area + 1) * chunk, bytes(chunk))
    return device


def data_chunks(count: int, chunk: int = CHUNK) -> list[int]:
    """The first ``count`` chunks that the kernel would hand out."""
    layout = Layout(chunk // SECTOR, 1 << 50)
    chunks, new = [], layout.first_data_chunk
    for _ in range(count):
        chunks.append(new)
        new = layout.next_data_chunk(new)
    return chunks


class StoreRig:
    """``store`` and what surrounds it. ``run`` completes all I/O and deferred calls."""

    def __init__(self, device: MemoryDevice, chunk: int = CHUNK) -> None:
        self.device = device
        arena = MemoryArena(64 * KIB + 4 * chunk)
        self.engine = MemoryEngine(arena)
        self.ports = Ports()
        self.woken = 0
        self.config = StoreConfig(
            engine=self.engine,
            device=device,
            chunk_sectors=chunk // SECTOR,
            origin_chunks=ORIGIN_CHUNKS,
            image=arena.allocate(chunk),
            zeros=arena.allocate(chunk),
            wake=self._wake,
            ports=self.ports,
            options=(OPTION + VOLUME_UUID,),
        )

    def _wake(self) -> None:
        self.woken += 1

    def clusterized(self) -> Clusterized:
        store = store_types().find("clusterized_persistent")(self.config)
        assert isinstance(store, Clusterized)
        return store

    def persistent(self) -> Persistent:
        from dataclasses import replace

        return Persistent(replace(self.config, options=()))

    def loaded(self) -> Persistent:
        """A persistent store that has read everything."""
        store = self.persistent()
        errors: list[CsnapError | None] = []
        store.resume(errors.append)
        self.run()
        assert errors == [None], errors
        return store

    def run(self) -> None:
        while True:
            self.engine.kick()
            if self.engine.reap():
                continue
            if not self.ports.deferred:
                return
            calls, self.ports.deferred = self.ports.deferred, []
            for call in calls:
                call()

    def entries(self) -> list[tuple[int, int]]:
        """The list as it lies on the device, area by area, up to its terminator."""
        layout = Layout(self.config.chunk_sectors, self.device.size)
        found: list[tuple[int, int]] = []
        for area in range(layout.total_chunks // layout.stride + 1):
            for slot in range(layout.epa):
                where = layout.area_chunk(area) * layout.chunk_bytes + slot * ENTRY_BYTES
                old = int.from_bytes(self.device.peek(where, 8), "little")
                new = int.from_bytes(self.device.peek(where + 8, 8), "little")
                if not new:
                    return found
                found.append((old, new))
        return found
