"""What an exception store is: the operations of ``struct dm_exception_store_type``, asynchronous.

Source: the kernel's dm-exception-store.h of 2009 and the patch that wrapped it. Names are the kernel's:
construct and destroy, resume (any number of times, each picks up only the delta), presuspend and
postsuspend, prepare and commit an exception, lookup with ``can_block``, modify, fraction_full, status.

Nothing here waits. What takes I/O reports through a callback with ``None`` or the error; what needs a
lock or a re-read first raises WouldBlock and calls ``wake`` of the configuration when asking again helps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from snapd.blockdev.base import Device, Engine
from snapd.errors import CsnapError

Finished = Callable[[CsnapError | None], None]


class Action(Enum):
    """What ``modify`` can do to a store as a whole."""

    INVALIDATE = "invalidate"  # valid=0 in the header, with FUA: the snapshot is lost, the origin goes on
    DELETE = "delete"  # the same on the device; the store is then not used again


class StatusKind(Enum):
    INFO = "info"  # the kernel's status line: "allocated/total metadata" in sectors, or Invalid, Overflow
    TABLE = "table"  # the kernel's table words: "<P|N> <chunk sectors>" and this project's "cluster_uuid:<uuid>"


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Everything a store is constructed from.

    device: the COW device; None for a store in memory.
    chunk_sectors: chunk size in 512-byte sectors; the header's own wins, as in the kernel.
    origin_chunks: chunks of the origin; an exception beyond is corrupt.
    image, zeros: arena offsets of one chunk each: this store's own, and one of zeros that nobody writes.
    wake: called when a lookup, prepare or re-read that raised WouldBlock may be tried again.
    options: ``key:value`` words that the type itself understands; ``cluster_uuid:`` for the clusterized ones.
    ports: what a clusterized store needs of its surroundings (see clusterized.Ports).
    """

    engine: Engine
    device: Device | None
    chunk_sectors: int
    origin_chunks: int
    image: int = 0
    zeros: int = 0
    options: tuple[str, ...] = ()
    wake: Callable[[], None] = lambda: None
    ports: Any = None
    words: memoryview | None = None  # the counters page


class ExceptionStore(Protocol):
    """One snapshot's exceptions. ``old`` and ``new`` are chunk numbers; ``new`` 0 means "none"."""

    def resume(self, done: Finished) -> None:
        """(Re-)read the metadata, picking up what is new."""

    def presuspend(self) -> None:
        """Start no new batch; what runs is finished."""

    def postsuspend(self) -> None:
        """Nothing runs any more."""

    def prepare(self, old: int) -> int:
        """Take a free COW chunk for ``old``. Raises StoreFull, WouldBlock, StoreInvalid."""

    def commit(self, old: int, new: int, callback: Callable[[bool], None]) -> None:
        """Make the exception durable, then visible, then call back; False: it is neither."""

    def lookup(self, old: int, can_block: bool = False) -> int:
        """Return the new chunk or 0. Raises WouldBlock if only a lock or a re-read can tell."""

    def modify(self, action: Action, done: Finished) -> None:
        """Change the store as a whole."""

    def fraction_full(self) -> tuple[int, int]:
        """Return (allocated, total) in sectors."""

    def status(self, kind: StatusKind) -> str:
        """Return the words of ``dmsetup status`` or ``dmsetup table`` that come from the store."""

    def destroy(self) -> None:
        """Free everything the constructor took, the device included. Nothing may be in flight."""


class StoreType(Protocol):
    """How a store is made, and what a wrapper may rely on. Both are declared, and checked at registration."""

    @property
    def name(self) -> str: ...

    @property
    def rereadable(self) -> bool:
        """resume may be called any number of times and picks up what others appended."""

    @property
    def shared(self) -> bool:
        """Changing one store of this type changes another."""

    def __call__(self, config: StoreConfig) -> ExceptionStore: ...
