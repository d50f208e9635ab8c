"""A volume in memory behind the real NBD server: for clients that need something to talk to.

python -m tests.support.ram_volume SOCKET [--size BYTES] [--block BYTES]
"""

from __future__ import annotations

import argparse
import signal
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from snapd import counters
from snapd.blockdev.arena import Arena, SlotPool
from snapd.clock import Clock, boottime
from snapd.nbd.listener import listen
from snapd.nbd.server import NbdServer
from snapd.units import KIB, MIB, SECOND
from snapd.volume.request import READ, WRITE, ZERO, Export, Request
from snapd.worker.loop import Loop


@dataclass(eq=False)
class RamExport:
    """One export; contents are the volume's."""

    name: str
    size: int
    read_only: bool = False
    minimum_block: int = 512
    preferred_block: int = 16384
    description: str = ""
    identity: str = ""


class RamVolume:
    """A Backend. ``hold`` keeps requests until ``release``; ``fail`` maps an operation to its errno."""

    def __init__(self, arena: Arena, exports: Sequence[RamExport]) -> None:
        self.view = arena.view
        self.list: list[RamExport] = list(exports)
        self.contents = {export.name: bytearray(export.size) for export in exports}
        self.hold = False
        self.changing = False  # the exports
        self.held: deque[Request] = deque()
        self.fail: dict[int, int] = {}
        self.submitted = 0
        self.opened = 0  # how often anybody looked at the exports

    def exports(self) -> Sequence[Export]:
        return list(self.list)

    def settled(self) -> bool:
        return not self.changing

    def submit(self, request: Request) -> None:
        self.submitted += 1
        if self.hold:
            self.held.append(request)
        else:
            self._do(request)

    def release(self, count: int = 1 << 30) -> None:
        """Finish up to ``count`` held requests."""
        while self.held and count:
            count -= 1
            self._do(self.held.popleft())

    def _do(self, request: Request) -> None:
        error = self.fail.get(request.operation, 0)
        offset = request.offset
        data = self.contents[request.export.name]
        if not error and request.operation == ZERO:
            data[offset : offset + request.length] = bytes(request.length)
        elif not error and request.operation in (READ, WRITE):
            for where, length in request.segments:
                if request.operation == READ:
                    self.view[where : where + length] = memoryview(data)[offset : offset + length]
                else:
                    data[offset : offset + length] = self.view[where : where + length]
                offset += length
        request.done(request, error)


class RamServer:
    """Loop, server and volume in one; ``turn`` as the worker does it."""

    def __init__(
        self,
        path: str,
        exports: Sequence[RamExport],
        clock: Clock = boottime,
        small: int = 256,
        large: int = 34,
        opened: bool = True,
    ) -> None:
        arena = Arena(SlotPool.bytes_needed(small, 64 * KIB, large, MIB))
        self.slots = CountedSlots(arena, small, 64 * KIB, large, MIB)
        self.volume = RamVolume(arena, exports)
        self.words = memoryview(bytearray(counters.PAGE_BYTES)).cast("Q")
        self.loop = Loop()
        self.clock = clock
        self.server = NbdServer(listen(path, 0o600), self.loop, self.volume, self.slots, arena, self.words, clock)
        self.refused = self.server.open() if opened else []
        self._again = False
        self._stopping = False

    def stop(self) -> None:
        """A planned stop."""
        self._stopping = True
        self.server.stop()

    @property
    def done(self) -> bool:
        """Whether it has stopped."""
        return self._stopping and self.server.idle

    def turn(self, timeout: float = 0.05) -> None:
        """One turn of the loop."""
        self.loop.turn(0 if self._again else timeout)
        self._again = self.server.end_turn(self.clock())


class CountedSlots(SlotPool):
    """A pool that knows how many slots are out."""

    out = 0

    def take(self, length: int) -> list[tuple[int, int]] | None:
        segments = super().take(length)
        self.out += len(segments or ())
        return segments

    def give(self, segments: Iterable[tuple[int, int]]) -> None:
        segments = list(segments)
        self.out -= len(segments)
        super().give(segments)


def main() -> None:
    """Serve until SIGTERM, then stop as planned."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("--size", type=int, default=64 * MIB)
    parser.add_argument("--block", type=int, default=512)
    arguments = parser.parse_args()
    size, block = arguments.size, arguments.block
    server = RamServer(
        arguments.socket,
        [
            RamExport("origin", size, minimum_block=block, description="the LUN"),
            RamExport("snapshot/s1", size, read_only=True, minimum_block=block, description="a snapshot"),
            RamExport("snapshot/w", size, minimum_block=block, description="a writable snapshot"),
        ],
    )
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    next_tick = 0
    while not server.done:
        server.turn()
        if boottime() > next_tick:
            next_tick = boottime() + SECOND // 4
            server.server.tick(boottime())


if __name__ == "__main__":
    main()
