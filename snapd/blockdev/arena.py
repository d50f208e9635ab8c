"""The memory of the worker's I/O: one aligned mapping, and the slots that client requests use in it.

O_DIRECT wants aligned memory, and a process in the path of block I/O must not ask the kernel for memory while
it is under pressure: so everything is mapped once, cut once and never returned.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable

from snapd.units import KIB, MIB

ALIGNMENT = 4096
"""The largest logical block there is, and the page: right for every device."""


def aligned(length: int) -> int:
    """Return ``length`` rounded up to ALIGNMENT."""
    return -(-length // ALIGNMENT) * ALIGNMENT


class Arena:
    """One private anonymous mapping of ``size`` bytes. Pages cost nothing before they are touched.

    Not inherited by a child: a fork would make pages that a device is writing into copy-on-write.
    """

    def __init__(self, size: int) -> None:
        self.size = aligned(size)
        self._memory = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_DONTFORK)
        self._view = memoryview(self._memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._used = 0

    @property
    def view(self) -> memoryview:
        """All of it, as bytes."""
        return self._view

    def allocate(self, length: int) -> int:
        """Return the offset of ``length`` bytes, aligned to ALIGNMENT, for the life of the arena.

        Raises MemoryError when the arena is too small.
        """
        where, used = self._used, self._used + aligned(length)
        if used > self.size:
            raise MemoryError(f"arena of {self.size} bytes: {length} more do not fit, {where} are taken")
        self._used = used
        return where


class SlotPool:
    """Buffers for client requests, of two sizes; a request that finds none waits until another gives its own back.

    The slot that was given back last is taken first: it is still in the processor's cache, and what a quiet
    worker never needed is never touched.
    """

    def __init__(
        self, arena: Arena, small: int = 256, small_size: int = 64 * KIB, large: int = 32, large_size: int = MIB
    ) -> None:
        first_small = arena.allocate(small * small_size)
        self._first_large = arena.allocate(large * large_size)
        self._small_size = small_size
        self._large_size = large_size
        self._small = [first_small + index * small_size for index in reversed(range(small))]
        self._large = [self._first_large + index * large_size for index in reversed(range(large))]
        self.largest = large * large_size
        """Bytes of the largest request that can ever be given its segments."""

    @staticmethod
    def bytes_needed(small: int, small_size: int, large: int, large_size: int) -> int:
        """Return how much of an arena such a pool takes."""
        return aligned(small * small_size) + aligned(large * large_size)

    def take(self, length: int) -> list[tuple[int, int]] | None:
        """Return (where, length) segments of ``length`` bytes together; None: not now, nothing was taken.

        Raises ValueError for what the pool could never give.
        """
        large = self._large
        if length <= self._small_size:
            if self._small:
                return [(self._small.pop(), length)]
            return [(large.pop(), length)] if large else None
        size = self._large_size
        count = -(-length // size)
        if count <= len(large):
            segments = [(large.pop(), size) for _ in range(count)]
            segments[-1] = (segments[-1][0], length - (count - 1) * size)
            return segments
        if length > self.largest:
            raise ValueError(f"request of {length} bytes: the pool has {self.largest}")
        return None

    def give(self, segments: Iterable[tuple[int, int]]) -> None:
        """Take back what ``take`` returned."""
        for where, _ in segments:
            (self._small if where < self._first_large else self._large).append(where)
