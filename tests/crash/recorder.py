"""What is done to the disks of a test, on one clock: every write when it is handed over and when it completes, every
flush with what it covers.

A *moment* is the time between two ticks. ``counts[moment]`` is what ``observe`` said at its end: of what the hosts
then knew to be committed, nothing may be lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from snapd.blockdev.memory import FLUSH, READ, WRITE, MemoryArena, MemoryDevice, MemoryEngine, _Operation
from tests.support import worker_rig
from tests.support.worker_rig import Rig

NEVER = 1 << 60


@dataclass(eq=False, slots=True)
class Write:
    """settled: the moment from which on it cannot be lost."""

    device: str
    offset: int
    data: bytes
    fua: bool
    handed: int
    place: int = -1  # in the device's log
    completed: int = NEVER
    settled: int = NEVER


@dataclass(eq=False, slots=True)
class Recorder:
    """See the module."""

    now: int = 0
    writes: list[Write] = field(default_factory=list)
    flushes: int = 0
    counts: list[int] = field(default_factory=list)
    observe: Callable[[], int] = lambda: 0

    def tick(self) -> int:
        """Something reaches the devices: the moment ends, another begins."""
        self.counts.append(self.observe())
        self.now += 1
        return self.now

    def handed(self, device: MemoryDevice, offset: int, data: bytes, fua: bool) -> Write:
        """A write is on its way: from now on it may be there, in part or whole."""
        write = Write(device.path, offset, data, fua, self.tick())
        self.writes.append(write)
        return write

    def completed(self, write: Write, place: int) -> None:
        """It is done; with fua it is durable."""
        write.completed, write.place = self.tick(), place
        if write.fua:
            write.settled = write.completed

    def flushed(self, device: MemoryDevice, covered: int) -> None:
        """The first ``covered`` writes of the device's log are durable."""
        self.flushes += 1
        now = self.tick()
        for write in self.writes:
            if write.device == device.path and 0 <= write.place < covered:
                write.settled = min(write.settled, now)

    def end(self) -> None:
        """Nothing more comes; the last moment ends."""
        self.counts.append(self.observe())

    def of(self, device: str) -> list[Write]:
        """The writes of one device, in the order in which they were handed over."""
        return [write for write in self.writes if write.device == device]


class SharedDevice(MemoryDevice):
    """One medium that hosts open and close as they like."""

    def open(self) -> SharedDevice:
        return self

    def close(self) -> None:
        """Others still use it."""


class RecordingEngine(MemoryEngine):
    """A host's engine. Says also when a buffer changes while a write out of it is on its way."""

    def __init__(self, recorder: Recorder, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._recorder = recorder
        self._writes: dict[int, Write] = {}

    def kick(self) -> None:
        known = {id(operation) for operation in self._running}
        super().kick()
        for operation in self._running:
            if operation.kind == WRITE and not operation.error and id(operation) not in known:
                data = self._data(operation)
                write = self._recorder.handed(operation.device, operation.offset, data, operation.fua)
                self._writes[id(operation)] = write

    def _data(self, operation: _Operation) -> bytes:
        view = self.arena.view
        return b"".join(view[where : where + operation.piece] for where in operation.wheres)

    def _perform(self, operation: _Operation) -> None:
        place = len(operation.device.log)
        if operation.kind == WRITE:
            assert self._data(operation) == self._writes[id(operation)].data, "a buffer changed under a write"
        super()._perform(operation)
        if operation.kind == WRITE:
            self._recorder.completed(self._writes.pop(id(operation)), place)
        elif operation.kind == FLUSH:
            self._recorder.flushed(operation.device, operation.covered)
        else:
            assert operation.kind == READ


def recorded_rig(recorder: Recorder, **options: Any) -> Rig:
    """A rig whose hosts do everything under ``recorder``."""
    before = worker_rig.MemoryDevice, worker_rig.MemoryEngine, worker_rig.Arena
    patched = worker_rig.__dict__
    try:
        patched["MemoryDevice"] = SharedDevice
        patched["MemoryEngine"] = lambda *arguments, **more: RecordingEngine(recorder, *arguments, **more)
        patched["Arena"] = MemoryArena
        return Rig(**options)
    finally:
        patched["MemoryDevice"], patched["MemoryEngine"], patched["Arena"] = before
