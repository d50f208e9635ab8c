"""What the AIO engine costs: 4 KiB reads at a depth, microseconds of one operation, beside the bare system calls.

    python bench/engine.py [path [depth [operations]]]

``path`` is only read; without one a file of 64 MiB is made in /dev/shm, so that there is next to no disk in
the numbers. "bare" is the least that ctypes allows: the same iocbs submitted and collected again and again,
nothing packed, nothing called.
"""

from __future__ import annotations

import os
import random
import select
import sys
import tempfile
import time
from collections.abc import Callable

from snapd.blockdev import aio
from snapd.blockdev.aio import AioEngine
from snapd.blockdev.arena import Arena
from snapd.blockdev.device import FileDevice, open_device
from snapd.units import KIB, MIB

BLOCK = 4 * KIB
ROUNDS = 5


class Reader:
    """Reads blocks at random, ``depth`` at a time, each started by the completion of another."""

    def __init__(self, engine: AioEngine, device: FileDevice, depth: int, count: int) -> None:
        rng = random.Random(1)
        self._engine = engine
        self._device = device
        self._offsets = [rng.randrange(device.size // BLOCK) * BLOCK for _ in range(count)]
        self._depth = depth
        self._wheres = [engine.arena.allocate(BLOCK) for _ in range(depth)]
        self.reaps = 0

    def run(self) -> None:
        engine, offsets = self._engine, self._offsets
        self._next = iter(offsets)
        for where in self._wheres:
            self._done(where, 0)
        poll = select.poll()
        poll.register(engine.fileno(), select.POLLIN)
        while engine.inflight:
            engine.kick()
            if not engine.reap():
                poll.poll()
                engine.reap()
            self.reaps += 1

    def _done(self, where: int, error: int) -> None:
        assert not error
        offset = next(self._next, -1)
        if offset >= 0:
            self._engine.read(self._device, where, BLOCK, offset, self._done, where)


def bare(engine: AioEngine, device: FileDevice, depth: int, count: int) -> None:
    """Submit and collect the same ``depth`` reads until there were ``count``."""
    for slot in range(depth):
        at = slot * aio.IOCB_BYTES
        call = (0, aio.PREAD, 0, device.fd, engine._base + slot * BLOCK, BLOCK, slot * BLOCK)
        aio.CALL.pack_into(engine._iocbs, at + aio.CALL_AT, *call)
        engine._pointers[slot] = engine._iocbs_at + at
    submit, collect, context = aio._submit_call, aio._getevents_call, engine._context
    for _ in range(count // depth):
        submit(aio.SUBMIT, context, depth, engine._pointers_at)
        left = depth
        while left:
            left -= collect(aio.GETEVENTS, context, left, left, engine._events_at, None)
    os.eventfd_read(engine.fileno())


def best(what: str, run: Callable[[], None], count: int) -> None:
    """Print the best and the median of some rounds: the machine is shared."""
    walls, cpus = [], []
    for _ in range(ROUNDS):
        wall, cpu = time.perf_counter(), time.thread_time()
        run()
        walls.append((time.perf_counter() - wall) / count * 1e6)
        cpus.append((time.thread_time() - cpu) / count * 1e6)
    cpus.sort()
    print(f"{what:8} wall {min(walls):5.2f} us, cpu {cpus[0]:5.2f} us best, {cpus[ROUNDS // 2]:5.2f} us median")


def measure(path: str, depth: int, count: int) -> None:
    device = open_device(path, exclusive=False, read_only=True)
    engine = AioEngine(Arena(16 * MIB))
    print(f"{path}: O_DIRECT {device.direct}, {BLOCK} byte reads, depth {depth}, {count} operations")
    best("bare", lambda: bare(engine, device, depth, count), count)
    reader = Reader(engine, device, depth, count)
    best("engine", reader.run, count)
    print(f"{count * ROUNDS / reader.reaps:.1f} operations a turn")
    engine.close()
    device.close()


def main() -> None:
    depth = int(sys.argv[2]) if len(sys.argv) > 2 else 16
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 50_000
    if len(sys.argv) > 1:
        measure(sys.argv[1], depth, count)
        return
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(bytes(64 * MIB))
        file.flush()
        measure(file.name, depth, count)


if __name__ == "__main__":
    main()
