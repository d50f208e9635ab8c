"""The store ``persistent``: the kernel's on-disk exceptions, for one writer at a time.

It knows nothing of a cluster. What it guarantees, whoever drives it:

- An entry is appended only behind a flush of the COW device, so the copy it points to is stable; it is
  published in the map, and then counted, only when it is itself on stable storage (seed defect 12).
- A batch never crosses an area, and the area behind one that a batch fills is zeroed before: the list
  always ends in a zero entry (trap 1), and what a torn batch leaves behind a hole lies in blocks that
  ``take_over`` zeroes (trap 2).
- A re-read parses exactly up to the limit it was given and never below what was known.

Memory: one *image* of the area that is being filled, in the arena. Only the blocks that a batch touches
are written, whole, so everything before the append position in its block must be in the image: a re-read
starts at the block of the last known entry, and what lies behind the position is zeroed before use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from snapd import counters
from snapd.clock import boottime
from snapd.errors import Corrupt, CsnapError, DeviceError, FormatError, Refused, StoreFull, StoreInvalid
from snapd.exstore.base import Action, Finished, StatusKind, StoreConfig
from snapd.exstore.chunkmap import ChunkMap
from snapd.format.header import Header
from snapd.format.layout import ENTRY_BYTES, Layout
from snapd.format.sidecar import Sidecar
from snapd.units import SECTOR

MAX_GENERATION = 2**63 - 1

Entry = tuple[int, int]
Batch = list[tuple[int, int, Callable[[bool], None]]]


class Persistent:
    """One COW device in the kernel's format. See base.ExceptionStore for the operations."""

    name = "persistent"
    rereadable = True
    shared = False

    def __init__(self, config: StoreConfig) -> None:
        if config.device is None:
            raise Refused("store type 'persistent': needs a COW device")
        if config.options:
            raise Refused(f"store type 'persistent': unknown option {config.options[0]!r}")
        self._engine = config.engine
        self._device = config.device
        self._words = config.words
        self.layout = Layout(config.chunk_sectors, config.device.size)
        self._block = config.device.logical_block
        self._image = config.image
        self._zeros = config.zeros
        self._image_area = -1
        self._image_zeroed = False  # behind the append position
        self._header_block = b""
        self.map = ChunkMap(config.origin_chunks, self.layout)
        self.count = 0  # entries that are on stable storage and in the map
        self.next_free = self.layout.first_data_chunk
        self.valid = True
        self.broken: CsnapError | None = None  # nothing may be appended any more
        self.busy = False  # a re-read or an append is under way
        self._suspended = False
        self._pending: Batch = []
        self._free: deque[tuple[int, int]] = deque()  # reserved runs [low, high), not yet prepared
        self.reserved_until = 0  # the first chunk behind everything this store has reserved

    @property
    def generation(self) -> int:
        """The sidecar's, once loaded. Without a sidecar there is none to raise: as high as any."""
        sidecar = Sidecar.from_bytes(self._header_block, self.layout.chunk_sectors)
        return sidecar.generation if sidecar is not None else MAX_GENERATION

    # ---- reading

    def resume(self, done: Finished) -> None:
        """Read the header if it was not yet, then every entry that is new, to the end of the list."""
        self._suspended = False
        self.reread(None, done)

    def reread(self, limit: int | None, done: Finished) -> None:
        """Pick up the entries from ``count`` up to exactly ``limit`` (None: to the end of the list).

        Reports Corrupt when fewer are found than ``limit`` or than were known, or when they make no sense.
        """
        if self.busy:
            raise AssertionError("a re-read or an append is under way")
        self.busy = True
        if limit is not None:
            self.map.expect(min(limit, self.layout.capacity))
        if self._header_block:
            self._read_area(limit, done)
        else:
            self._engine.read(self._device, self._image, max(self._block, SECTOR), 0, self._header_read, (limit, done))

    def _header_read(self, arg: tuple[int | None, Finished], error: int) -> None:
        limit, done = arg
        if error:
            self._finish(done, DeviceError(f"{self._device.path}: header", error))
            return
        block = bytes(self._engine.arena.view[self._image : self._image + max(self._block, SECTOR)])
        try:
            header = Header.from_bytes(block)
            if header.chunk_size != self.layout.chunk_sectors:
                raise FormatError(
                    f"{self._device.path}: header: chunk_size {header.chunk_size} sectors, "
                    f"the volume's is {self.layout.chunk_sectors}"
                )
        except CsnapError as bad:
            self._finish(done, bad)
            return
        self._header_block = block
        self.valid = header.valid
        if not self.valid:
            self._finish(done, StoreInvalid(f"{self._device.path}: header: valid is 0"))
            return
        self._read_area(limit, done)

    def _read_area(self, limit: int | None, done: Finished) -> None:
        if limit is not None and limit <= self.count:
            self._finish(done, None)
            return
        layout = self.layout
        area, slot = divmod(self.count, layout.epa)
        if layout.area_chunk(area) >= layout.total_chunks:
            what = f"{self._device.path}: area {area} would lie behind the end: no terminator"
            self._finish(done, Corrupt(what, "no_terminator"))
            return
        stop = layout.epa if limit is None else min(layout.epa, limit - area * layout.epa)
        begin = max(slot - 1, 0) * ENTRY_BYTES // self._block * self._block
        end = -(-stop * ENTRY_BYTES // self._block) * self._block
        self._image_area = area
        self._image_zeroed = False
        self._engine.read(
            self._device,
            self._image + begin,
            end - begin,
            layout.area_chunk(area) * layout.chunk_bytes + begin,
            self._area_read,
            (area, slot, stop, limit, done),
        )

    def _area_read(self, arg: tuple[int, int, int, int | None, Finished], error: int) -> None:
        area, slot, stop, limit, done = arg
        if error:
            self._image_area = -1
            self._finish(done, DeviceError(f"{self._device.path}: area {area}", error))
            return
        words = self._engine.arena.view[self._image : self._image + stop * ENTRY_BYTES].cast("Q")
        try:
            if slot and words[2 * slot - 1] == 0:
                what = f"{self._device.path}: entry {self.count - 1} is gone; {self.count} were known"
                raise Corrupt(what, "entries_vanished")
            olds, news = words[2 * slot :: 2].tolist(), words[2 * slot + 1 :: 2].tolist()
            found = news.index(0) if 0 in news else len(news)
            self.map.update(olds[:found], news[:found])
            if found:
                self._advance(max(news[:found]))
            self.count += found
            if self._words is not None:
                self._words[counters.REREAD_ENTRIES] += found
            if limit is not None and self.count < limit and slot + found < self.layout.epa:
                what = f"{self._device.path}: {self.count} entries found, the counter says {limit}"
                raise Corrupt(what, "entries_vanished")
        except CsnapError as bad:
            self.broken = bad
            self._finish(done, bad)
            return
        if slot + found == self.layout.epa and found:
            self._read_area(limit, done)  # only a full area lets the next one count
        else:
            self._finish(done, None)

    def _advance(self, newest: int) -> None:
        self.next_free = max(self.next_free, self.layout.next_data_chunk(newest))

    def _finish(self, done: Finished, error: CsnapError | None) -> None:
        self.busy = False
        done(error)
        self._pump()

    @property
    def loaded(self) -> bool:
        """Whether the header was read and makes sense."""
        return bool(self._header_block)

    # ---- the stale tail

    def take_over(self, done: Finished) -> None:
        """Zero everything behind the last entry, in its area and in the whole next one, and flush.

        Call after a re-read to the end, before the first append behind a writer that may have died. A crash
        here leaves a shorter stale tail: the list itself is not touched.
        """
        if self.busy:
            raise AssertionError("a re-read or an append is under way")
        self.busy = True
        self._prepare_image()
        layout = self.layout
        area, slot = divmod(self.count, layout.epa)
        begin = slot * ENTRY_BYTES // self._block * self._block
        offset = layout.area_chunk(area) * layout.chunk_bytes
        steps = [(self._image + begin, offset + begin, layout.chunk_bytes - begin)]
        if layout.area_chunk(area + 1) < layout.total_chunks:
            steps.append((self._zeros, layout.area_chunk(area + 1) * layout.chunk_bytes, layout.chunk_bytes))
        self._run(steps, lambda error: self._finish(done, error))

    def _run(self, writes: list[tuple[int, int, int]], done: Finished) -> None:
        """Do the writes (where, offset, length) one after the other, then flush."""

        def step(index: int, error: int) -> None:
            if error:
                self.broken = DeviceError(f"{self._device.path}: metadata", error)
                done(self.broken)
            elif index < len(writes):
                where, offset, length = writes[index]
                self._engine.write(self._device, where, length, offset, step, index + 1)
            elif index == len(writes):
                self._engine.flush(self._device, step, index + 1)
            else:
                done(None)

        step(0, 0)

    def _prepare_image(self) -> None:
        """Make the image that of the append position's area, zero from the position on."""
        area, slot = divmod(self.count, self.layout.epa)
        if self._image_area == area and self._image_zeroed:
            return
        if self._image_area != area and slot:
            raise AssertionError("the block of the append position was not read")
        begin = self._image + slot * ENTRY_BYTES
        length = self._image + self.layout.chunk_bytes - begin
        self._engine.arena.view[begin : begin + length] = bytes(length)
        self._image_area, self._image_zeroed = area, True

    # ---- allocating

    def reserve(self, count: int, skip: int = 0) -> int:
        """Reserve up to ``count`` more chunks, behind ``skip`` and everything known; return how many it got.

        Chunks beyond the layout's capacity are never handed out, so a terminator always has its place.
        """
        chunk = max(self.next_free, self.reserved_until, skip)
        got = 0
        while got < count:
            low = self.layout.data_chunk_from(chunk)
            run = min(count - got, self.layout.run_of_data_chunks(low))
            if run <= 0:
                break
            self._free.append((low, low + run))
            chunk = self.reserved_until = low + run
            got += run
        return got

    @property
    def available(self) -> int:
        """Reserved chunks that are not prepared yet."""
        return sum(high - low for low, high in self._free)

    def forget_reservations(self) -> None:
        """Give up what is reserved and not prepared (another incarnation may hand it out)."""
        self._free.clear()

    def prepare(self, old: int) -> int:
        if not self.valid:
            raise StoreInvalid(f"{self._device.path}: the snapshot is invalid")
        if self.broken is not None:
            raise self.broken
        if not self._free and not self.reserve(1):
            raise StoreFull(f"{self._device.path}: all {self.layout.capacity} chunks are used")
        low, high = self._free[0]
        if low + 1 == high:
            self._free.popleft()
        else:
            self._free[0] = (low + 1, high)
        return low

    # ---- committing

    def commit(self, old: int, new: int, callback: Callable[[bool], None]) -> None:
        self._pending.append((old, new, callback))
        self._pump()

    def _pump(self) -> None:
        """Group commit: whatever has come while the last batch ran is the next batch (if broken, all fail here)."""
        while self._pending and not self.busy and not self._suspended:
            batch, self._pending = self._pending[: self.room], self._pending[self.room :]
            self.append([(old, new) for old, new, _ in batch], partial(self._committed, batch))

    def _committed(self, batch: Batch, error: CsnapError | None) -> None:
        for _, _, callback in batch:
            callback(error is None)

    @property
    def room(self) -> int:
        """Entries that still fit the area of the append position: the longest batch."""
        return self.layout.epa - self.count % self.layout.epa

    def append(self, entries: list[Entry], done: Finished) -> None:
        """Make ``entries`` (at most ``room``) durable and publish them. One at a time.

        1. zero the next area if these fill theirs   crash: nothing refers to it
        2. flush: the copies and that area are stable crash: the copies are unreferenced space
        3. write the blocks of the entries with FUA   crash: a prefix, or entries behind a hole (take_over)
        4. publish in the map, then count             crash: the entries are true, the origin is unchanged
        """
        if self.busy or not 0 < len(entries) <= self.room:
            raise AssertionError("an append needs an idle store and a batch that fits the area")
        if self.broken is not None:
            done(self.broken)
            return
        self.busy = True
        self._prepare_image()
        started = boottime()
        layout, stop = self.layout, self.count + len(entries)
        area = self.count // layout.epa
        zeroing = []
        if stop % layout.epa == 0:
            zeroing.append((self._zeros, layout.area_chunk(area + 1) * layout.chunk_bytes, layout.chunk_bytes))
        self._run(zeroing, lambda error: self._flushed(entries, done, started, error))

    def _flushed(self, entries: list[Entry], done: Finished, started: int, error: CsnapError | None) -> None:
        if error is not None:
            self._finish(done, error)
            return
        flushed = boottime()
        area, slot = divmod(self.count, self.layout.epa)
        words = self._engine.arena.view[self._image : self._image + self.layout.chunk_bytes].cast("Q")
        position = 2 * slot
        for old, new in entries:
            words[position], words[position + 1] = old, new
            position += 2
        begin = slot * ENTRY_BYTES // self._block * self._block
        end = -(-position * 8 // self._block) * self._block
        offset = self.layout.area_chunk(area) * self.layout.chunk_bytes + begin
        arg = (entries, done, started, flushed)
        self._engine.write(self._device, self._image + begin, end - begin, offset, self._appended, arg, True)

    def _appended(self, arg: Any, error: int) -> None:
        entries, done, started, flushed = arg
        if error:
            self.broken = DeviceError(f"{self._device.path}: metadata", error)
            self._finish(done, self.broken)
            return
        try:
            self.map.update([old for old, _ in entries], [new for _, new in entries])
        except Corrupt as bad:
            self.broken = bad
            self._finish(done, bad)
            return
        self._advance(max(new for _, new in entries))
        self.count += len(entries)
        if self._words is not None:
            words, now = self._words, boottime()
            words[counters.COMMITS] += 1
            words[counters.COMMIT_ENTRIES] += len(entries)
            counters.note(words, counters.COMMIT["flush"], 0, flushed - started)
            counters.note(words, counters.COMMIT["write"], 0, now - flushed)
            counters.note(words, counters.BATCH, 0, len(entries))
        self._finish(done, None)

    # ---- the rest

    def presuspend(self) -> None:
        self._suspended = True

    def postsuspend(self) -> None:
        if self.busy:
            raise AssertionError("an append is under way")

    def lookup(self, old: int, can_block: bool = False) -> int:
        return self.map.get(old)

    def modify(self, action: Action, done: Finished) -> None:
        """Write valid=0 with FUA, all else of the header's block unchanged (the sidecar stays readable)."""
        if self.busy or not self._header_block:
            raise AssertionError("modify needs a loaded, idle store")
        header = Header.from_bytes(self._header_block)
        block = Header(False, header.chunk_size).to_bytes() + self._header_block[Header.SIZE :]
        self.valid = False
        self._write_header(block, done)

    def seal(self, generation: int, done: Finished) -> None:
        """Raise the sidecar's generation to ``generation``, with FUA. Without a sidecar there is nothing to raise."""
        if self.busy or not self._header_block or not self.valid:
            raise AssertionError("seal needs a loaded, idle, valid store")
        header = Header.from_bytes(self._header_block)
        sidecar = Sidecar.from_bytes(self._header_block, header.chunk_size)
        if sidecar is None or sidecar.generation >= generation:
            done(None)
            return
        raised = replace(sidecar, generation=generation).to_bytes(header.chunk_size)
        self._write_header(header.to_bytes() + raised + self._header_block[SECTOR:], done)

    def _write_header(self, block: bytes, done: Finished) -> None:
        """Through the image's memory; what of the append position's area was there is put back."""
        self.busy = True
        view, end = self._engine.arena.view, self._image + len(block)
        kept = bytes(view[self._image : end])
        view[self._image : end] = block
        self._engine.write(self._device, self._image, len(block), 0, self._modified, (done, block, kept), True)

    def _modified(self, arg: tuple[Finished, bytes, bytes], error: int) -> None:
        done, block, kept = arg
        self._engine.arena.view[self._image : self._image + len(kept)] = kept
        if not error:
            self._header_block = block
        self._finish(done, DeviceError(f"{self._device.path}: header", error) if error else None)

    def fraction_full(self) -> tuple[int, int]:
        return self.next_free * self.layout.chunk_sectors, self._device.size // SECTOR

    def metadata_sectors(self) -> int:
        """Header and areas, in sectors, as the kernel counts them."""
        return (1 + self.count // self.layout.epa + 1) * self.layout.chunk_sectors

    def status(self, kind: StatusKind) -> str:
        if kind is StatusKind.TABLE:
            return f"P {self.layout.chunk_sectors}"
        if not self.valid:
            return "Invalid"
        allocated, total = self.fraction_full()
        return f"{allocated}/{total} {self.metadata_sectors()}"

    def destroy(self) -> None:
        self._device.close()
