"""csnap-io: owns the devices, the maps and the COW engine; serves NBD. One loop, one thread.

A turn: handle what is ready (channel, NBD), look at the deadline, hand operations to the kernel, collect
completions until none comes at once, make batches of what they gathered, send the replies.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from errno import EIO, ESHUTDOWN

from snapd import counters
from snapd.blockdev.aio import AioEngine
from snapd.blockdev.arena import Arena, SlotPool
from snapd.blockdev.device import open_device
from snapd.blockdev.sync import pread
from snapd.clock import boottime
from snapd.errors import CsnapError
from snapd.exstore.base import StoreConfig
from snapd.exstore.clusterized import OPTION, Clusterized
from snapd.exstore.types import store_types
from snapd.messages import (
    Bumped,
    Fatal,
    FencedNotice,
    Forget,
    Grant,
    HandedOver,
    Hello,
    Invalidate,
    Message,
    Prepare,
    Revived,
    Revoke,
    Stop,
    Stopped,
    Trace,
)
from snapd.nbd.identity import describe
from snapd.nbd.listener import listen
from snapd.nbd.server import NbdServer
from snapd.trace import KEPT_FROM, Page
from snapd.units import KIB, MIB, SECOND
from snapd.volume.cow import Expected, opener
from snapd.volume.request import Request
from snapd.volume.table import Table
from snapd.volume.volume import Geometry, Volume, default_region
from snapd.worker.channel import MAX_DESCRIPTORS, Channel
from snapd.worker.launch import WorkerSettings
from snapd.worker.loop import READABLE, Loop
from snapd.worker.takeover import Takeover, file_of, take_over, to_descriptors

EXIT_FENCED = 4

COPY_BUFFER_BYTES = 8 * MIB
"""Memory for chunks on their way to a COW device, whatever the chunk size; at most COPY_BUFFERS of them."""

COPY_BUFFERS = 256

SMALL_SLOTS, SMALL_SLOT = 256, 64 * KIB
LARGE_SLOTS, LARGE_SLOT = 34, MIB
"""Client buffers: one request of NBD's 32 MiB always fits, and small ones never wait for it."""

TICK = SECOND // 4
STALLED_TICK = SECOND // 50
"""How soon a worker that stalls sees that its deadline moved."""

STOP_PATIENCE = 6 * SECOND
STOP_PATIENCE_STALLED = 2 * SECOND
"""How long a planned stop waits for requests that wait for locks, or for the lease: the unit has 10 s to stop."""

HAND_OVER_PATIENCE = SECOND // 2
"""How long a stop that hands the clients over waits for locks: what waits for one then waits in the next process."""

WIND_UP_LIMIT = 2 * SECOND
"""How long the end waits for I/O that the kernel has."""


