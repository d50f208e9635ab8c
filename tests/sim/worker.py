"""The I/O process: the real volume and table over a simulated way to the disks; its loop is ``snapd.worker.main``'s.

A turn takes what has come, looks at the deadline, hands over, reaps until nothing comes at once, and answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from errno import EIO, ESHUTDOWN
from typing import TYPE_CHECKING, Any

from snapd import counters
from snapd.blockdev.memory import MemoryArena
from snapd.errors import Refused
from snapd.exstore.base import StoreConfig
from snapd.exstore.clusterized import OPTION, Clusterized
from snapd.exstore.types import store_types
from snapd.messages import FencedNotice, Grant, Message, Overflow, Revived, Revoke, Stop, Stopped
from snapd.units import KIB, MIB, SECOND
from snapd.volume.cow import Expected, opener
from snapd.volume.request import READ, WRITE, Export, Request
from snapd.volume.table import Table
from snapd.volume.volume import Geometry, Volume
from tests.sim.disk import Handle, Way

if TYPE_CHECKING:
    from tests.sim.host import Host

TURN = 20_000
"""From an event to the turn that handles it, ns; what comes meanwhile is handled in the same turn."""

TICK = SECOND // 4
STALLED_TICK = SECOND // 50
PATIENCE, PATIENCE_STALLED = 6 * SECOND, 2 * SECOND
WIND_UP = 2 * SECOND
SLOT, SLOTS = 16 * KIB, 24
ARENA = 2 * MIB

Answer = Callable[[int, bytes], None]
"""``answer(error, data)``"""


class Worker:
    """One incarnation. ``inbox`` outlives a pause; nothing outlives the death but what the kernel has."""

    def __init__(self, host: Host, incarnation: str) -> None:
        world = host.world
        self.host, self.world, self.incarnation = host, world, incarnation
        self.alive, self.frozen, self.serving = True, False, False
        self.exit: int | None = None
        self.deadline = 0
        self.inbox: deque[Callable[[], None]] = deque()
        self.answers: list[Callable[[], None]] = []
        self.outstanding = 0
        self.stopping_since = 0
        self.gone_since = 0
        self.submitted_at = 0  # the last turn's
        self._again = False
        self._scheduled = False
        self._next_tick = 0
        arena = MemoryArena(ARENA)
        self.way = Way(arena, world.scheduler, world.disk_rng, self._may_write, self.wake, world.trouble, host.node)
        self.words = memoryview(bytearray(counters.PAGE_BYTES)).cast("Q")
        self.volume = Volume(
            self.way,
            Handle(world.origin),
            Geometry(world.shape.chunk, world.shape.region, world.shape.copy_buffers),
            self._send,
            self._may_write,
            host.clock.now,
            self.words,
        )
        self.table = Table(
            self.volume,
            opener(Expected(world.uuid, self.volume.origin, world.shape.chunk), self._open, peek),
            self._make_store,
            lambda gone: None,
            self._serving,
            host.clock.now,
        )
        self.slots = [arena.allocate(SLOT) for _ in range(SLOTS)]
        self.way.kick()

    # ---- what the composition passes in

    def _may_write(self) -> bool:
        return self.host.clock.now() < self.deadline

    def _open(self, path: str) -> Handle:
        if (self.host.node, path) in self.world.absent or path not in self.world.disks:
            raise Refused(f"{path}: no such device")
        return Handle(self.world.disks[path])

    def _make_store(self, config: StoreConfig) -> Clusterized:
        store = STORE(replace(config, options=(OPTION + self.world.uuid,)))
        assert isinstance(store, Clusterized)
        return store

    def _serving(self) -> None:
        self.serving = True

    def _send(self, message: Message) -> None:
        if isinstance(message, Overflow):
            self.world.oracle.overflowed(self, message.store, message.reason)
        self.host.to_control(self, message)

    # ---- events

    def post(self, call: Callable[[], None]) -> None:
        """Something is there to be handled: a message, a request, the end of the channel."""
        if self.alive:
            self.inbox.append(call)
            self.wake()

    def receive(self, message: Message) -> None:
        self.post(lambda: self._handle(message))

    def _handle(self, message: Message) -> None:
        if isinstance(message, Grant):
            self.world.oracle.granted(self, message)
            self.table.granted(message)
        elif isinstance(message, Revoke):
            self.table.revoked(message)
        elif isinstance(message, FencedNotice):
            self._wind_up(EIO, 4)
        elif isinstance(message, Stop):
            self.stopping_since = self.host.clock.now()
        elif not isinstance(message, Revived):
            getattr(self.table, type(message).__name__.lower())(message)

    def orphaned(self) -> None:
        """The channel has closed."""
        self.post(lambda: self.die(1))

    def deadline_moved(self, deadline: int) -> None:
        """The page that control shares with us: seen at once, whoever runs."""
        self.deadline = deadline
        if self.volume.stalled:
            self.world.scheduler.call_later(self.world.disk_rng.randrange(STALLED_TICK), self.wake)

    # ---- the loop

    def wake(self) -> None:
        if not self._scheduled and self.alive:
            self._scheduled = True
            self.world.scheduler.call_later(TURN, self._turn)

    def _turn(self) -> None:
        if not self.alive:
            return
        self._scheduled = False
        if self.frozen:
            self._again = True
            return
        volume, way = self.volume, self.way
        while self.inbox and self.alive:
            self.inbox.popleft()()
        if not self.alive:
            return
        now = self.host.clock.now()
        self.submitted_at = self.world.scheduler.now()
        if self.exit is None:
            volume.set_stalled(now >= self.deadline)
            way.kick()
            while way.reap():
                volume.end_turn()
                way.kick()
            volume.end_turn()
            way.kick()
        else:
            way.abort_queued(EIO)
            way.reap()
            volume.end_turn()
        answers, self.answers = self.answers, []
        for answer in answers:
            answer()
        if now >= self._next_tick:
            self._next_tick = now + TICK
            if self.exit is None:
                self.table.tick()
            self.host.clock.call_at(self._next_tick, self.wake)
        if self.exit is not None:
            self._try_to_exit(now)
        elif self.stopping_since:
            self._try_to_stop(now)

    def _try_to_stop(self, now: int) -> None:
        volume = self.volume
        patience = PATIENCE_STALLED if volume.stalled else PATIENCE
        if not self.outstanding and not volume.running and not self.way.inflight:
            self._send(Stopped(volume.committed()))
            self.die(0)
        elif not volume.failed and now - self.stopping_since >= patience:
            volume.fail_all(ESHUTDOWN)
            self.way.abort_queued(ESHUTDOWN)
            self.wake()

    def _wind_up(self, error: int, code: int) -> None:
        """Fenced: answer everything, hand over nothing more, wait a while for what the kernel has."""
        self.exit, self.gone_since = code, self.host.clock.now()
        self.volume.fail_all(error)

    def _try_to_exit(self, now: int) -> None:
        if not (self.volume.running or self.way.inflight) or now - self.gone_since > WIND_UP:
            assert self.exit is not None
            self.die(self.exit)

    # ---- life and death

    def pause(self) -> None:
        """SIGSTOP: if it comes in the middle of a turn, what this turn handed over did not get that far."""
        self.frozen = True
        if self.world.rng.random() < 0.6:
            self.way.stop_at(max(1, self.submitted_at))

    def resume(self) -> None:
        self.frozen = False
        self.way.go_on()
        self._again = False
        self.wake()

    def die(self, code: int) -> None:
        if self.alive:
            self.alive = False
            self.way.die()
            self.world.note(self.host.node, "worker ends", code=code)
            self.host.worker_ended(self)

    # ---- clients

    def exports(self) -> list[Export]:
        """What a client may open; none while newcomers wait."""
        return list(self.volume.exports()) if self.serving and not self.stopping_since and self.exit is None else []

    def request(self, export: Any, operation: int, offset: int, data: bytes | int, fua: bool, answer: Answer) -> bool:
        """A client's request arrives. False: there is no room for it now."""
        length = data if isinstance(data, int) else len(data)
        segments = []
        if operation in (READ, WRITE):
            if not self.slots:
                return False
            where = self.slots.pop()
            segments = [(where, length)]

        def finished(request: Request, error: int) -> None:
            assert self.alive, "an answer from the dead"
            self.outstanding -= 1
            read = operation == READ and not error
            result = bytes(self.way.arena.view[where : where + length]) if read else b""
            if segments:
                self.slots.append(where)
            self.answers.append(lambda: answer(error, result))

        def submit() -> None:
            if isinstance(data, bytes):
                self.way.arena.view[where : where + length] = data
            self.volume.submit(Request(export, operation, offset, length, segments, fua, finished))

        self.outstanding += 1
        self.post(submit)
        return True


STORE = store_types().find("clusterized_persistent")


def peek(device: Handle, offset: int, length: int) -> bytes:
    return device.disk.peek(offset, length)
