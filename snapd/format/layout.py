"""Where things lie on a COW device: pure arithmetic, in chunks unless a name says otherwise.

    chunk 0              header
    chunk 1 + a*stride   metadata area a: epa entries; stride = epa + 1
    every other chunk    copied-out data

Source: drivers/md/dm-snap-persistent.c (area_location, skip_metadata, persistent_prepare_exception).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from snapd.errors import FormatError
from snapd.units import SECTOR, is_power_of_two

ENTRY_BYTES = 16
HEADER_CHUNKS = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a device of ``device_bytes`` with chunks of ``chunk_sectors`` 512-byte sectors.

    Raises FormatError if the chunk size is no power of two, or the device has no room for one exception.
    """

    chunk_sectors: int
    device_bytes: int
    chunk_bytes: int = field(init=False)
    epa: int = field(init=False)
    """Exceptions per area."""
    stride: int = field(init=False)
    total_chunks: int = field(init=False)
    """Whole chunks of the device."""
    capacity: int = field(init=False)
    """Data chunks that may be used, so that the list always has room for its terminator (trap 1):
    the largest n with 1 + n + (n + epa) // epa <= total_chunks."""

    def __post_init__(self) -> None:
        if not is_power_of_two(self.chunk_sectors):
            raise FormatError(f"chunk_size: {self.chunk_sectors} sectors, expected a power of two")
        chunk_bytes = self.chunk_sectors * SECTOR
        epa = chunk_bytes // ENTRY_BYTES
        total = self.device_bytes // chunk_bytes
        full, rest = divmod(max(total - 1, 0), epa + 1)
        put = object.__setattr__
        put(self, "chunk_bytes", chunk_bytes)
        put(self, "epa", epa)
        put(self, "stride", epa + 1)
        put(self, "total_chunks", total)
        put(self, "capacity", full * epa + rest - 1 if rest else full * epa - 1)
        if self.capacity < 1:
            raise FormatError(f"device: {self.device_bytes} bytes, too small for one chunk of {chunk_bytes}")

    @property
    def first_data_chunk(self) -> int:
        """2: behind the header and area 0."""
        return self.data_chunk_from(0)

    def area_chunk(self, area: int) -> int:
        """Return the chunk of metadata area ``area``."""
        return HEADER_CHUNKS + area * self.stride

    def is_metadata(self, chunk: int) -> bool:
        """Whether ``chunk`` is an area (the header, chunk 0, is not one)."""
        return chunk % self.stride == HEADER_CHUNKS

    def data_chunk_from(self, chunk: int) -> int:
        """Return the first data chunk at or behind ``chunk``."""
        chunk = max(chunk, HEADER_CHUNKS)
        return chunk + 1 if self.is_metadata(chunk) else chunk

    def next_data_chunk(self, newest: int) -> int:
        """Return the kernel's ``next_free`` behind ``newest``: one more, then skip a metadata chunk (CVE-2013-4299)."""
        return self.data_chunk_from(newest + 1)

    def ordinal(self, chunk: int) -> int:
        """Return how many data chunks lie before ``chunk``."""
        chunk = self.data_chunk_from(chunk)
        return chunk - HEADER_CHUNKS - (chunk - HEADER_CHUNKS + self.stride - 1) // self.stride

    def run_of_data_chunks(self, chunk: int) -> int:
        """Return how many chunks from the data chunk ``chunk`` on are data, in one run and within the capacity."""
        to_area = self.stride - (chunk - HEADER_CHUNKS) % self.stride
        return max(0, min(to_area, self.capacity - self.ordinal(chunk)))
