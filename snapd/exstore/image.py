"""A COW device as it lies there, read at once and without an engine: for check, dump and reading in an emergency.

Nothing is believed and nothing is refused that can still be shown: the entries are taken down as they are,
valid or not, up to the first with ``new`` 0, as the kernel does. What they are worth is check's to say.

A header may claim chunks of 2 GiB on a sparse file, so areas are read in pieces and what is kept of nonsense is
bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from snapd.errors import FormatError
from snapd.format.header import Header
from snapd.format.layout import ENTRY_BYTES, Layout
from snapd.format.sidecar import Sidecar
from snapd.units import MIB, SECTOR

Read = Callable[[int, int], bytes]
"""``read(offset, length)``: exactly those bytes, or DeviceError."""

PIECE = MIB
"""Bytes of an area read at a time: the whole area, for every chunk size that csnap makes."""

KEPT_MOST = PIECE // ENTRY_BYTES
"""Stale entries that are kept; and exceptions, if they are more than the device has chunks."""

_ENTRY = struct.Struct("<QQ")
_ZEROS = bytes(PIECE)


@dataclass(frozen=True, slots=True)
class Image:
    """What one COW device holds.

    sidecar: None if there is none, or what is wrong with it.
    exceptions: (old chunk, new chunk), in the order of the list.
    terminated: False if the last area is full and the next one would lie behind the device's end (trap 1).
    stale: entries behind the list's end in its area that are not zero: (index, old, new), see trap 2; the first
    KEPT_MOST at least, and no more than twice as many.
    """

    header: Header
    sidecar: Sidecar | FormatError | None
    layout: Layout
    exceptions: list[tuple[int, int]]
    terminated: bool
    stale: list[tuple[int, int, int]]

    @classmethod
    def load(cls, read: Read, size: int) -> Image:
        """Read the device of ``size`` bytes. Raises FormatError if header or size make no store at all, or if there are
        more entries than chunks, and very many."""
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
            stale = _read_area(read, layout, area, exceptions)
            if stale is not None:
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


def _read_area(
    read: Read, layout: Layout, area: int, exceptions: list[tuple[int, int]]
) -> list[tuple[int, int, int]] | None:
    """Add the entries of ``area``; return what is stale behind the list's end, None if it does not end here."""
    begin, most = layout.area_chunk(area) * layout.chunk_bytes, max(layout.total_chunks, KEPT_MOST)
    stale: list[tuple[int, int, int]] | None = None
    for at in range(0, layout.chunk_bytes, PIECE):
        data = read(begin + at, min(PIECE, layout.chunk_bytes - at))
        if stale is not None and data == _ZEROS[: len(data)]:
            continue
        entries = list(_ENTRY.iter_unpack(data))
        stop = 0
        if stale is None:
            stop = next((slot for slot, (_, new) in enumerate(entries) if not new), len(entries))
            exceptions += entries[:stop]
            if len(exceptions) > most:
                raise FormatError(f"area {area}: more than {most} entries, expected one a chunk at most")
            if stop == len(entries):
                continue
            stale = []
        first = area * layout.epa + at // ENTRY_BYTES
        stale += [(first + slot, *entries[slot]) for slot in range(stop, len(entries)) if any(entries[slot])]
        if len(stale) >= KEPT_MOST:
            break
    return stale
