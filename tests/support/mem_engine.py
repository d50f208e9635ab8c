"""A disk engine in memory for tests that choose the order in which operations complete."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from errno import EBADE, EINVAL, EIO
from typing import Any

from snapd.blockdev.base import Arena, Done


class MemoryDevice:
    """Bytes; several engines may share one."""

    def __init__(self, size: int, logical_block: int = 512) -> None:
        self.path = self.identity = "memory"
        self.size = size
        self.logical_block = logical_block
        self.direct = True
        self.read_row = self.write_row = self.flush_row = 0  # nothing is counted
        self.data = bytearray(size)
        self.closed = False
        self.fail: Callable[[str, int], int] = lambda kind, offset: 0
        self.log: list[tuple[str, int, bytes]] | None = None

    def open(self) -> MemoryDevice:
        """Return another handle on the same bytes, with a life of its own."""
        handle = copy.copy(self)
        handle.closed = False
        handle.fail = lambda kind, offset: self.fail(kind, offset)
        return handle

    def peek(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def poke(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def close(self) -> None:
        self.closed = True


class MemoryEngine:
    """Operations take effect when they complete, one at a time, in the order given or in the seed's."""

    def __init__(self, arena: Arena, gate: Callable[[], bool] = lambda: True, rng: random.Random | None = None) -> None:
        self.arena = arena
        self._gate = gate
        self._rng = rng
        self._queued: list[tuple[Any, ...]] = []
        self._running: list[tuple[Any, ...]] = []
        self.writes = 0
        self.on_conflict: Callable[[], None] = lambda: None

    def read(self, device: Any, where: int, length: int, offset: int, done: Done, arg: Any) -> None:
        self._queued.append(("read", device, (where,), length, offset, done, arg))

    def write(self, device: Any, where: int, length: int, offset: int, done: Done, arg: Any, fua: bool = False) -> None:
        self._queued.append(("write", device, (where,), length, offset, done, arg))

    def write_gather(self, device: Any, wheres: Sequence[int], piece: int, offset: int, done: Done, arg: Any) -> None:
        self._queued.append(("write", device, tuple(wheres), piece, offset, done, arg))

    def flush(self, device: Any, done: Done, arg: Any) -> None:
        self._queued.append(("flush", device, (), 0, 0, done, arg))

    def kick(self) -> None:
        held: list[tuple[Any, ...]] = []
        open_ = self._gate()
        for operation in self._queued:
            (self._running if open_ or operation[0] != "write" else held).append(operation)
        self._queued = held

    def reap_one(self) -> bool:
        """Complete one operation that was handed over; False if there is none."""
        if not self._running:
            return False
        index = self._rng.randrange(len(self._running)) if self._rng else 0
        kind, device, wheres, length, offset, done, arg = self._running.pop(index)
        assert not device.closed, "I/O on a closed device"
        error = device.fail(kind, offset)
        block = device.logical_block
        if kind != "flush" and (offset % block or length % block or any(where % block for where in wheres)):
            error = EINVAL
        elif offset + length * len(wheres) > device.size:
            error = EIO
        if not error:
            for index, where in enumerate(wheres):
                begin = offset + index * length
                if kind == "read":
                    self.arena.view[where : where + length] = device.data[begin : begin + length]
                else:
                    self.writes += 1
                    device.data[begin : begin + length] = self.arena.view[where : where + length]
                    if device.log is not None:
                        device.log.append(("write", begin, bytes(self.arena.view[where : where + length])))
            if kind == "flush" and device.log is not None:
                device.log.append(("flush", 0, b""))
        if error == EBADE:
            self.on_conflict()
        done(arg, error)
        return True

    def reap(self) -> int:
        count = 0
        while self.reap_one():
            count += 1
        return count

    def abort_queued(self, error: int) -> None:
        queued, self._queued = self._queued, []
        for operation in queued:
            operation[5](operation[6], error)

    @property
    def inflight(self) -> int:
        return len(self._queued) + len(self._running)

    def arguments(self) -> list[Any]:
        return [operation[6] for operation in (*self._queued, *self._running)]

    def fileno(self) -> int:
        raise OSError("nothing to wait for: memory")


class MemoryArena:
    """An arena of ordinary memory."""

    def __init__(self, size: int) -> None:
        self.view = memoryview(bytearray(size))
        self._used = 0

    def allocate(self, length: int) -> int:
        where = self._used
        self._used += -(-length // 4096) * 4096
        assert self._used <= len(self.view)
        return where
