"""A COW device as it lies there, read at once and without an engine: for check, dump and reading in an emergency.

Nothing is believed and nothing is refused that can still be shown: the entries are taken down as they are,
valid or not, up to the first with ``new`` 0, as the kernel does. What they are worth is check's to say.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from snapd.errors import FormatError
from snapd.format.header import Header
from snapd.format.layout import Layout
from snapd.format.sidecar import Sidecar
from snapd.units import SECTOR

Read = Callable[[int, int], bytes]
"""``read(offset, length)``: exactly those bytes, or DeviceError."""

_ENTRY = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Image:
    """What one COW device holds.

    sidecar: None if there is none, or what is wrong with it.
    exceptions: (old chunk, new chunk), in the order of the list.
    terminated: False if the last area is full and the next one would lie behind the device's end (trap 1).
    stale: entries behind the list's end in its area that are not zero: (index, old, new), see trap 2.
    """

    header: Header
    sidecar: Sidecar | FormatError | None
    layout: Layout
    exceptions: list[tuple[int, int]]
    terminated: bool
    stale: list[tuple[int, int, int]]

    @classmethod
    def load(cls, read: Read, size: int) -> Image:
        """Read the device of ``size`` bytes. Raises FormatError if header or size make no store at all."""
        if size < SECTOR:
            raise FormatError(f"device: {size} bytes, expected at least a header of {SECTOR}")
        sector = read(0, SECTOR)
        header = Header.from_bytes(sector)
        layout = Layout(header.chunk_size, size)
        sidecar: Sidecar | FormatError | None
        try:
            sidecar = Sidecar.from_bytes(sector, header.chunk_size)
        except FormatError as error:
            sidecar = error
        exceptions: list[tuple[int, int]] = []
        area = 0
        while layout.area_chunk(area) < layout.total_chunks:
            entries = list(_ENTRY.iter_unpack(read(layout.area_chunk(area) * layout.chunk_bytes, layout.chunk_bytes)))
            stop = next((slot for slot, (_, new) in enumerate(entries) if not new), layout.epa)
            exceptions += entries[:stop]
            if stop < layout.epa:
                first = area * layout.epa
                stale = [(first + slot, *entries[slot]) for slot in range(stop, layout.epa) if any(entries[slot])]
                return cls(header, sidecar, layout, exceptions, True, stale)
            area += 1
        return cls(header, sidecar, layout, exceptions, False, [])

    @property
    def next_free(self) -> int:
        """The chunk that the kernel would hand out next."""
        newest = max((new for _, new in self.exceptions), default=1)
        return self.layout.next_data_chunk(newest)

    @property
    def status(self) -> str:
        """The kernel's words in ``dmsetup status``, of a store that was opened just now."""
        if not self.header.valid:
            return "Invalid"
        sectors, areas = self.layout.chunk_sectors, len(self.exceptions) // self.layout.epa + 1
        return f"{self.next_free * sectors}/{self.layout.device_bytes // SECTOR} {(1 + areas) * sectors}"

    def to_json(self) -> dict[str, object]:
        """The value that ``csnap dump --json`` prints."""
        return {
            "valid": self.header.valid,
            "version": 1,  # Header refuses every other
            "chunk_size": self.header.chunk_size,
            "next_free": self.next_free,
            "status": self.status,
            "exceptions": [list(exception) for exception in self.exceptions],
        }
