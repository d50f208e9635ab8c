"""The control process: the real member and cluster, their timers, effects and fencer; the operator's commands.

Wiring as ``snapd.daemon.serve`` has it: who ends when the other one does, what happens on a refusal, a planned stop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast
from uuid import UUID

from snapd.cluster.cluster import Cluster, NewSnapshot
from snapd.errors import CsnapError, Fenced, Refused
from snapd.format.header import Header
from snapd.format.sidecar import Sidecar
from snapd.lockspace.kv import Kv
from snapd.lockspace.member import Member
from snapd.lockspace.ports import Limits, Settings
from snapd.lockspace.records import MemberRecord
from snapd.messages import Message, Stop, Stopped
from snapd.units import SECOND, SECTOR
from tests.support.virtual_time import Timer

if TYPE_CHECKING:
    from tests.sim.host import Host

WORKER_END, LEAVE_LIMIT, STOP_LIMIT = 83 * SECOND // 10, 5 * SECOND, 93 * SECOND // 10
FENCED_LIMIT = 4 * SECOND


class Control:
    """One incarnation; also the member's Effects, Timers and Fencer."""

    method = "played"

    def __init__(self, host: Host, incarnation: str) -> None:
        world = host.world
        self.host, self.world, self.incarnation = host, world, incarnation
        self.alive, self.frozen = True, False
        self.failure: CsnapError | None = None
        self.clean_stop: bool | None = None
        self.stopping = False
        self.commanding = ""
        self._kept: list[Callable[[], None]] = []
        self._fencing: dict[str, Callable[[], None]] = {}
        self.client = world.etcd.client(incarnation)
        self.client.reachable = host.reachable
        self.boot_id = host.boot_id
        settings = Settings(
            world.uuid,
            host.node,
            f"machine-{host.node}",
            host.boot_id,
            incarnation,
            f"/run/{host.node}/lock",
            ttl=world.shape.ttl,
            limits=Limits(2 * SECOND),
        )
        self.member = Member(settings, cast(Kv, self.client), self, self, self, self._proven)
        self.cluster = Cluster(self.member)

    def start(self) -> None:
        self.run(self.member.start)

    def _proven(self, record: MemberRecord) -> bool:
        """We hold the lock file, so everybody who held it before is gone."""
        assert record.incarnation != self.incarnation
        return True

    # ---- timers

    def now(self) -> int:
        return self.host.clock.now()

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer:
        timer: Timer

        def due() -> None:
            self.run(fire)

        def fire() -> None:
            if not cancelled():
                callback()

        timer = self.host.clock.call_at(when, due)
        kept = timer.callback

        def cancelled() -> bool:  # a timer may be cancelled while its process is stopped
            return timer.callback is not kept

        return timer

    def run(self, callback: Callable[[], None]) -> None:
        """Not while it is stopped, never after its death."""
        if self.alive:
            if self.frozen:
                self._kept.append(callback)
            else:
                callback()

    # ---- effects

    def send(self, message: Message) -> None:
        self.host.to_worker(self, message)

    def receive(self, message: Message) -> None:
        self.run(lambda: self._receive(message))

    def _receive(self, message: Message) -> None:
        self.member.receive(message)
        if isinstance(message, Stopped) and self.failure is None:
            self.member.leave(self._left, LEAVE_LIMIT)

    def set_deadline(self, deadline: int) -> None:
        if self.alive:
            self.host.deadline_moved(self, deadline)

    def state(self, state: str, why: str) -> None:
        self.world.note(self.host.node, f"is {state}", why=why)

    def failed(self, error: CsnapError) -> None:
        self.world.note(self.host.node, "fails", error=error)
        self.world.oracle.failed(self, error)
        self.failure = error
        limit = FENCED_LIMIT if isinstance(error, Fenced) else 0
        self.call_at(self.now() + limit, self.host.kill_worker)

    def log(self, priority: int, event: str, fields: dict[str, object]) -> None:
        if self.world.tracing:
            self.world.note(self.host.node, event, **fields)

    def observe(self, name: str, labels: dict[str, str], value: int) -> None:
        pass

    # ---- the fencer

    def fence(self, record: MemberRecord, done: Callable[[], None]) -> None:
        self._fencing[record.incarnation] = done

        def fenced() -> None:
            ready = self._fencing.pop(record.incarnation, None)
            if ready is not None:
                ready()

        self.world.fence(record, lambda: self.run(fenced))

    def forget(self, record: MemberRecord) -> None:
        self._fencing.pop(record.incarnation, None)

    def left(self, record: MemberRecord) -> None:
        self.world.left(record)

    # ---- life and death

    def pause(self) -> None:
        self.frozen = True
        self.client.pause()

    def resume(self) -> None:
        self.frozen = False
        kept, self._kept = self._kept, []
        self.client.resume()
        for callback in kept:
            self.run(callback)

    def die(self) -> None:
        if self.alive:
            self.alive = False
            self.client.kill()
            self.world.note(self.host.node, "control ends")
            self.host.control_ended(self)

    def stop(self) -> None:
        """SIGTERM."""
        if not self.stopping:
            self.stopping = self.host.down = True
            self.send(Stop())
            self.call_at(self.now() + WORKER_END, self.host.kill_worker)
            self.call_at(self.now() + STOP_LIMIT, self.die)

    def _left(self, clean: bool) -> None:
        self.clean_stop = clean
        self.die()

    def worker_ended(self) -> None:
        """Ours: with an error unless it was told to stop, or we are at our end."""
        if not self.stopping or self.failure is not None:
            self.die()

    # ---- the operator

    @property
    def active(self) -> bool:
        return self.alive and not self.frozen and self.member.state == "active"

    def create(self, name: str, path: str) -> None:
        """csnap snapshot create, as ``snapd.daemon.snapshots`` does it."""
        world = self.world
        disk = world.disks[path]
        store = str(UUID(int=world.rng.getrandbits(128), version=4))
        self.commanding = f"create {name}"
        world.note(self.host.node, "creates", snapshot=name, device=path)

        def reserved(error: CsnapError | None) -> None:
            if error is not None:
                self._commanded(error)
            elif world.oracle.in_use(path):  # check_free: the store of another snapshot
                self.cluster.abandon()
                self._commanded(Refused("foreign content"))
            else:
                later(partial(zero))

        def zero() -> None:
            if not self._write(path, world.shape.chunk, bytes(world.shape.chunk)):
                failed()
            else:
                later(header)

        def header() -> None:
            block = Header(True, world.shape.chunk // SECTOR)
            sidecar = Sidecar(world.uuid, store, name, world.origin.size, 1)
            data = (block.to_bytes() + sidecar.to_bytes(block.chunk_size)).ljust(world.shape.chunk, b"\0")
            if not self._write(path, 0, data):
                failed()
                return
            world.oracle.formatted(path, store)
            later(take)

        def failed() -> None:
            self.cluster.abandon()
            self._commanded(Refused("the device"))

        def take() -> None:
            self.cluster.take(NewSnapshot(name, store, path, disk.identity, False, 1), taken)

        def taken(error: CsnapError | None) -> None:
            if isinstance(error, Refused):
                later(lambda: undo(error))
            else:
                self._commanded(error)

        def undo(error: CsnapError) -> None:
            if world.oracle.store_on(path) == store:
                block = Header(False, world.shape.chunk // SECTOR).to_bytes() + disk.peek(16, SECTOR - 16)
                self._write(path, 0, block)
            self._commanded(error)

        def later(step: Callable[[], None]) -> None:
            self.call_at(self.now() + world.rng.randrange(100_000, 3_000_000), step)

        try:
            self.cluster.reserve(name, disk.identity, reserved)
        except CsnapError as error:
            self._commanded(error)

    def _write(self, path: str, offset: int, data: bytes) -> bool:
        """The control process formats by itself."""
        if self.host.fenced(self.incarnation):
            return False
        self.world.disks[path].put(offset, data)
        return True

    def delete(self, name: str) -> None:
        self.commanding = f"delete {name}"
        self.world.note(self.host.node, "deletes", snapshot=name)
        try:
            self.cluster.delete(name, self._commanded)
        except CsnapError as error:
            self._commanded(error)

    def _commanded(self, error: CsnapError | None) -> None:
        self.world.note(self.host.node, "command ended", command=self.commanding, error=error)
        self.world.commands[error is None] += 1
        self.commanding = ""