class Worker:
    """The composition of the I/O process; every decision is made in the rooms below."""

    def __init__(
        self,
        settings: WorkerSettings,
        sock: socket.socket,
        deadline: memoryview,
        words: memoryview,
        page: Page,
        warnings: tuple[str, ...] = (),
        taken: Sequence[int] = (),
    ) -> None:
        self._deadline = deadline
        self._words = words
        self._loop = Loop()
        self._exit: int | None = None
        self._stopping_since = 0
        self._accepting = False  # clients are let in once the first table is loaded
        self._channel = Channel(sock, self._loop, self._receive, self._orphaned)
        origin = open_device(settings.origin, exclusive=settings.exclusive, backend="origin")
        geometry = Geometry(
            settings.chunk_bytes,
            settings.region_bytes or default_region(origin.size, settings.chunk_bytes),
            max(4, min(COPY_BUFFERS, COPY_BUFFER_BYTES // settings.chunk_bytes)),
        )
        slots = SlotPool.bytes_needed(SMALL_SLOTS, SMALL_SLOT, LARGE_SLOTS, LARGE_SLOT)
        arena = Arena(slots + geometry.copy_buffers * geometry.chunk_bytes + 24 * max(MIB, geometry.chunk_bytes))
        self._engine = AioEngine(arena, gate=self._may_write, words=words)
        self._engine.on_conflict = self._conflict
        pool = SlotPool(arena, SMALL_SLOTS, SMALL_SLOT, LARGE_SLOTS, LARGE_SLOT)
        self._volume = Volume(self._engine, origin, geometry, self._channel.send, self._may_write, boottime, words)
        self._volume.origin_export.description = describe(settings.volume_name, settings.volume_uuid)
        expected = Expected(settings.volume_uuid, origin, geometry.chunk_bytes)
        self._table = Table(
            self._volume,
            opener(expected, lambda path: open_device(path, exclusive=settings.exclusive, backend="cow"), pread),
            store_maker(settings),
            self._vanished,
            self._serving,
            boottime,
        )
        self._takeover = take_over(taken, settings.volume_uuid, settings.socket)
        listener = self._takeover.listener or listen(settings.socket, 0o660)
        self._socket = settings.volume_uuid, file_of(settings.socket)
        self._server = NbdServer(listener, self._loop, self._volume, pool, arena, words, boottime)
        self._server.inherit(self._takeover.clients)
        self._stages = self._volume.stages
        self._stages.page = page
        self._server.desk.on_slow, self._server.desk.on_late = self._stages.slow, self._stages.queued
        self._trace(Trace(KEPT_FROM))
        self._loop.register(self._engine.fileno(), READABLE, self._completed)
        if not origin.direct:
            warnings += (f"{origin.path}: O_DIRECT refused, page cache used",)
        self._channel.send(Hello(os.getpid(), origin.size, origin.logical_block, origin.identity, warnings))
        self._handlers: dict[type[object], Callable[..., None]] = {
            Grant: self._table.granted,
            Revoke: self._table.revoked,
            Bumped: self._table.bumped,
            Prepare: self._table.prepare,
            Forget: self._table.forget,
            Invalidate: self._table.invalidate,
            Revived: lambda message: None,  # the turn looks at the deadline itself
            FencedNotice: self._fenced,
            Trace: self._trace,
            Stop: self._stop,
        }

    # ---- events

    def _may_write(self) -> bool:
        """The gate: the lease's deadline has not passed. 0 means that it was never granted."""
        return self._exit is None and boottime() < self._deadline[0]

    def _receive(self, message: Message) -> None:
        self._handlers[type(message)](message)

    def _serving(self) -> None:
        self._accepting = True
        takeover, self._takeover = self._takeover, Takeover()
        gone = self._server.open()
        refused = [*takeover.refused, *(f"hand-over: its export {name} is gone or another" for name in gone)]
        if takeover.clients:
            self._volume.notice(6, "taken_over", clients=len(takeover.clients) - len(gone))
        for why in refused:
            self._volume.notice(4, "not_taken_over", why=why)

    def _completed(self, events: int) -> None:
        pass  # readable: the turn reaps

    def _vanished(self, exports: Sequence[object]) -> None:
        for export in exports:
            self._server.drop_export(export)

    def _orphaned(self) -> None:
        self._exit = 1

    def _fenced(self, message: FencedNotice) -> None:
        self._exit = EXIT_FENCED

    def _conflict(self) -> None:
        """A device refused this host's key: others have fenced it. Nothing is answered but errors from here on, and no
        snapshot is given up for what fails now: those who fenced this host go on with it."""
        if self._exit is None:
            self._exit = EXIT_FENCED
            self._volume.failed, self._volume.admitting = EIO, False
            self._channel.send(Fatal("fenced: a device has refused this host with a reservation conflict (EBADE)"))

    def _trace(self, message: Trace) -> None:
        self._server.desk.slow = self._stages.threshold = min(KEPT_FROM, max(0, message.threshold))

    def _stop(self, message: Stop) -> None:
        self._stopping_since = boottime()
        if message.hand_over:
            self._server.quiesce()
        else:
            self._server.stop()

    # ---- the loop

    def run(self) -> int:
        """Serve until told to stop; return the exit code."""
        volume, engine, words, desk = self._volume, self._engine, self._words, self._server.desk
        next_tick = 0
        again = False
        while self._exit is None:
            pause = STALLED_TICK if volume.stalled else TICK
            self._loop.turn(0 if again else pause / SECOND)
            if self._exit is not None:  # fenced or orphaned: nothing more is handed over
                break
            now = desk.now = boottime()
            volume.set_stalled(now >= self._deadline[0])
            engine.kick(now)
            while engine.reap():
                volume.end_turn()
                engine.kick()
            volume.end_turn()
            engine.kick()
            again = self._server.end_turn(now)
            if now >= next_tick:
                next_tick = now + TICK
                self._table.tick()
                engine.publish()
                self._stages.tick(self._unanswered(now), volume)
                if self._accepting:
                    self._server.tick(now)
            words[counters.HEARTBEAT] = now
            if self._stopping_since and self._exit is None:  # who was fenced in this turn does not stop in order
                self._try_to_stop(now)
        if self._exit == EXIT_FENCED:
            self._wind_up(EIO)
        self._channel.drain()
        return self._exit

    def _unanswered(self, now: int) -> list[Request]:
        """Requests that are not answered, oldest first; none if no one is slow."""
        oldest = self._server.desk.lots.oldest()
        if not oldest or now - oldest < self._stages.threshold:
            return []
        found = [*self._server.partial(), *self._volume.unanswered()]
        return sorted(found, key=lambda request: request.started)

    def _try_to_stop(self, now: int) -> None:
        """Send Stopped once nothing is in flight, a store's own I/O included: the locks are given away then."""
        volume, server = self._volume, self._server
        patience = STOP_PATIENCE_STALLED if volume.stalled else STOP_PATIENCE
        if server.quiet and not self._engine.inflight:
            patience = HAND_OVER_PATIENCE
        if (server.quiescent or server.idle) and not volume.running and not self._engine.inflight:
            if server.quiet:
                self._hand_over()
            self._channel.send(Stopped(volume.committed()))
            self._exit = 0
        elif volume.failed and self._engine.inflight:
            self._channel.send(Fatal("stopping: I/O that was handed to the kernel does not end"))
            self._exit = 1
        elif not volume.failed and now - self._stopping_since >= patience:
            self._wind_up(ESHUTDOWN)

    def _hand_over(self) -> None:
        try:
            given = to_descriptors(*self._socket, *self._server.hand_over())
        except (OSError, MemoryError) as error:  # the clients connect again; everything else ends in order
            self._volume.notice(4, "not_taken_over", why=f"hand-over: cannot be written: {error}")
            return
        for begin in range(0, len(given), MAX_DESCRIPTORS):
            some = given[begin : begin + MAX_DESCRIPTORS]
            self._channel.send(HandedOver(len(some)), some)

    def _wind_up(self, error: int) -> None:
        """Answer everything with ``error``; hand nothing to the kernel any more, but wait for what it has."""
        volume, engine = self._volume, self._engine
        volume.fail_all(error)
        poll = select.poll()
        poll.register(engine.fileno(), select.POLLIN)
        end = boottime() + WIND_UP_LIMIT
        while True:
            engine.abort_queued(error)
            engine.reap()
            volume.end_turn()
            now = boottime()
            self._server.end_turn(now)
            if now >= end or not (volume.running or engine.inflight):
                return
            poll.poll(STALLED_TICK // 10**6)


def store_maker(settings: WorkerSettings) -> Callable[[StoreConfig], Clusterized]:
    """Return the function that makes stores of the configured type."""
    kind = store_types().find(settings.store_type)

    def make(config: StoreConfig) -> Clusterized:
        store = kind(replace(config, options=(OPTION + settings.volume_uuid,)))
        if not isinstance(store, Clusterized):
            raise CsnapError(f"store type {settings.store_type!r}: not a clusterized one")
        return store

    return make
