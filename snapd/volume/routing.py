"""Where a part goes: the rules of the stack.

A snapshot reads a chunk from its own store, else from the next newer one that has it, ... else from the
origin. Whoever changes a level's chunk first makes sure that the next older level owns a copy.

    origin write     the newest snapshot owns the chunk    -> write
                     else                                  -> region EX, copy-out, route again
    snapshot read    its own store has it (a hit)          -> read, no lock: committed is true until dropped
                     else (a miss)                         -> region CR or EX, everything re-read, read the level
                                                              above, tracked until the data is there
    snapshot write   own store and next older store have it -> write in place
                     else                                  -> region EX, copy-out (older first), route again

A routed part either gets I/O in flight or is put into exactly one queue. Routing may be repeated at will:
it decides from the maps and the locks of the moment, so a part that was woken for whatever reason is
simply routed again.
"""

from __future__ import annotations

from errno import EIO
from typing import TYPE_CHECKING

from snapd import counters
from snapd.blockdev.base import Device
from snapd.errors import CsnapError, FormatError, StoreFull, StoreInvalid, WouldBlock
from snapd.exstore.clusterized import Clusterized
from snapd.messages import CR, EX, Overflow
from snapd.trace import COMMIT, READ_OLD
from snapd.volume.part import Part
from snapd.volume.request import FLUSH, READ
from snapd.volume.snapshot import Snapshot

if TYPE_CHECKING:
    from snapd.volume.volume import Volume

Extent = tuple[Device, int, int, int]
"""(device, offset, where, length)"""


