"""A host: control and worker, the channel between them, who ends with whom, the lock file, systemd.

The channel is in order, each way by itself, and outlives a pause: it is a socket. A new incarnation begins when the
lock file is free: both processes are gone, and the kernel has ended the worker's I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapd.messages import Message
from snapd.units import SECOND
from tests.sim.clock import HostClock
from tests.sim.control import Control
from tests.sim.worker import Worker

if TYPE_CHECKING:
    from tests.sim.world import World

CHANNEL = 40_000
"""A message takes up to this, ns."""

LOCK_AGAIN = SECOND // 10


class Host:
    """``down``: no incarnation, and none wanted until ``boot``; ``lost``: ways of older workers that still land."""

    def __init__(self, world: World, node: str, clock: HostClock) -> None:
        self.world, self.node, self.clock = world, node, clock
        self.boots = self.incarnations = 0
        self.reachable = True
        self.down = self.powered_off = False
        self.control: Control | None = None
        self.worker: Worker | None = None
        self._ways: dict[str, Worker] = {}  # incarnation -> its worker, dead ones whose I/O has not ended too
        self._last = [0, 0]
        self._trying = False
        self._start()

    @property
    def boot_id(self) -> str:
        return f"boot-{self.node}-{self.boots}"

    # ---- the channel

    def to_worker(self, control: Control, message: Message) -> None:
        worker = self.worker
        if control is self.control and worker is not None:
            if self.world.tracing:
                self.world.note(self.node, "tells worker", message=message)
            self.world.scheduler.call_at(self._arrival(0), lambda: worker.receive(message))

    def to_control(self, worker: Worker, message: Message) -> None:
        control = self.control
        if worker is self.worker and control is not None:
            if self.world.tracing:
                self.world.note(self.node, "tells control", message=message)
            self.world.scheduler.call_at(self._arrival(1), lambda: control.receive(message))

    def _arrival(self, direction: int) -> int:
        now = self.world.scheduler.now()
        self._last[direction] = max(self._last[direction], now + self.world.disk_rng.randrange(CHANNEL))
        return self._last[direction]

    def deadline_moved(self, control: Control, deadline: int) -> None:
        if control is self.control and self.worker is not None:
            self.worker.deadline_moved(deadline)

    # ---- life

    def _start(self) -> None:
        self.incarnations += 1
        incarnation = f"{self.node}-{self.incarnations}"
        self.world.note(self.node, "starts", incarnation=incarnation, boot=self.boots)
        self.worker = self._ways[incarnation] = Worker(self, incarnation)
        self.control = Control(self, incarnation)
        self.control.start()

    def _lock_is_free(self) -> bool:
        for incarnation in [each for each, worker in self._ways.items() if self._is_gone(each, worker)]:
            del self._ways[incarnation]
        control = self.control
        return not self._ways and (control is None or not control.alive)

    def _is_gone(self, incarnation: str, worker: Worker) -> bool:
        control = self.control
        alive = control is not None and control.alive and control.incarnation == incarnation
        return not worker.alive and not worker.way.handed and not alive

    def restart(self, delay: int = SECOND // 10) -> None:
        """systemd: after a while, again and again until the lock file is free."""
        if not self._trying:
            self._trying = True
            self.world.scheduler.call_later(delay, self._try)

    def _try(self) -> None:
        self._trying = False
        if self.down or self.powered_off or self.up:
            return
        if self._lock_is_free():
            self._start()
        else:
            self.restart(LOCK_AGAIN)

    @property
    def up(self) -> bool:
        """Both processes are there."""
        control, worker = self.control, self.worker
        return control is not None and control.alive and worker is not None and worker.alive

    def workers(self) -> list[Worker]:
        """Every worker that may still do I/O."""
        return list(self._ways.values())

    def fenced(self, incarnation: str) -> bool:
        worker = self._ways.get(incarnation)
        return worker is None or worker.way.fenced

    # ---- death

    def worker_ended(self, worker: Worker) -> None:
        control = self.control
        if worker is self.worker and control is not None and control.alive:
            # behind whatever it still sent
            self.world.scheduler.call_at(self._arrival(1), lambda: control.run(control.worker_ended))
        self.restart()

    def control_ended(self, control: Control) -> None:
        worker = self.worker
        if control is self.control and worker is not None and worker.alive:
            self.world.scheduler.call_at(self._arrival(0), worker.orphaned)
        self.world.oracle.left(control)
        self.restart()

    def kill_worker(self) -> None:
        if self.worker is not None:
            self.worker.die(-9)

    def kill_control(self) -> None:
        if self.control is not None:
            self.control.die()

    def lose_power(self) -> None:
        """Everything ends; what had not reached the array is lost."""
        self.powered_off = True
        self.world.note(self.node, "power lost")
        for worker in self._ways.values():
            worker.way.lose_power()
        self.kill_worker()
        self.kill_control()
        self.boots += 1

    def boot(self) -> None:
        """Power is there, and the daemon is wanted."""
        self.powered_off = self.down = False
        self.restart()

    def pause(self, control: bool, worker: bool) -> None:
        self.world.note(self.node, "SIGSTOP", control=control, worker=worker)
        if control and self.control is not None:
            self.control.pause()
        if worker and self.worker is not None:
            self.worker.pause()

    def resume(self, worker_first: bool = False) -> None:
        """SIGCONT."""
        self.world.note(self.node, "SIGCONT")
        parts = [self.control, self.worker]
        for part in parts[::-1] if worker_first else parts:
            if part is not None and part.frozen and part.alive:
                part.resume()

    def set_reachable(self, reachable: bool) -> None:
        self.reachable = reachable
        if self.control is not None:
            self.control.client.reachable = reachable
