"""One snapshot of the stack: its COW device, its store, and the copies on their way into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapd.blockdev.base import Device
from snapd.exstore.clusterized import Clusterized
from snapd.messages import SnapshotSpec
from snapd.volume.part import Part

if TYPE_CHECKING:
    from snapd.volume.copyout import Copy


class OriginExport:
    """The origin, as clients see it."""

    name = "origin"
    identity = ""  # there is one in a volume
    read_only = False

    def __init__(self, size: int, logical_block: int, chunk_bytes: int) -> None:
        self.description = ""  # which volume's; whoever serves it knows
        self.size = size
        self.minimum_block = logical_block
        self.preferred_block = chunk_bytes


class Snapshot:
    """A level of the stack; also the export ``snapshot/<name>``.

    store is None while the COW device is not open (an invalid snapshot needs none): reads give EIO.
    """

    def __init__(self, spec: SnapshotSpec, size: int, minimum_block: int, chunk_bytes: int) -> None:
        self.spec = spec
        self.name = f"snapshot/{spec.name}"
        self.identity = spec.store
        self.size = size
        self.read_only = not spec.writable
        self.minimum_block = minimum_block
        self.preferred_block = chunk_bytes
        self.device: Device | None = None
        self.store: Clusterized | None = None
        self.image = -1  # arena offset of the store's area buffer
        self.copies: dict[int, Copy] = {}
        self.lost = ""  # why it must be invalidated; set until the table says so
        self.slot = -1  # in the counters page
        self.tail_granted = 0  # when, last; boottime ns

    @property
    def description(self) -> str:
        return f"snapshot {self.spec.name}, {self.spec.state}"


class Closing:
    """Chunks whose exception is being committed: reads through the stack wait until it is published.

    Another host may act on an entry as soon as it can be read, so no read of this host may still be
    looking at the origin then (design: a copy-out, step 4).
    """

    def __init__(self) -> None:
        self._waiting: dict[int, list[Part]] = {}
        self._count: dict[int, int] = {}

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._count

    def begin(self, chunk: int) -> None:
        self._count[chunk] = self._count.get(chunk, 0) + 1

    def wait(self, chunk: int, part: Part) -> None:
        self._waiting.setdefault(chunk, []).append(part)

    def take_waiting(self) -> list[Part]:
        """Remove and return every waiting part (shutdown, fencing)."""
        parts = self.parts()
        self._waiting.clear()
        return parts

    def parts(self) -> list[Part]:
        """Every waiting part."""
        return [part for queue in self._waiting.values() for part in queue]

    def end(self, chunk: int) -> list[Part]:
        """Return the parts to restart, once no commit of the chunk is left."""
        left = self._count[chunk] - 1
        if left:
            self._count[chunk] = left
            return []
        del self._count[chunk]
        return self._waiting.pop(chunk, [])
