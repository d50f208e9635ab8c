"""What every image of every moment must be; each is opened by the real store and taken over.

The origin's sectors need no subsets: a chunk without an exception must read as it was whichever of its sectors have
arrived, so the chunks that *may* differ from the snapshot say it for all subsets at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from snapd.blockdev.memory import MemoryArena, MemoryDevice, MemoryEngine
from snapd.errors import CsnapError, StoreInvalid
from snapd.exstore.base import StoreConfig
from snapd.exstore.persistent import Persistent
from snapd.units import KIB, SECTOR
from tests.crash.history import SPEC, History, Image, Shape, entries_of, stamp_of, stamped
from tests.crash.images import Key, Medium, Unit, subsets
from tests.crash.recorder import NEVER

INVALID = -1
"""In place of a count: the header says valid=0."""


class UndoableDevice(MemoryDevice):
    """A device that can be put back: images are tried by the thousand."""

    def __init__(self, data: bytes, logical_block: int) -> None:
        super().__init__(len(data), logical_block)
        self.data[:] = data
        self.undo: list[tuple[int, bytes]] = []

    def write(self, offset: int, data: bytes, fua: bool) -> None:
        self.undo.append((offset, bytes(self.data[offset : offset + len(data)])))
        self.data[offset : offset + len(data)] = data
        self.log.append(("fua" if fua else "write", offset, data))

    def flush(self, covered: int) -> None:
        self.log.append(("flush", covered, b""))

    def put_back(self) -> None:
        for offset, data in reversed(self.undo):
            self.data[offset : offset + len(data)] = data
        self.undo.clear()
        self.log.clear()


class Opener:
    """Opens images as a host does that takes over: load to the end, zero the stale tail."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        arena = MemoryArena(2 * shape.chunk + 64 * KIB)
        arena.view[:] = b"\xee" * len(arena.view)
        self.engine = MemoryEngine(arena)
        self._image, self._zeros = arena.allocate(shape.chunk), arena.allocate(shape.chunk)
        arena.view[self._zeros : self._zeros + shape.chunk] = bytes(shape.chunk)

    def load(self, device: MemoryDevice) -> Persistent | None:
        """A store that has read everything; None if it is invalid."""
        sectors = self.shape.chunk // SECTOR
        store = Persistent(StoreConfig(self.engine, device, sectors, self.shape.origin, self._image, self._zeros))
        errors: list[CsnapError | None] = []
        store.resume(errors.append)
        self.engine.drain()
        if isinstance(errors[0], StoreInvalid):
            return None
        assert errors == [None], f"the store does not open: {errors[0]}"
        return store

    def take_over(self, store: Persistent) -> None:
        errors: list[CsnapError | None] = []
        store.take_over(errors.append)
        self.engine.drain()
        assert errors == [None], errors

    def append(self, store: Persistent, entries: list[tuple[int, int]]) -> None:
        errors: list[CsnapError | None] = []
        store.append(entries, errors.append)
        self.engine.drain()
        assert errors == [None], errors


def tail_is_zero(shape: Shape, device: MemoryDevice, count: int) -> bool:
    """Whether nothing lies behind the list, in its area and the whole next one."""
    layout = shape.layout
    area, slot = divmod(count, layout.epa)
    rest = device.peek(layout.area_chunk(area) * shape.chunk + 16 * slot, shape.chunk - 16 * slot)
    following = layout.area_chunk(area + 1)
    return not any(rest) and (
        following >= layout.total_chunks or not any(device.peek(following * shape.chunk, shape.chunk))
    )


def holds(store: Persistent, entries: list[tuple[int, int]]) -> bool:
    """Whether these are the store's entries, all of them."""
    lookup = store.map.get
    return store.count == len(store.map) == len(entries) and all(lookup(old) == new for old, new in entries)


