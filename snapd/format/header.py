"""The header: chunk 0 of a COW device, its first 16 bytes (struct disk_header of dm-snap-persistent.c)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from snapd.errors import FormatError
from snapd.units import is_power_of_two

MAGIC = 0x70416E53
"""``SnAp``, read as a little-endian number."""

VERSION = 1
MAX_CHUNK_SECTORS = 1 << 22
"""2 GiB: what the kernel could still open; anything larger is garbage."""


@dataclass(frozen=True, slots=True)
class Header:
    """valid: False once the snapshot was lost. chunk_size: 512-byte sectors, a power of two."""

    valid: bool
    chunk_size: int

    SIZE: ClassVar[int] = 16
    _STRUCT: ClassVar[struct.Struct] = struct.Struct("<IIII")

    def to_bytes(self) -> bytes:
        return self._STRUCT.pack(MAGIC, int(self.valid), VERSION, self.chunk_size)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Header:
        """Parse the first 16 bytes. Raises FormatError naming the field."""
        if len(data) < cls.SIZE:
            raise FormatError(f"header: {len(data)} bytes, expected {cls.SIZE}")
        magic, valid, version, chunk_size = cls._STRUCT.unpack_from(data)
        if magic != MAGIC:
            raise FormatError(f"header: magic {magic:#010x}, expected {MAGIC:#010x}")
        if version != VERSION:
            raise FormatError(f"header: version {version}, expected {VERSION}")
        if valid not in (0, 1):
            raise FormatError(f"header: valid {valid}, expected 0 or 1")
        if not is_power_of_two(chunk_size) or chunk_size > MAX_CHUNK_SECTORS:
            raise FormatError(f"header: chunk_size {chunk_size} sectors, expected a power of two")
        return cls(bool(valid), chunk_size)
