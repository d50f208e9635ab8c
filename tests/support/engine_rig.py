"""One engine with one disk, whatever is behind them, and a record of what completed."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from snapd import counters
from snapd.blockdev.aio import AioEngine
from snapd.blockdev.arena import Arena
from snapd.blockdev.device import FileDevice, open_device
from snapd.blockdev.memory import MemoryDevice, MemoryEngine
from snapd.units import MIB
from tests.support.disks import SIZE, Disk, disks

DEADLINE = 20.0  # seconds that a test waits for a completion before it fails


class Rig:
    """``done`` is the callback to pass; ``results`` holds (arg, error) in order of completion."""

    def __init__(self, engine: AioEngine | MemoryEngine, device: FileDevice | MemoryDevice, words: memoryview) -> None:
        self.engine = engine
        self.device = device
        self.words = words
        self.arena = engine.arena
        self.results: list[tuple[Any, int]] = []
        self.open = True
        self.asked = 0  # times the gate was asked

    def gate(self) -> bool:
        self.asked += 1
        return self.open

    def done(self, arg: Any, error: int) -> None:
        self.results.append((arg, error))

    def put(self, data: bytes) -> int:
        """Return where in the arena ``data`` is now."""
        where = self.arena.allocate(len(data))
        self.arena.view[where : where + len(data)] = data
        return where

    def get(self, where: int, length: int) -> bytes:
        return bytes(self.arena.view[where : where + length])

    def until(self, reached: Callable[[], bool]) -> None:
        """Kick, wait for the descriptor and reap until ``reached()``."""
        poll = select.poll()
        poll.register(self.engine.fileno(), select.POLLIN)
        end = time.monotonic() + DEADLINE
        self.engine.kick()
        while not reached():
            assert time.monotonic() < end, f"not reached; completed so far: {self.results}"
            poll.poll(1000)
            self.engine.reap()
            self.engine.kick()

    def settle(self) -> list[tuple[Any, int]]:
        """Wait until nothing is in flight; return what completed since the last time."""
        self.until(lambda: self.engine.inflight == 0)
        results, self.results = self.results, []
        return results

    def readable(self, milliseconds: int = 0) -> bool:
        poll = select.poll()
        poll.register(self.engine.fileno(), select.POLLIN)
        return bool(poll.poll(milliseconds))

    def write_now(self, offset: int, data: bytes) -> None:
        self.engine.write(self.device, self.put(data), len(data), offset, self.done, "write")
        assert self.settle() == [("write", 0)]

    def read_now(self, offset: int, length: int) -> bytes:
        where = self.arena.allocate(length)
        self.engine.read(self.device, where, length, offset, self.done, "read")
        assert self.settle() == [("read", 0)]
        return self.get(where, length)


def page() -> memoryview:
    """Return a counters page of its own."""
    return memoryview(bytearray(counters.PAGE_BYTES)).cast("Q")


Make = Callable[[ExitStack, int], Rig]
"""Makes a rig with an engine of the given depth; what must be undone goes on the stack."""


def on_disk(disk: Disk, logical_block: int | None = None) -> Make:
    """AIO on a real disk."""

    def make(stack: ExitStack, depth: int) -> Rig:
        device = open_device(stack.enter_context(disk()), exclusive=True, logical_block=logical_block, backend="cow")
        stack.callback(device.close)
        words = page()
        engine = AioEngine(Arena(8 * MIB), depth, gate=lambda: rig.gate(), words=words)
        stack.callback(engine.close)
        rig = Rig(engine, device, words)
        return rig

    return make


def in_memory(logical_block: int) -> Make:
    """The in-memory twin."""

    def make(stack: ExitStack, depth: int) -> Rig:
        words = page()
        engine = MemoryEngine(Arena(8 * MIB), depth, gate=lambda: rig.gate(), words=words)
        stack.callback(engine.close)
        rig = Rig(engine, MemoryDevice(SIZE, logical_block, backend="cow"), words)
        return rig

    return make


def makers() -> dict[str, Make]:
    """Return every engine under the contract that this machine can run, by name."""
    found = {f"memory-{block}": in_memory(block) for block in (512, 4096)}
    found |= {f"aio-{name}": on_disk(disk) for name, disk in disks().items()}
    found["aio-file-4096"] = on_disk(disks()["file"], 4096)
    return found


@contextmanager
def rig(make: Make, depth: int = 64) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield make(stack, depth)
