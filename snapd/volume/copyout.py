"""Copy-outs: a chunk's old content goes to the COW device before anything changes.

    READING    the old content comes from the level above (or is the client's own whole-chunk write)
    WRITING    it goes to the new chunk; neighbours of one turn are written in one operation
    CLOSING    this member's reads that fall through the stack to this chunk are drained, none begins
    COMMITTING the store makes the entry durable and publishes it

A crash before the entry is durable leaves unreferenced space; after it, an entry that is true and an
origin that is unchanged. Every failure invalidates the snapshot and never fails the origin's write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from snapd import counters
from snapd.blockdev.base import Device, Engine
from snapd.clock import Clock
from snapd.errors import CsnapError, DeviceError
from snapd.volume.part import Part
from snapd.volume.regions import Regions
from snapd.volume.snapshot import Closing, Snapshot
from snapd.volume.stages import Stages

GATHER = 16
"""Chunks written in one operation at most (the engine's limit)."""


class Copy:
    """One chunk on its way into one snapshot. ``parts`` are running and are routed again when it is published."""

    __slots__ = (
        "chunk", "closing", "committing", "new", "parts", "read", "region", "snapshot", "started", "where", "written",
    )  # fmt: skip

    def __init__(self, snapshot: Snapshot, chunk: int, new: int, where: int, region: int, started: int) -> None:
        self.snapshot = snapshot
        self.chunk = chunk
        self.new = new
        self.where = where  # a copy buffer; -1 when the content is a client's own
        self.region = region
        self.started = started
        self.read = self.written = self.committing = 0  # when it was; 0: not yet
        self.parts: list[Part] = []
        self.closing = False


class Source(Protocol):
    """Where the old content of a chunk is read: (device, offset, length)."""

    def __call__(self, snapshot: Snapshot, chunk: int) -> tuple[Device, int, int]: ...


class CopyOuts:
    """Every copy-out of this worker.

    source: where a snapshot's next newer level has a chunk.
    published: running parts to route again, and reads that waited for the commit to start again.
    finished: the part of a whole-chunk write, which is done. lost: the snapshot is to be invalidated.
    """

    def __init__(
        self,
        engine: Engine,
        buffers: list[int],
        chunk_bytes: int,
        regions: Regions,
        clock: Clock,
        words: memoryview,
        source: Source,
        published: Callable[[list[Part], list[Part]], None],
        finished: Callable[[Part], None],
        lost: Callable[[Snapshot, CsnapError], None],
        stages: Stages,
    ) -> None:
        self._stages = stages
        self._engine = engine
        self._buffers = buffers
        self._chunk_bytes = chunk_bytes
        self._regions = regions
        self._clock = clock
        self._words = words
        self._source = source
        self._published = published
        self._finished = finished
        self._lost = lost
        self._reading: dict[int, int] = {}  # chunk -> fall-through reads (and copy reads) of it in flight
        self._drained: dict[int, list[Copy]] = {}  # copies that wait for these reads
        self._to_write: list[Copy] = []
        self.closing = Closing()

    @property
    def buffers(self) -> int:
        """Copy buffers that are free."""
        return len(self._buffers)

    # ---- reads that fall through the stack

    def begin_read(self, chunk: int) -> None:
        """A read of ``chunk`` through the stack begins; the caller saw that the chunk is not closing."""
        self._reading[chunk] = self._reading.get(chunk, 0) + 1

    def end_read(self, chunk: int) -> None:
        """Such a read has its data. The last one lets waiting copies commit."""
        left = self._reading[chunk] - 1
        if left:
            self._reading[chunk] = left
            return
        del self._reading[chunk]
        for copy in self._drained.pop(chunk, ()):
            self._commit(copy, self._clock())

    # ---- the copy

    def start(self, snapshot: Snapshot, chunk: int, new: int, region: int, part: Part) -> Copy:
        """Copy ``chunk`` into ``snapshot`` at ``new``. The caller holds the region, EX, and saw a free buffer."""
        copy = self._begin(snapshot, chunk, new, self._buffers.pop(), region, part)
        device, offset, length = self._source(snapshot, chunk)
        self.begin_read(chunk)
        if length < self._chunk_bytes:  # the origin ends within this chunk: no stale bytes behind it
            self._engine.arena.view[copy.where : copy.where + self._chunk_bytes] = bytes(self._chunk_bytes)
        self._engine.read(device, copy.where, length, offset, self._read, copy)
        return copy

    def start_whole(self, snapshot: Snapshot, chunk: int, new: int, region: int, part: Part, where: int) -> Copy:
        """A client's write covers the whole chunk of a snapshot: its data goes to the new chunk, nothing is copied."""
        copy = self._begin(snapshot, chunk, new, -1, region, part)
        copy.read = copy.started
        assert snapshot.device is not None
        self._engine.write(snapshot.device, where, self._chunk_bytes, new * self._chunk_bytes, self._written, [copy])
        return copy

    def _begin(self, snapshot: Snapshot, chunk: int, new: int, where: int, region: int, part: Part) -> Copy:
        copy = Copy(snapshot, chunk, new, where, region, self._clock())
        copy.parts.append(part)
        snapshot.copies[chunk] = copy
        self._regions.begin(region)
        return copy

    def _read(self, copy: Copy, error: int) -> None:
        self.end_read(copy.chunk)
        if error:
            self._fail(copy, DeviceError(f"reading chunk {copy.chunk} for a copy", error))
        else:
            copy.read = self._clock()
            self._to_write.append(copy)

    def write_turn(self) -> None:
        """Write what this turn's reads brought: neighbours on the COW device together."""
        if not self._to_write:
            return
        copies = sorted(self._to_write, key=lambda copy: (id(copy.snapshot), copy.new))
        self._to_write.clear()
        first = 0
        for index in range(1, len(copies) + 1):
            if (
                index == len(copies)
                or copies[index].new != copies[index - 1].new + 1
                or copies[index].snapshot is not copies[first].snapshot
                or index - first == GATHER
            ):
                self._write(copies[first:index])
                first = index

    def _write(self, run: list[Copy]) -> None:
        device, size = run[0].snapshot.device, self._chunk_bytes
        assert device is not None
        wheres = [copy.where for copy in run]
        self._engine.write_gather(device, wheres, size, run[0].new * size, self._written, run)

    def _written(self, run: list[Copy], error: int) -> None:
        now = self._clock()
        if not error:
            self._count_stages(run, now)
        for copy in run:
            copy.written = now
            if error:
                self._fail(copy, DeviceError(f"writing COW chunk {copy.new}", error))
                continue
            copy.closing = True
            self.closing.begin(copy.chunk)
            if copy.chunk in self._reading:
                self._drained.setdefault(copy.chunk, []).append(copy)
            else:
                self._commit(copy, now)

    def _count_stages(self, run: list[Copy], now: int) -> None:
        """Together: to count each chunk of a run on its own would cost more than it tells."""
        count, read = len(run), max(copy.read for copy in run)
        if run[0].where >= 0:
            took = read - min(copy.started for copy in run)
            counters.note_together(self._words, counters.COPY_STAGES["read"], count, took)
        counters.note_together(self._words, counters.COPY_STAGES["write"], count, now - read)

    def _commit(self, copy: Copy, now: int) -> None:
        store = copy.snapshot.store
        assert store is not None
        copy.committing = now
        store.commit(copy.chunk, copy.new, lambda durable: self._committed(copy, durable))

    def _committed(self, copy: Copy, durable: bool) -> None:
        if not durable:
            self._fail(copy, DeviceError(f"committing chunk {copy.chunk}", 5))
            return
        words, now = self._words, self._clock()
        words[counters.COPIES] += 1
        words[counters.COPY_BYTES] += self._chunk_bytes
        counters.note(words, counters.COPY, self._chunk_bytes, now - copy.started)
        waiting = self._end(copy, now)
        if copy.where < 0:
            self._finished(copy.parts[0])
            self._published(copy.parts[1:], waiting)
        else:
            self._published(copy.parts, waiting)

    def _fail(self, copy: Copy, error: CsnapError) -> None:
        self._lost(copy.snapshot, error)
        self._published(copy.parts, self._end(copy, self._clock()))  # routed again, they wait for the table to change

    def _end(self, copy: Copy, now: int) -> list[Part]:
        """Give back what the copy held; return the reads that waited for its commit."""
        self._stages.copied(copy, now)
        del copy.snapshot.copies[copy.chunk]
        if copy.where >= 0:
            self._buffers.append(copy.where)
        waiting = self.closing.end(copy.chunk) if copy.closing else []
        self._regions.end(copy.region)
        return waiting
