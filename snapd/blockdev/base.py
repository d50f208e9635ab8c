"""What the rest of csnap knows of disks: a device, an arena of aligned memory, an engine.

Memory is named by its offset in the one arena of the process (``where``), never by an object: an
engine adds the arena's address, the in-memory twin slices the arena's view. A completion is a plain
call ``done(arg, error)`` with ``error`` 0 or a positive errno: no object is made per operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from snapd import counters

Done = Callable[[Any, int], None]
"""``done(arg, error)``: error is 0, or a positive errno. A short transfer is EIO."""


def rows_of(backend: str) -> tuple[int, int, int]:
    """Return a device's read_row, write_row and flush_row. backend: what it is, ``origin`` or ``cow``; "": neither."""
    if not backend:
        return 0, 0, 0
    read, write, flush = (counters.BACKEND[backend, operation] for operation in counters.BACKEND_OPERATIONS)
    return read, write, flush


class Arena(Protocol):
    """One run of page-aligned memory; every buffer of the worker is a part of it."""

    @property
    def view(self) -> memoryview:
        """All of it, as bytes."""

    def allocate(self, length: int) -> int:
        """Return the offset of ``length`` bytes, aligned to 4096, for the life of the process."""


class Device(Protocol):
    """An open block device or regular file."""

    path: str
    size: int  # bytes, a multiple of logical_block
    logical_block: int  # 512 or 4096: the unit of offsets, lengths and memory
    direct: bool  # False: the file system refused O_DIRECT, the page cache is used
    identity: str  # names the hardware or the file, whatever path it was opened by
    read_row: int  # of the counters page, where such operations are counted; 0: nowhere
    write_row: int
    flush_row: int

    def close(self) -> None:
        """Close it. Nothing may be in flight."""


class Engine(Protocol):
    """Asynchronous I/O in one thread: operations are queued, ``kick``ed to the kernel in batches, ``reap``ed."""

    on_conflict: Callable[[], None]
    """Called before the ``done`` of an operation that a device refused with EBADE: this host's reservation is gone."""

    @property
    def arena(self) -> Arena: ...

    def read(self, device: Any, where: int, length: int, offset: int, done: Done, arg: Any) -> None:
        """Queue a read of ``length`` bytes at ``offset`` into the arena at ``where``."""

    def write(self, device: Any, where: int, length: int, offset: int, done: Done, arg: Any, fua: bool = False) -> None:
        """Queue a write; with ``fua`` it is on stable storage when done is called."""

    def write_gather(self, device: Any, wheres: Sequence[int], piece: int, offset: int, done: Done, arg: Any) -> None:
        """Queue one write of ``len(wheres) * piece`` bytes gathered from pieces of ``piece`` bytes each (<= 16)."""

    def flush(self, device: Any, done: Done, arg: Any) -> None:
        """Queue a flush: every write that was *done* before this call is on stable storage when it is done."""

    def kick(self) -> None:
        """Hand what is queued to the kernel. While the gate is shut, writes stay queued (all else goes)."""

    def reap(self) -> int:
        """Call ``done`` for everything that has completed; return how many. Never waits."""

    def abort_queued(self, error: int) -> None:
        """Complete every operation that was queued but not handed over with ``error`` (fencing)."""

    @property
    def inflight(self) -> int:
        """Operations queued or handed over whose ``done`` has not been called."""

    def arguments(self) -> list[Any]:
        """The ``arg`` of every such operation, in no order."""

    def fileno(self) -> int:
        """A descriptor that is readable when something can be reaped."""
