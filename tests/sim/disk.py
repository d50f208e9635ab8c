"""The array and one process's way to it.

An operation that was handed over *lands* after a while: it takes effect and, in the same moment, can be reaped. A
process that dies does not take back what it handed over. Fencing (persistent reservations) and the loss of a host's
power are the way's: what has not landed by then does not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from errno import EBADE, EFAULT, EINVAL, EIO
from typing import Any

from snapd.blockdev.base import Arena, Done
from snapd.blockdev.memory import FLUSH, MAX_PIECES, READ, WRITE, MemoryDevice
from snapd.units import SECTOR
from tests.support.virtual_time import Scheduler

QUICK, SLOW = 60_000, 250_000
"""An operation takes between these, ns, while nothing is wrong."""


class Disk(MemoryDevice):
    """A device of the array. ``written(offset, length)`` judges every write that takes effect."""

    def __init__(self, size: int, path: str) -> None:
        super().__init__(size, SECTOR, path)
        self.identity = f"serial:{path}"
        self.written: Callable[[int, int], None] = lambda offset, length: None

    def write(self, offset: int, data: bytes, fua: bool) -> None:
        super().write(offset, data, fua)
        self.written(offset, len(data))

    def tear(self, offset: int, data: bytes, rng: random.Random) -> None:
        """A write that is not completed: some of its sectors are there, and volatile."""
        for at in range(0, len(data), SECTOR):
            if rng.random() < 0.5:
                self.write(offset + at, data[at : at + SECTOR], False)

    def put(self, offset: int, data: bytes) -> None:
        """Write and flush, at once."""
        self.write(offset, data, False)
        self.flush(len(self.log))


class Handle:
    """A disk as one process has opened it."""

    direct = True

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.path, self.size, self.logical_block = disk.path, disk.size, disk.logical_block
        self.identity = disk.identity
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Trouble:
    """What is wrong with the array now. ``strikes(way, operation)`` returns an errno; ``slowness`` adds ns."""

    def __init__(self) -> None:
        self.strikes: Callable[[Way, Operation], int] = lambda way, operation: 0
        self.slowness: Callable[[Way, Operation], int] = lambda way, operation: 0
        self.sent: Callable[[Way, Operation], None] = lambda way, operation: None


class Operation:
    """One operation. ``held``: its process was stopped on the very way to the kernel."""

    __slots__ = (
        "arg",
        "covered",
        "device",
        "done",
        "error",
        "fua",
        "held",
        "kind",
        "offset",
        "piece",
        "sent",
        "wheres",
    )

    def __init__(
        self,
        kind: str,
        device: Handle,
        wheres: tuple[int, ...],
        piece: int,
        offset: int,
        fua: bool,
        done: Done,
        arg: Any,
    ) -> None:
        self.kind, self.device, self.wheres, self.piece = kind, device, wheres, piece
        self.offset, self.fua, self.done, self.arg = offset, fua, done, arg
        self.covered = len(device.disk.log) if kind == FLUSH else 0
        self.error = 0
        self.held = False
        self.sent = 0


class Way:
    """An engine (``snapd.blockdev.base.Engine``), and the path of one incarnation to the array."""

    def __init__(
        self,
        arena: Arena,
        scheduler: Scheduler,
        rng: random.Random,
        gate: Callable[[], bool],
        landed: Callable[[], None],
        trouble: Trouble | None = None,
        name: str = "",
    ) -> None:
        self.arena = arena
        self.name = name
        self.fenced = False
        self._scheduler, self._rng, self._gate, self._landed = scheduler, rng, gate, landed
        self._trouble = trouble or Trouble()
        self._queued: list[Operation] = []
        self.handed: dict[Operation, None] = {}  # to the kernel, not landed; in order
        self._ready: list[Operation] = []

    # ---- the engine

    def read(self, device: Any, where: int, length: int, offset: int, done: Done, arg: Any) -> None:
        self._add(Operation(READ, device, (where,), length, offset, False, done, arg))

    def write(self, device: Any, where: int, length: int, offset: int, done: Done, arg: Any, fua: bool = False) -> None:
        self._add(Operation(WRITE, device, (where,), length, offset, fua, done, arg))

    def write_gather(self, device: Any, wheres: Sequence[int], piece: int, offset: int, done: Done, arg: Any) -> None:
        self._add(Operation(WRITE, device, tuple(wheres), piece, offset, False, done, arg))

    def flush(self, device: Any, done: Done, arg: Any) -> None:
        self._add(Operation(FLUSH, device, (), 0, 0, False, done, arg))

    def _add(self, operation: Operation) -> None:
        device = operation.device
        assert not device.closed, f"{operation.kind} on {device.path}, which is closed"
        operation.error = self._wrong(operation)
        if operation.error:
            self._ready.append(operation)
            self._landed()
        else:
            self._queued.append(operation)

    def _wrong(self, operation: Operation) -> int:
        if operation.kind == FLUSH:
            return 0
        device, wheres, piece, offset = operation.device, operation.wheres, operation.piece, operation.offset
        block = device.logical_block
        if not 0 < len(wheres) <= MAX_PIECES or offset % block or piece % block or any(w % block for w in wheres):
            return EINVAL
        if offset < 0 or offset + piece * len(wheres) > device.size:
            return EIO
        return EFAULT if max(wheres) + piece > len(self.arena.view) else 0

    def kick(self) -> None:
        if not self._queued:
            return
        open_ = any(operation.kind == WRITE for operation in self._queued) and self._gate()
        held = []
        for operation in self._queued:
            if open_ or operation.kind != WRITE:
                self.handed[operation] = None
                operation.sent = self._scheduler.now()
                self._travel(operation)
            else:
                held.append(operation)
        self._queued = held

    def reap(self) -> int:
        ready, self._ready = self._ready, []
        for operation in ready:
            operation.done(operation.arg, operation.error)
        return len(ready)

    def abort_queued(self, error: int) -> None:
        queued, self._queued = self._queued, []
        for operation in queued:
            operation.done(operation.arg, error)

    @property
    def inflight(self) -> int:
        return len(self._queued) + len(self.handed) + len(self._ready)

    def fileno(self) -> int:
        raise OSError("nothing to wait for: simulated")

    # ---- the way

    def _travel(self, operation: Operation) -> None:
        delay = self._rng.randrange(QUICK, SLOW) + self._trouble.slowness(self, operation)
        self._scheduler.call_later(delay, lambda: self._land(operation))
        self._trouble.sent(self, operation)

    def _land(self, operation: Operation) -> None:
        if operation.held or operation not in self.handed:
            return  # lost on the way
        del self.handed[operation]
        kind = operation.kind
        error = EBADE if self.fenced and kind != READ else self._trouble.strikes(self, operation)
        operation.error = error
        if not error:
            self._perform(operation)
        elif kind == WRITE and error != EBADE:
            operation.device.disk.tear(operation.offset, self._data(operation), self._rng)
        self._ready.append(operation)
        self._landed()

    def _perform(self, operation: Operation) -> None:
        device = operation.device
        assert not device.closed, f"{operation.kind} on {device.path}, which is closed"
        if operation.kind == FLUSH:
            device.disk.flush(operation.covered)
        elif operation.kind == READ:
            where, piece, offset = operation.wheres[0], operation.piece, operation.offset
            self.arena.view[where : where + piece] = device.disk.data[offset : offset + piece]
        else:
            device.disk.write(operation.offset, self._data(operation), operation.fua)

    def _data(self, operation: Operation) -> bytes:
        view, piece = self.arena.view, operation.piece
        return b"".join([view[where : where + piece] for where in operation.wheres])

    def lose_power(self) -> None:
        """The host's: what has not landed does not, or not whole."""
        handed, self.handed = list(self.handed), {}
        for operation in handed:
            if operation.kind == WRITE and not operation.held and not self.fenced and self._rng.random() < 0.5:
                operation.device.disk.tear(operation.offset, self._data(operation), self._rng)

    def stop_at(self, since: int) -> None:
        """SIGSTOP between the look at the deadline and the kernel: what was handed over since then was not, yet."""
        for operation in self.handed:
            if operation.sent >= since:
                operation.held = True

    def go_on(self) -> None:
        """SIGCONT: now it is."""
        for operation in [each for each in self.handed if each.held]:
            operation.held = False
            self._travel(operation)

    def die(self) -> None:
        """The process is gone: what the kernel has not got yet it never gets; nothing is reaped."""
        self._queued.clear()
        self._ready.clear()
        for operation in [each for each in self.handed if each.held]:
            del self.handed[operation]