@dataclass
class Figures:
    """What was tried."""

    histories: int = 0
    moments: int = 0
    exhaustive: int = 0  # moments of which every subset was tried
    images: int = 0
    distinct: int = 0
    stale: int = 0  # images with entries behind the list's end
    recoveries: int = 0  # crashes of a take-over
    volumes: int = 0  # images that whole hosts recovered

    def add(self, other: Figures) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in vars(self).items())


class Trial:
    """Every moment of one history.

    kept: a fair sample of its images, for costlier examinations. torn: some that have entries behind the list's end.
    invalid: some with valid=0.
    """

    def __init__(self, history: History, seed: int, limit: int, samples: int, keep: int) -> None:
        self.history = history
        self.figures = Figures(histories=1)
        self.kept: list[Image] = []
        self.torn: list[Image] = []
        self.invalid: list[Image] = []
        self._torn = False  # the image that was examined last
        self._rng = random.Random(seed)
        self._limit, self._samples, self._keep = limit, samples, keep
        recorder, before = history.recorder, history.before
        self._cow = Medium(before.cow, recorder.of(SPEC.path))
        self._origin = Medium(before.origin, recorder.of("origin"))
        self._device = UndoableDevice(before.cow, history.shape.logical_block)
        self._opener = Opener(history.shape)
        self._keys = Key()
        self._seen: dict[int, int] = {}
        self._place = {old: index for index, (old, _) in enumerate(history.entries)}

    def run(self) -> None:
        """Raises AssertionError, naming history and moment, at the first image that is not allowed."""
        history, recorder = self.history, self.history.recorder
        least, most, base_key = history.before.count, history.before.count, 0
        entry_writes = sorted(
            (write.handed, self._entries_in(write.offset, write.data)) for write in recorder.of(SPEC.path)
        )
        acknowledged = sorted(history.acknowledged)
        floors: dict[int, int] = {}
        flushed, kept = sorted(history.kept), dict[int, int]()
        base = bytes(self._cow.base)
        for moment in range(recorder.now + 1):
            self.figures.moments += 1
            changed = self._cow.advance(moment)
            if changed:
                base_key ^= self._base_difference(base)
                base = bytes(self._cow.base)
            self._origin.advance(moment)
            least = max(least, recorder.counts[moment])
            while entry_writes and entry_writes[0][0] <= moment:
                most = max(most, entry_writes.pop(0)[1])
            while acknowledged and acknowledged[0][0] <= moment:
                _, sector, stamp = acknowledged.pop(0)
                floors[sector] = max(floors.get(sector, 0), stamp)
            where = f"{history.name}, moment {moment}"
            for sector, stamp in floors.items():
                assert stamp_of(self._origin.sector(sector)) >= stamp, f"{where}: a flushed write of {sector} is lost"
            while flushed and flushed[0][0] <= moment:
                _, sector, stamp = flushed.pop(0)
                kept[sector] = max(kept.get(sector, 0), stamp)
            least = max(least, self._flushed_writes_stay(where, kept))
            self._moment(where, base_key, least, most, moment)

    def _moment(self, where: str, base_key: int, least: int, most: int, moment: int) -> None:
        needed = max((self._place.get(chunk, NEVER) + 1 for chunk in self._may_differ()), default=0)
        units = self._cow.units
        self.figures.exhaustive += len(units) <= self._limit
        invalidated = self.history.invalidated
        for subset in subsets(units, self._limit, self._samples, self._rng):
            self.figures.images += 1
            count = self._count(where, base_key, subset)
            if count == INVALID:
                assert invalidated is not None and invalidated.handed <= moment, f"{where}: valid=0 out of nowhere"
                continue
            assert invalidated is None or moment < invalidated.settled, f"{where}: valid=0 is lost"
            assert least <= count, f"{where}: {count} entries of {least} that were committed"
            assert count <= most, f"{where}: {count} entries, {most} were on their way"
            assert needed <= count, (
                f"{where}: {count} entries, but entry {needed - 1}'s chunk may have been overwritten"
            )

    def _entries_in(self, offset: int, data: bytes) -> int:
        """How long the list may be once this write is there."""
        layout, chunk = self.history.shape.layout, self.history.shape.chunk
        number = offset // chunk
        if not layout.is_metadata(number):
            return 0
        slots = [slot for slot in range(len(data) // 16) if any(data[16 * slot : 16 * slot + 16])]
        first = (number - 1) // layout.stride * layout.epa + offset % chunk // 16
        return first + slots[-1] + 1 if slots else 0

    def _may_differ(self) -> set[int]:
        """Chunks of the origin that some image of the moment has otherwise than the snapshot."""
        history, medium = self.history, self._origin
        chunk, truth = history.shape.chunk, history.truth
        differ = {unit.sector * SECTOR // chunk for unit in medium.units}
        for old in range(history.shape.origin):
            if medium.base[old * chunk : (old + 1) * chunk] != truth[old * chunk : (old + 1) * chunk]:
                differ.add(old)
        return differ

    def _base_difference(self, before: bytes) -> int:
        key, after = 0, bytes(self._cow.base)
        if before != after:
            for at in range(0, len(after), SECTOR):
                old, new = before[at : at + SECTOR], after[at : at + SECTOR]
                if old != new:
                    key ^= self._keys.difference(at // SECTOR, old, new)
                    self._device.data[at : at + SECTOR] = new
        return key

    def _count(self, where: str, key: int, subset: Sequence[Unit]) -> int:
        """The entries of an image, opened once for each content."""
        final = {unit.sector: unit.data for unit in subset}
        for sector, data in final.items():
            key ^= self._keys.difference(sector, self._cow.sector(sector), data)
        found = self._seen.get(key)
        if found is None:
            device = self._device
            for sector, data in final.items():
                device.write(sector * SECTOR, data, False)
            try:
                found = self._seen[key] = self._examine(device)
            except AssertionError as error:
                raise AssertionError(f"{where}, {len(subset)} of {len(self._cow.units)} sectors: {error}") from error
            device.put_back()
            self.figures.distinct += 1
            self._sample(final, found)
        return found

    def _examine(self, device: UndoableDevice) -> int:
        history, shape = self.history, self.history.shape
        self._torn = False
        store = self._opener.load(device)
        if store is None:
            return INVALID
        count = store.count
        entries = history.entries[:count]
        assert holds(store, entries), "entries out of nowhere"
        chunk, truth = shape.chunk, history.truth
        for old, new in entries:
            copy = device.data[new * chunk : (new + 1) * chunk]
            if copy != truth[old * chunk : (old + 1) * chunk]:
                assert self._is_written(old, copy), f"chunk {old}: COW chunk {new} is not its copy"
        stale = self._stale_entries(device, count)
        self.figures.stale += stale
        begin = len(device.log)
        self._opener.take_over(store)
        assert tail_is_zero(shape, device, count), "a stale tail is left"
        often = 4 if stale else 64
        if self.figures.distinct % often == 0:
            self._crash_again(device, begin, entries)
        if self.figures.distinct % often == 1:
            self._go_on(device, store)
        self._torn = stale
        return count

    def _is_written(self, old: int, copy: bytes) -> bool:
        """Whether each sector of a copy is that of the snapshot's moment, or one that was written to the snapshot."""
        first = old * self.history.shape.chunk // SECTOR
        for index in range(len(copy) // SECTOR):
            found, sector = copy[index * SECTOR : (index + 1) * SECTOR], first + index
            stamp = stamp_of(found)
            if found != stamped(stamp, sector) or (stamp and stamp not in self.history.written.get(sector, ())):
                return False
        return True

    def _flushed_writes_stay(self, where: str, kept: dict[int, int]) -> int:
        """Of a writable snapshot: each flushed sector is durably in its copy. Returns how long the list must be."""
        chunk, needed = self.history.shape.chunk, 0
        for sector, stamp in kept.items():
            old, within = divmod(sector * SECTOR, chunk)
            place = self._place[old]
            found = self._cow.sector((self.history.entries[place][1] * chunk + within) // SECTOR)
            assert stamp_of(found) >= stamp, f"{where}: a flushed write of the snapshot's sector {sector} is lost"
            needed = max(needed, place + 1)
        return needed

    def _stale_entries(self, device: UndoableDevice, count: int) -> bool:
        """Whether a torn batch left entries behind the list's end, in the area of the end."""
        shape = self.history.shape
        area, slot = divmod(count, shape.layout.epa)
        where = shape.layout.area_chunk(area) * shape.chunk
        return any(device.peek(where + 16 * slot, shape.chunk - 16 * slot))

    def _crash_again(self, device: UndoableDevice, begin: int, entries: list[tuple[int, int]]) -> None:
        """The take-over is itself cut short, anywhere: the list is the same to the next one, which ends it."""
        writes = [(offset, data) for kind, offset, data in device.log[begin:] if kind == "write"]
        units = []
        cut, after = bytearray(device.data), bytes(device.data)
        for (offset, data), (where, before) in zip(writes, device.undo[-len(writes) :], strict=True):
            assert offset == where and len(data) == len(before)
            units += [(offset + at, data[at : at + SECTOR]) for at in range(0, len(data), SECTOR)]
            cut[offset : offset + len(data)] = before
        units = [(at, data) for at, data in units if cut[at : at + SECTOR] != data]
        masks: Iterable[int] = range(1 << len(units))
        if len(units) > 4:
            masks = {self._rng.getrandbits(len(units)) for _ in range(16)}
        again = UndoableDevice(bytes(cut), device.logical_block)
        for mask in masks:
            for index, (offset, data) in enumerate(units):
                if mask >> index & 1:
                    again.write(offset, data, False)
            store = self._opener.load(again)
            assert store is not None and holds(store, entries), "a crash while zeroing changed the list"
            self._opener.take_over(store)
            assert again.data == after, "another end than that of a take-over without a crash"
            again.put_back()
            self.figures.recoveries += 1

    def _go_on(self, device: UndoableDevice, store: Persistent) -> None:
        """Append behind the old end, over where it was torn, past the area: only what was appended comes alive."""
        shape = self.history.shape
        before = entries_of(shape, bytes(device.data))
        free = [old for old in range(shape.origin) if not store.map.get(old)]
        goal = min(len(before) + store.room + 2, store.layout.capacity, len(before) + len(free))
        while store.count < goal:
            batch = []
            for old in free[store.count - len(before) :][: min(store.room, 7, goal - store.count)]:
                try:
                    batch.append((old, store.prepare(old)))
                except CsnapError:
                    break
            if not batch:
                break
            self._opener.append(store, batch)
        after = entries_of(shape, bytes(device.data))
        assert after[: len(before)] == before and dict(after) == dict(store.map.items()), "something came alive"

    def _sample(self, final: dict[int, bytes], count: int) -> None:
        """Keep each image with the same chance (reservoir sampling), with some subset of the origin's sectors."""
        place = len(self.kept) if len(self.kept) < self._keep else self._rng.randrange(self.figures.distinct)
        torn = self._torn and len(self.torn) < self._keep
        invalid = count == INVALID and len(self.invalid) < self._keep
        if place >= self._keep and not torn and not invalid:
            return
        cow, origin = bytearray(self._cow.base), bytearray(self._origin.base)
        for sector, data in final.items():
            cow[sector * SECTOR : (sector + 1) * SECTOR] = data
        for unit in self._origin.units:
            if self._rng.random() < 0.5:
                origin[unit.sector * SECTOR : (unit.sector + 1) * SECTOR] = unit.data
        image = Image(bytes(cow), bytes(origin), count)
        if torn:
            self.torn.append(image)
        if invalid:
            self.invalid.append(image)
        if place < self._keep:
            self.kept[place : place + 1] = [image]
