"""A volume: the origin on top of its snapshots, newest to oldest; what the NBD server talks to.

This module is about *whether* I/O may run: the table lock, the deadline, parts that run and parts that
wait. ``routing`` is about where it goes, ``table`` about which snapshots there are.

A part runs while the table is held (CR) and not asked back, and the lease's deadline has not passed. To
give the table back, the worker lets what runs finish: only then may the table change. Whatever changes
the answer to "where does this go?" (a grant, a publication, a re-read) routes the parts anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import EPERM
from typing import Any

from snapd import counters
from snapd.blockdev.base import Arena, Device, Engine
from snapd.clock import Clock
from snapd.errors import CsnapError, DeviceError
from snapd.messages import Done, Message, Notice, Want
from snapd.trace import IO, LEASE, SPACE, TABLE
from snapd.units import MIB
from snapd.volume.copyout import CopyOuts
from snapd.volume.part import Part
from snapd.volume.regions import Regions
from snapd.volume.request import FLUSH, READ, TRIM, WRITE, ZERO, Export, Request
from snapd.volume.routing import Router
from snapd.volume.snapshot import OriginExport, Snapshot
from snapd.volume.stages import Stages

ZERO_BYTES = MIB
"""The arena's run of zeros that WRITE_ZEROES writes from; also the longest part of such a request."""

TABLE_USES = counters.CACHED["table", "CR"]

