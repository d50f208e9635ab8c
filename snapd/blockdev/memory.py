"""The in-memory twin of the engine and its devices, under the same contract, for tests and simulation.

Deterministic: operations complete in the order in which they were handed over, or in the order of ``rng``. They
take effect when they complete. A device may be shared by several engines (hosts); what is told to misbehave
(``fail``, ``hold``) is the engine's, i.e. one host's path to the device.

A write is volatile until a flush that was queued after its completion has completed; a write with fua is durable
when it is done. ``power_loss`` keeps, drops or tears (at 512 bytes) each volatile write. ``log`` records what reached
the device, in order of completion:

    ("write", offset, data)    volatile
    ("fua", offset, data)      durable by itself
    ("flush", n, b"")          makes the first n entries of the log durable
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from errno import EBADE, EFAULT, EINVAL, EIO
from typing import Any, NamedTuple

from snapd import counters
from snapd.blockdev.arena import ALIGNMENT
from snapd.blockdev.base import Arena, Done, rows_of
from snapd.clock import Clock
from snapd.units import SECTOR

READ, WRITE, FLUSH = "read", "write", "flush"
MAX_PIECES = 16


class MemoryArena:
    """An arena of ordinary memory, for many hosts in one process."""

    def __init__(self, size: int) -> None:
        self._view = memoryview(bytearray(size))
        self._used = 0

    @property
    def view(self) -> memoryview:
        """All of it, as bytes."""
        return self._view

    def allocate(self, length: int) -> int:
        """Return the offset of ``length`` bytes. Raises MemoryError."""
        where = self._used
        self._used += -(-length // ALIGNMENT) * ALIGNMENT
        if self._used > len(self._view):
            raise MemoryError(f"arena of {len(self._view)} bytes: {length} more do not fit, {where} are taken")
        return where


class MemoryDevice:
    """Bytes that remember which of them would survive a power loss."""

    def __init__(self, size: int, logical_block: int = SECTOR, path: str = "memory", backend: str = "") -> None:
        self.path = path
        self.size = size
        self.logical_block = logical_block
        self.direct = True
        self.read_row, self.write_row, self.flush_row = rows_of(backend)
        self.identity = f"memory:{id(self)}"
        self.data = bytearray(size)
        self.log: list[tuple[str, int, bytes]] = []
        self.closed = False
        self._durable = bytearray(size)
        self._volatile: list[tuple[int, bool, int, bytes]] = []  # place in log, durable, offset, data

    def peek(self, offset: int, length: int) -> bytes:
        """Return what a read would find now."""
        return bytes(self.data[offset : offset + length])

    def poke(self, offset: int, data: bytes) -> None:
        """Put ``data`` there, durably and not through any engine; not in the log."""
        self.data[offset : offset + len(data)] = data
        self._durable[offset : offset + len(data)] = data

    def write(self, offset: int, data: bytes, fua: bool) -> None:
        """A write completes."""
        self.data[offset : offset + len(data)] = data
        self._volatile.append((len(self.log), fua, offset, data))
        self.log.append(("fua" if fua else "write", offset, data))
        self._settle(0)

    def flush(self, covered: int) -> None:
        """A flush completes that was queued when the log had ``covered`` entries."""
        self.log.append((FLUSH, covered, b""))
        self._settle(covered)

    def _settle(self, covered: int) -> None:
        """Bring the oldest writes onto the medium, as far as they are durable. Order is kept: a volatile
        write that is older than a durable one must not come back over it."""
        settled = 0
        for place, durable, offset, data in self._volatile:
            if place >= covered and not durable:
                break
            self._durable[offset : offset + len(data)] = data
            settled += 1
        del self._volatile[:settled]

    def power_loss(self, rng: random.Random) -> None:
        """Lose power: each volatile write is there, or not, or some of its sectors are."""
        for _, durable, offset, data in self._volatile:
            fate = "keep" if durable else rng.choice(("keep", "drop", "tear"))
            for at in range(0, len(data), SECTOR):
                if fate == "keep" or (fate == "tear" and rng.random() < 0.5):
                    self._durable[offset + at : offset + at + SECTOR] = data[at : at + SECTOR]
        self._volatile.clear()
        self.data[:] = self._durable

    def close(self) -> None:
        """Further I/O is a programming error."""
        self.closed = True


class _Operation(NamedTuple):
    kind: str
    device: MemoryDevice
    wheres: tuple[int, ...]
    piece: int
    offset: int
    fua: bool
    covered: int  # of a flush: the length of the log when it was queued
    done: Done
    arg: Any
    error: int = 0
    began: int = 0  # when it was handed over


class _Fault:
    def __init__(self, error: int, offset: int | None, count: int) -> None:
        self.error = error
        self.offset = offset
        self.count = count  # -1: for ever

    def strikes(self, operation: _Operation) -> bool:
        end = operation.offset + operation.piece * len(operation.wheres)
        if not self.count or (self.offset is not None and not operation.offset <= self.offset < end):
            return False
        self.count -= 1
        return True


class MemoryEngine:
    """See the module and ``base.Engine``. ``depth`` operations are handed over at most, half of them writes."""

    def __init__(
        self,
        arena: Arena,
        depth: int = 512,
        gate: Callable[[], bool] = lambda: True,
        rng: random.Random | None = None,
        words: memoryview | None = None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.arena = arena
        self.on_conflict: Callable[[], None] = lambda: None
        self._words = words
        self._clock = clock
        self._half = depth // 2
        self._gate = gate
        self._rng = rng
        self._queued: deque[_Operation] = deque()
        self._queued_writes: deque[_Operation] = deque()
        self._running: list[_Operation] = []
        self._faults: dict[tuple[int, str], list[_Fault]] = {}
        self._held: Callable[[Any, str], bool] = lambda device, kind: False
        self._eventfd = -1
        self._readable = False

    # ---- operations

    def read(self, device: Any, where: int, length: int, offset: int, done: Done, arg: Any) -> None:
        """Queue a read."""
        self._add(_Operation(READ, device, (where,), length, offset, False, 0, done, arg))

    def write(self, device: Any, where: int, length: int, offset: int, done: Done, arg: Any, fua: bool = False) -> None:
        """Queue a write."""
        self._add(_Operation(WRITE, device, (where,), length, offset, fua, 0, done, arg))

    def write_gather(self, device: Any, wheres: Sequence[int], piece: int, offset: int, done: Done, arg: Any) -> None:
        """Queue one write of several pieces."""
        self._add(_Operation(WRITE, device, tuple(wheres), piece, offset, False, 0, done, arg))

    def flush(self, device: Any, done: Done, arg: Any) -> None:
        """Queue a flush."""
        self._add(_Operation(FLUSH, device, (), 0, 0, False, len(device.log), done, arg))

    def _add(self, operation: _Operation) -> None:
        error = self._wrong(operation)
        if error:
            self._running.append(operation._replace(error=error))
            self._signal()
        else:
            (self._queued_writes if operation.kind == WRITE else self._queued).append(operation)

    def _wrong(self, operation: _Operation) -> int:
        """Return the errno of what makes no sense, 0 if it does."""
        kind, device, wheres, piece, offset, *_ = operation
        assert not device.closed, f"{kind} on {device.path}, which is closed"
        if kind == FLUSH:
            return 0
        misaligned = any(value % device.logical_block for value in (offset, piece, *wheres))
        if misaligned or not 0 < len(wheres) <= MAX_PIECES:
            return EINVAL
        if offset < 0 or offset + piece * len(wheres) > device.size:
            return EIO
        if max(wheres) + piece > len(self.arena.view):
            return EFAULT
        return 0

    def kick(self) -> None:
        """Hand over what is queued; writes only if the gate is open now."""
        writes = sum(operation.kind == WRITE for operation in self._running)
        room = self._half - writes
        if self._queued_writes and self._gate():
            for _ in range(min(room, len(self._queued_writes))):
                self._running.append(self._queued_writes.popleft()._replace(began=self._clock()))
                writes += 1
        room = self._half - (len(self._running) - writes)
        for _ in range(min(room, len(self._queued))):
            self._running.append(self._queued.popleft()._replace(began=self._clock()))
        self._signal()

    # ---- completions

    def reap(self) -> int:
        """Complete what has been handed over, in order or in the order of ``rng``."""
        count = 0
        for _ in range(len(self._running)):
            if not self.reap_one():
                break
            count += 1
        return count

    def reap_one(self) -> bool:
        """Complete one operation; False if there is none that may."""
        ready = [index for index, each in enumerate(self._running) if self._ready(each)]
        if not ready:
            self._signal()
            return False
        operation = self._running.pop(self._rng.choice(ready) if self._rng else ready[0])
        self._count(operation)
        error = operation.error or self._fault(operation)
        if not error:
            self._perform(operation)
        self._signal()
        if error == EBADE:
            self.on_conflict()
        operation.done(operation.arg, error)
        return True

    def _count(self, operation: _Operation) -> None:
        """Count what the device was asked for; what was refused before is not."""
        device = operation.device
        row = {READ: device.read_row, WRITE: device.write_row, FLUSH: device.flush_row}[operation.kind]
        if row and self._words is not None and not operation.error:
            counters.note_together(self._words, row, 1, self._clock() - operation.began)

    def _ready(self, operation: _Operation) -> bool:
        return bool(operation.error) or not self._held(operation.device, operation.kind)

    def _perform(self, operation: _Operation) -> None:
        kind, device, wheres, piece, offset, fua, covered, *_ = operation
        view = self.arena.view
        assert not device.closed, f"{kind} on {device.path}, which is closed"
        if kind == FLUSH:
            device.flush(covered)
        elif kind == READ:
            view[wheres[0] : wheres[0] + piece] = device.data[offset : offset + piece]
        else:
            device.write(offset, b"".join(view[where : where + piece] for where in wheres), fua)

    def abort_queued(self, error: int) -> None:
        """Complete with ``error`` what was not handed over."""
        queued = [*self._queued, *self._queued_writes]
        self._queued.clear()
        self._queued_writes.clear()
        for operation in queued:
            operation.done(operation.arg, error)

    @property
    def inflight(self) -> int:
        """Operations whose ``done`` has not been called."""
        return len(self._queued) + len(self._queued_writes) + len(self._running)

    def arguments(self) -> list[Any]:
        """The ``arg`` of each of them."""
        return [operation.arg for operation in (*self._queued, *self._queued_writes, *self._running)]

    def fileno(self) -> int:
        """An eventfd, made when it is first asked for: readable when something can be reaped."""
        if self._eventfd < 0:
            self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._signal()
        return self._eventfd

    def _signal(self) -> None:
        if self._eventfd < 0:
            return
        readable = any(map(self._ready, self._running))
        if readable and not self._readable:
            os.eventfd_write(self._eventfd, 1)
        elif self._readable and not readable:
            os.eventfd_read(self._eventfd)
        self._readable = readable

    def drain(self) -> None:
        """Complete everything but what the gate holds."""
        self.release()
        self.kick()
        while self.reap():
            self.kick()

    def close(self) -> None:
        """End; what was handed over happens, no ``done`` is called."""
        if self._eventfd >= 0:
            os.close(self._eventfd)
            self._eventfd = -1
        for operation in self._running:
            if not operation.error and not self._fault(operation):
                self._perform(operation)
        self._running.clear()

    # ---- misbehaviour

    def fail(self, device: Any, operation: str, error: int = EIO, offset: int | None = None, count: int = -1) -> None:
        """Let the next ``count`` operations (-1: all) named "read", "write" or "flush" that touch ``offset``
        (None: any) fail with ``error``; a failed write changes nothing. A count of 0 ends all such faults."""
        faults = self._faults.setdefault((id(device), operation), [])
        if count:
            faults.append(_Fault(error, offset, count))
        else:
            faults.clear()

    def _fault(self, operation: _Operation) -> int:
        for fault in self._faults.get((id(operation.device), operation.kind), ()):
            if fault.strikes(operation):
                return fault.error
        return 0

    def hold(self, device: Any = None, operation: str | None = None) -> None:
        """Complete nothing on ``device`` (None: any) of kind ``operation`` (None: any) until ``release``."""
        before = self._held
        self._held = lambda which, kind: (device in (None, which) and operation in (None, kind)) or before(which, kind)
        self._signal()

    def release(self) -> None:
        """Let everything complete again."""
        self._held = lambda device, kind: False
        self._signal()