class Router:
    """Stateless: all it knows is the volume's."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._chunk = volume.geometry.chunk_bytes
        self._region = volume.geometry.region_bytes

    def route(self, part: Part) -> None:
        """Start the I/O of a running part, or queue it."""
        volume, request = self._volume, part.request
        operation, export = request.operation, request.export
        part.left = part.error = 0
        if not isinstance(export, Snapshot):
            if operation == READ:
                self._submit(part, [(volume.origin, part.offset, part.where, part.length)], write=False)
            elif operation == FLUSH:
                volume.engine.flush(volume.origin, self._done, part)
            else:
                self._write_origin(part)
        elif export not in volume.stack or export.device is None:
            part.error = EIO  # invalid, or dropped while this request was on its way
            volume.finish(part)
        elif operation == READ:
            self._read_snapshot(part, export)
        elif operation == FLUSH:
            volume.engine.flush(export.device, self._done, part)
        else:
            self._write_snapshot(part, export)

    # ---- reads

    def _read_snapshot(self, part: Part, snapshot: Snapshot) -> None:
        size = self._chunk
        get = _store(snapshot).core.map.get
        extents: list[Extent] = []
        misses: list[int] = []
        offset, where, end = part.offset, part.where, part.offset + part.length
        while offset < end:
            chunk, within = divmod(offset, size)
            length = min(size - within, end - offset)
            new = get(chunk)
            if new:
                assert snapshot.device is not None
                device, start = snapshot.device, new * size + within
            else:
                misses.append(chunk)
                device, start, _ = self.source(snapshot, chunk)
                start += within
            _extend(extents, device, start, where, length)
            offset, where = offset + length, where + length
        if misses and not self._may_fall_through(part, misses):
            return
        self._submit(part, extents, write=False)

    def _may_fall_through(self, part: Part, misses: list[int]) -> bool:
        """Queue the part and return False, unless its misses are final and may be read now."""
        volume = self._volume
        region = part.offset // self._region
        if not volume.regions.usable(region, CR):
            part.waited = True
            volume.stages.wait_region(part, region)
            volume.regions.wait(region, CR, part)
            volume.pause(part)
            return False
        if not self._current():
            volume.block(part)
            return False
        for chunk in misses:
            if chunk in volume.copies.closing:
                volume.stages.enter(part, COMMIT)
                volume.copies.closing.wait(chunk, part)
                volume.pause(part)
                return False
        self._count_use(part, "CR")
        volume.regions.begin(region)
        part.region, part.tracked = region, misses
        for chunk in misses:
            volume.copies.begin_read(chunk)
        return True

    def _snapshot_read(self, part: Part, error: int) -> None:
        if error:
            part.error = error
        part.left -= 1
        if part.left:
            return
        volume = self._volume
        if part.region >= 0:
            for chunk in part.tracked:
                volume.copies.end_read(chunk)
            region, part.region, part.tracked = part.region, -1, []
            volume.regions.end(region)
        if volume.late():  # the data may be of after a take-over: it is never answered
            volume.words[counters.REJECTED_LATE_READS] += 1
            volume.stall(part)
        else:
            volume.finish(part)

    def source(self, snapshot: Snapshot, chunk: int) -> tuple[Device, int, int]:
        """Where the level above ``snapshot`` has ``chunk``: (device, offset, length up to the origin's end)."""
        volume, size = self._volume, self._chunk
        length = min(size, volume.origin.size - chunk * size)
        for newer in reversed(volume.stack[: volume.stack.index(snapshot)]):
            new = _store(newer).core.map.get(chunk)
            if new:
                assert newer.device is not None
                return newer.device, new * size, length
        return volume.origin, chunk * size, length

    def _current(self) -> bool:
        """Whether every store of the stack has read all that the counters announced."""
        return all(_store(snapshot).current for snapshot in self._volume.stack)

    # ---- writes

    def _write_origin(self, part: Part) -> None:
        stack = self._volume.stack
        if stack:
            missing = self._missing(part, stack[0])
            if missing:
                self._copy(part, stack[0], missing)
                return
        self._submit(part, [(self._volume.origin, part.offset, part.where, part.length)], write=True)

    def _write_snapshot(self, part: Part, snapshot: Snapshot) -> None:
        volume, size = self._volume, self._chunk
        position = volume.stack.index(snapshot) + 1
        if position < len(volume.stack):
            missing = self._missing(part, volume.stack[position])
            if missing:
                self._copy(part, volume.stack[position], missing)
                return
        missing = self._missing(part, snapshot)
        if not missing:
            assert snapshot.device is not None
            get = _store(snapshot).core.map.get
            extents: list[Extent] = []
            offset, where, end = part.offset, part.where, part.offset + part.length
            while offset < end:
                chunk, within = divmod(offset, size)
                length = min(size - within, end - offset)
                _extend(extents, snapshot.device, get(chunk) * size + within, where, length)
                offset, where = offset + length, where + length
            self._submit(part, extents, write=True)
        elif part.offset <= missing[0] * size and (missing[0] + 1) * size <= part.offset + part.length:
            self._write_whole(part, snapshot, missing[0])
        else:
            if len(missing) > 1:
                self._cut(part, missing[1])
            self._copy(part, snapshot, missing[:1])

    def _write_whole(self, part: Part, snapshot: Snapshot, chunk: int) -> None:
        """The write covers ``chunk`` wholly: its data goes to the new chunk. What lies around it is cut off."""
        volume, size = self._volume, self._chunk
        if part.offset < chunk * size:
            self._cut(part, chunk)
            self.route(part)
            return
        if part.length > size:
            self._cut(part, chunk + 1)
        if chunk in snapshot.copies:  # another write is copying it: then this one goes in place
            self._attach(part, snapshot, chunk)
            return
        new = self._take(part, snapshot, chunk)
        if new:
            volume.stages.enter(part, READ_OLD)
            part.left = 1
            volume.copies.start_whole(snapshot, chunk, new, part.offset // self._region, part, part.where)

    def _missing(self, part: Part, snapshot: Snapshot) -> list[int]:
        """The chunks of the part that the snapshot does not own."""
        get = _store(snapshot).core.map.get
        first, last = part.offset // self._chunk, (part.offset + part.length - 1) // self._chunk
        if first == last:
            return [] if get(first) else [first]
        return [chunk for chunk in range(first, last + 1) if not get(chunk)]

    def _copy(self, part: Part, snapshot: Snapshot, missing: list[int]) -> None:
        """Start what copies can be started; cut off and queue what cannot."""
        volume = self._volume
        region = part.offset // self._region
        for chunk in missing:
            if chunk in snapshot.copies:
                self._attach(part, snapshot, chunk)
                continue
            if part.left and not self._can_start(snapshot, chunk, region):
                self._cut(part, chunk)
                return
            new = self._take(part, snapshot, chunk)
            if not new:
                assert not part.left, "a queued part must have nothing in flight"
                return
            if not part.left:
                volume.stages.enter(part, READ_OLD)
            part.left += 1
            volume.copies.start(snapshot, chunk, new, region, part)

    def _attach(self, part: Part, snapshot: Snapshot, chunk: int) -> None:
        if not part.left:
            self._volume.stages.enter(part, READ_OLD)
        part.left += 1
        snapshot.copies[chunk].parts.append(part)

    def _can_start(self, snapshot: Snapshot, chunk: int, region: int) -> bool:
        volume = self._volume
        return (
            not snapshot.lost
            and self._current()
            and volume.regions.usable(region, EX)
            and chunk not in volume.copies.closing
            and volume.copies.buffers > 0
            and _store(snapshot).core.available > 0
        )

    def _take(self, part: Part, snapshot: Snapshot, chunk: int) -> int:
        """Return a COW chunk for a copy of ``chunk``; or queue the part, which has nothing in flight, and return 0."""
        volume = self._volume
        region = part.offset // self._region
        if snapshot.lost:
            volume.block(part, snapshot)
        elif not volume.regions.usable(region, EX):
            part.waited = True
            volume.stages.wait_region(part, region)
            volume.regions.wait(region, EX, part)
            volume.pause(part)
        elif not self._current() or not volume.copies.buffers:
            volume.block(part, snapshot)
        elif chunk in volume.copies.closing:
            volume.stages.enter(part, COMMIT)
            volume.copies.closing.wait(chunk, part)
            volume.pause(part)
        else:
            try:
                new = _store(snapshot).prepare(chunk)
            except WouldBlock:
                volume.block(part, snapshot)
            except CsnapError as error:
                volume.lost(snapshot, error)
                volume.block(part, snapshot)
            else:
                self._count_use(part, "EX")
                return new
        return 0

    def _cut(self, part: Part, chunk: int) -> None:
        """Cut the part before ``chunk``; the rest is routed at the end of this turn."""
        self._volume.block_rest(part.cut(chunk * self._chunk - part.offset))
        self._volume.wake()

    # ---- the I/O itself

    def _submit(self, part: Part, extents: list[Extent], write: bool) -> None:
        engine, fua = self._volume.engine, part.request.fua
        part.left = len(extents)
        done = self._snapshot_read if not write and isinstance(part.request.export, Snapshot) else self._done_one
        for device, offset, where, length in extents:
            if write:
                engine.write(device, where, length, offset, done, part, fua)
            else:
                engine.read(device, where, length, offset, done, part)

    def _done_one(self, part: Part, error: int) -> None:
        if error:
            part.error = error
        part.left -= 1
        if not part.left:
            self._volume.finish(part)

    def _done(self, part: Part, error: int) -> None:
        part.error = error
        self._volume.finish(part)

    def _count_use(self, part: Part, mode: str) -> None:
        """Count a use of the part's region, unless it is the one that it was waited for."""
        if part.waited:
            part.waited = False
        else:
            self._volume.words[counters.CACHED["region", mode]] += 1

    def overflow(self, snapshot: Snapshot, error: CsnapError) -> None:
        """Tell the control process that the snapshot is lost; until it took the table, nobody skips a copy."""
        volume, reason = self._volume, str(error)
        volume.words[counters.INVALIDATIONS[_loss(error)]] += 1
        volume.notice(3, "snapshot_lost", snapshot=snapshot.spec.name, reason=reason)
        volume.send(Overflow(snapshot.spec.store, reason))


def _loss(error: CsnapError) -> str:
    """Return the one of counters.LOSSES that ``error`` is."""
    if isinstance(error, StoreFull):
        return "full"
    if isinstance(error, StoreInvalid):
        return "header"
    return "corrupt" if isinstance(error, FormatError) else "device_error"


def _store(snapshot: Snapshot) -> Clusterized:
    assert snapshot.store is not None  # of every snapshot in the stack
    return snapshot.store


def _extend(extents: list[Extent], device: Device, offset: int, where: int, length: int) -> None:
    """Append, or lengthen the last one if this goes on where it ends."""
    if extents:
        last, start, first, size = extents[-1]
        if last is device and start + size == offset:
            extents[-1] = (last, start, first, size + length)
            return
    extents.append((device, offset, where, length))