ZERO_PARTS = 4
"""Parts of one WRITE_ZEROES that run at a time: one request of 4 GiB must not crowd out the rest."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """chunk_bytes divides region_bytes; copy_buffers is how many chunks may be on their way at once."""

    chunk_bytes: int
    region_bytes: int
    copy_buffers: int


DEFAULT_REGION = 64 * MIB
MAX_REGIONS = 16384
"""A hold is a key in etcd and a key is some 100 bytes: 16,384 regions on 30 hosts are 50 MB at the very worst."""


def default_region(origin_size: int, chunk_bytes: int) -> int:
    """Return the region size for an origin: at least 64 MiB, a power of two, at most 16,384 regions."""
    region = max(DEFAULT_REGION, chunk_bytes)
    while origin_size > region * MAX_REGIONS:
        region *= 2
    return region


class Volume:
    """See the module. ``send`` carries messages to the control process, ``gate`` says whether the lease stands."""

    def __init__(
        self,
        engine: Engine,
        origin: Device,
        geometry: Geometry,
        send: Callable[[Message], None],
        gate: Callable[[], bool],
        clock: Clock,
        words: memoryview,
    ) -> None:
        self.engine = engine
        self.origin = origin
        self.geometry = geometry
        self.send = send
        self.words = words
        self._gate = gate
        self.stages = Stages(clock)
        self.origin_export = OriginExport(origin.size, origin.logical_block, geometry.chunk_bytes)
        self.stack: list[Snapshot] = []  # valid snapshots, newest first
        self.snapshots: dict[str, Snapshot] = {}  # by store: all of the table, the invalid ones too
        self.admitting = False  # the table is held, nobody asked for it, the lease stands
        self.held = False  # the table is held
        self.frozen = True  # ... but asked back, or not loaded yet
        self.stalled = False
        self.failed = 0  # an errno: fenced, or stopping without locks: everything is answered with it
        self.on_drained: Callable[[], None] = lambda: None
        self._begun = self._ended = 0  # uses of the table: parts, and whatever else
        self._others = 0  # of those begun: what is no request that found the table held and admitting
        self._waiting: deque[Part] = deque()  # until the table is granted, or the lease stands again
        self._blocked: deque[Part] = deque()  # until a store or a copy buffer can serve them
        self._deferred: list[Callable[[], None]] = []
        self._when_read = self._origin_read  # bound once
        arena: Arena = engine.arena
        self.zeros = arena.allocate(max(ZERO_BYTES, geometry.chunk_bytes))
        self.regions = Regions(self._want_region, self._done_region, self.restart)
        self.router = Router(self)
        self.copies = CopyOuts(
            engine,
            [arena.allocate(geometry.chunk_bytes) for _ in range(geometry.copy_buffers)],
            geometry.chunk_bytes,
            self.regions,
            clock,
            words,
            self.router.source,
            self._published,
            self.finish,
            self.lost,
            self.stages,
        )

    # ---- the NBD server's side

    def exports(self) -> Sequence[Export]:
        return [self.origin_export, *self.snapshots.values()]

    def settled(self) -> bool:
        return self.held

    def submit(self, request: Request) -> None:
        export, operation = request.export, request.operation
        if operation == READ and export is self.origin_export and self.admitting and len(request.segments) == 1:
            self._begun += 1  # the hot path: no lock but the table's, one operation
            where, length = request.segments[0]
            self.engine.read(self.origin, where, length, request.offset, self._when_read, request)
            return
        if operation == TRIM:  # allowed to change nothing
            request.done(request, EPERM if export.read_only else 0)
            return
        if export.read_only and operation in (WRITE, ZERO):
            request.done(request, EPERM)
            return
        if self.failed:
            request.done(request, self.failed)
            return
        request.left = 1  # this loop itself
        request.cursor = 0
        if operation == ZERO:
            self._others -= self.admitting
            self._feed(request)
        elif operation == FLUSH:
            request.left += 1
            self.start(Part(request, 0, 0, 0))
        else:
            parts = self._split(request)
            if len(parts) > 1 and self.admitting:
                self._others += len(parts) - 1
            for part in parts:
                self.start(part)
        self._part_done(request, 0)

    def _origin_read(self, request: Request, error: int) -> None:
        self._ended += 1
        request.done(request, error)
        if self.frozen and not self.running:
            self.on_drained()

    def _split(self, request: Request) -> list[Part]:
        """Split at segments and, where a region's lock may be needed, at region boundaries."""
        region = self.geometry.region_bytes
        parts, offset = [], request.offset
        for start, length in request.segments:
            where = start
            while length:
                size = min(length, region - offset % region)
                parts.append(Part(request, offset, size, where))
                offset, where, length = offset + size, where + size, length - size
        request.left += len(parts)
        return parts

    def _feed(self, request: Request) -> None:
        """Start the next parts of a WRITE_ZEROES, a few at a time; none once it has failed."""
        region = self.geometry.region_bytes
        while request.cursor < request.length and request.left <= ZERO_PARTS and not request.error:
            offset = request.offset + request.cursor
            size = min(request.length - request.cursor, region - offset % region, ZERO_BYTES)
            request.cursor += size
            request.left += 1
            self._others += self.admitting
            self.start(Part(request, offset, size, self.zeros))

    def _part_done(self, request: Request, error: int) -> None:
        if error and not request.error:
            request.error = error
        request.left -= 1
        if request.operation == ZERO and request.left:
            self._feed(request)
        if not request.left:
            request.done(request, request.error)

    def unanswered(self) -> list[Request]:
        """Every request it has got and not answered. Looks into every corner: for now and then."""
        parts = [*self._waiting, *self._blocked, *self.regions.parts(), *self.copies.closing.parts()]
        copies = (copy for snapshot in self.snapshots.values() for copy in snapshot.copies.values())
        parts += [part for copy in copies for part in copy.parts]
        arguments = self.engine.arguments()
        parts += [arg for arg in arguments if isinstance(arg, Part)]
        found = [part.request for part in parts] + [arg for arg in arguments if isinstance(arg, Request)]
        return list(dict.fromkeys(found))

    # ---- parts

    @property
    def running(self) -> int:
        """Uses of the table that have begun and not ended."""
        return self._begun - self._ended

    def start(self, part: Part) -> None:
        """Run the part, or queue it until I/O is admitted."""
        if self.admitting:
            self._begun += 1
            self.router.route(part)
        elif self.failed:
            self._part_done(part.request, self.failed)
        else:
            self.stages.enter(part, LEASE if self.stalled else TABLE)
            self._waiting.append(part)

    def restart(self, parts: Sequence[Part]) -> None:
        """Route anew parts that waited in a queue."""
        for part in parts:
            self.stages.enter(part, IO)  # unless it must wait again
            self._others += self.admitting
            self.start(part)

    def finish(self, part: Part) -> None:
        """A running part is done (its ``error`` says how)."""
        self._ended += 1
        self._part_done(part.request, part.error or self.failed)
        self._check_drained()

    def pause(self, part: Part) -> None:
        """A running part has nothing in flight any more and is about to be put into a queue by the caller."""
        self._ended += 1
        self._check_drained()

    def begin_use(self) -> None:
        """Something that is no request uses the table: it is not given back meanwhile."""
        self._begun += 1
        self._others += 1

    def end_use(self) -> None:
        self._ended += 1
        self._check_drained()

    def block(self, part: Part, snapshot: Snapshot | None = None) -> None:
        """A running part waits until a store (of ``snapshot``) or a copy buffer can serve it."""
        self.stages.wait_space(part, snapshot)
        self._blocked.append(part)
        self.pause(part)

    def block_rest(self, part: Part) -> None:
        """A part that was just cut off a running one waits for a store, a copy buffer, or just the end of the turn."""
        self.stages.enter(part, SPACE)
        self._blocked.append(part)

    def stall(self, part: Part) -> None:
        """A running part met the deadline: it waits until the lease stands again."""
        if self.failed:
            self.finish(part)
            return
        self.stages.enter(part, LEASE, was=IO)
        self._waiting.append(part)
        self.set_stalled(True)
        self.pause(part)

    def wake(self) -> None:
        """A store or a copy buffer may serve more than before: route the blocked parts anew, this turn."""
        if self._blocked:
            self.defer(self._restart_blocked)

    def _restart_blocked(self) -> None:
        blocked, self._blocked = self._blocked, deque()
        self.restart(blocked)

    def _published(self, parts: list[Part], waiting: list[Part]) -> None:
        for part in parts:
            part.left -= 1
            if not part.left:
                if self.failed:
                    self.finish(part)
                else:
                    self.stages.enter(part, IO)
                    self.router.route(part)
        self.restart(waiting)
        self.wake()

    def late(self) -> bool:
        """Whether the lease's deadline has passed: what was just read must not be answered."""
        return not self._gate()

    # ---- admission

    def set_stalled(self, stalled: bool) -> None:
        """The deadline passed, or stands again."""
        if stalled != self.stalled:
            self.stalled = stalled
            self.stages.stalled(stalled)
            self.words[counters.STALLED] = int(stalled)
            self.admit()

    def freeze(self) -> None:
        """The table is asked back, or changes: admit nothing new; ``on_drained`` when nothing runs."""
        self.frozen, self.admitting = True, False
        self._check_drained()

    def thaw(self) -> None:
        """The table is held and loaded."""
        self.frozen = False
        self.admit()

    def admit(self) -> None:
        """Start everything that waited, if I/O may run."""
        self.admitting = self.held and not self.frozen and not self.stalled and not self.failed
        if self.admitting:
            waiting, self._waiting = self._waiting, deque()
            self.restart(waiting)
            self.wake()

    def _check_drained(self) -> None:
        if self.frozen and not self.running:
            self.on_drained()

    # ---- the turn of the loop

    def defer(self, call: Callable[[], None]) -> None:
        """Call at the end of this turn."""
        if call not in self._deferred:
            self._deferred.append(call)

    def end_turn(self) -> None:
        """After completions and events were handled: what they gathered becomes batches."""
        self.copies.write_turn()
        while self._deferred:
            deferred, self._deferred = self._deferred, []
            for call in deferred:
                call()

    def publish(self) -> None:
        """Now and then: what changes with every request, into the counters page."""
        self.words[TABLE_USES] = self._begun - self._others
        self.words[counters.WAITING] = len(self._waiting) + len(self._blocked) + self.regions.waiting

    def fail_all(self, error: int) -> None:
        """Fenced, or stopping without a lease: answer what waits with ``error``, and from now on all else.

        What runs is answered when its I/O has ended (the caller aborts what was not handed over): until then a
        device may write into its buffers. Nothing new is started, and what breaks on the way costs no snapshot.
        """
        self.failed = error
        self.admitting = False
        parts = [*self._waiting, *self._blocked, *self.regions.take_waiting(), *self.copies.closing.take_waiting()]
        self._waiting.clear()
        self._blocked.clear()
        for part in parts:
            self._part_done(part.request, error)
        for snapshot in self.stack:
            if snapshot.store is not None:
                snapshot.store.give_up(DeviceError("stopped", error))

    # ---- towards the lockspace

    def committed(self) -> tuple[tuple[str, int], ...]:
        """Entries committed in every store whose tail this member holds and has caught up with.

        One that is still being re-read, or zeroed after a recovery, is left out: its number would be too low,
        and would declare a tail trusted that is not. One that cannot append any more is not: others must find
        what it committed before, until its snapshot is invalid.
        """
        return tuple(
            (uuid, snapshot.store.core.count)
            for uuid, snapshot in self.snapshots.items()
            if snapshot.store is not None and snapshot.store.tail and snapshot.store.caught_up
        )

    def _want_region(self, region: int, mode: int) -> None:
        self.send(Want(f"region/{region}", mode))

    def _done_region(self, region: int, mode: int) -> None:
        self.send(Done(f"region/{region}", mode, self.committed()))

    def lost(self, snapshot: Snapshot, error: CsnapError) -> None:
        """A snapshot cannot be kept: the control process takes the table and invalidates it."""
        if not snapshot.lost and not self.failed:
            snapshot.lost = str(error)
            self.router.overflow(snapshot, error)

    def notice(self, priority: int, event: str, **fields: Any) -> None:
        """Log something through the control process."""
        self.send(Notice(priority, event, tuple((key, str(value)) for key, value in fields.items())))
