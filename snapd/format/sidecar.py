"""The sidecar: what ties a COW device to its volume, behind the header in the first 512 bytes of chunk 0.

    offset  size  field
    16      8     magic  b"csnapsc\\x01"
    24      16    volume UUID
    40      16    store UUID
    56      8     origin size, bytes
    64      8     generation of the table that last touched this device
    72      1     length of the snapshot's name, 1..64
    73      64    the name, ASCII, zero padded
    508     4     CRC-32 of bytes 4..508 with the header's valid flag taken as 1

The kernel never reads past byte 16 and rewrites the header only when it creates or invalidates a store, and
then the sidecar is lost: its absence (all zero) is legal. Within 512 bytes it cannot tear away from the header.
The checksum covers the header's version and chunk size; the valid flag is left out, because invalidating must
not make a device unrecognizable.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from uuid import UUID

from snapd.errors import FormatError
from snapd.format.header import Header
from snapd.units import SECTOR

MAGIC = b"csnapsc\x01"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
"""Snapshot names: they become export names, etcd keys and metric labels."""

_FIELDS = struct.Struct("<8s16s16sQQB64s")
_CRC = struct.Struct("<I")
_CRC_AT = SECTOR - _CRC.size


@dataclass(frozen=True, slots=True)
class Sidecar:
    """UUIDs in canonical text; origin_size in bytes."""

    volume_uuid: str
    store_uuid: str
    snapshot: str
    origin_size: int
    generation: int

    def to_bytes(self, chunk_size: int) -> bytes:
        """Return bytes 16..512 of a device with chunks of ``chunk_size`` sectors. Raises FormatError for a bad name."""
        if not NAME.fullmatch(self.snapshot):
            raise FormatError(f"sidecar: snapshot name {self.snapshot!r}, expected {NAME.pattern}")
        name = self.snapshot.encode("ascii")
        fields = _FIELDS.pack(
            MAGIC,
            UUID(self.volume_uuid).bytes,
            UUID(self.store_uuid).bytes,
            self.origin_size,
            self.generation,
            len(name),
            name,
        )
        body = fields.ljust(_CRC_AT - Header.SIZE, b"\0")
        return body + _CRC.pack(_checksum(Header(True, chunk_size).to_bytes() + body))

    @classmethod
    def from_bytes(cls, sector: bytes | memoryview, chunk_size: int) -> Sidecar | None:
        """Parse the first 512 bytes of a device; None if there is no sidecar.

        Raises FormatError naming the field if there is something that is none.
        """
        data = bytes(sector[:SECTOR])
        if len(data) < SECTOR:
            raise FormatError(f"sidecar: {len(data)} bytes, expected {SECTOR}")
        if not any(data[Header.SIZE :]):
            return None
        magic, volume, store, origin_size, generation, length, name = _FIELDS.unpack_from(data, Header.SIZE)
        if magic != MAGIC:
            raise FormatError(f"sidecar: magic {magic!r}, expected {MAGIC!r}")
        found = _CRC.unpack_from(data, _CRC_AT)[0]
        expected = _checksum(Header(True, chunk_size).to_bytes() + data[Header.SIZE : _CRC_AT])
        if found != expected:
            raise FormatError(f"sidecar: checksum {found:#010x}, expected {expected:#010x}")
        text = name[:length].decode("ascii", "replace")
        if not NAME.fullmatch(text) or any(name[length:]):
            raise FormatError(f"sidecar: snapshot name {text!r}, expected {NAME.pattern}")
        return cls(str(UUID(bytes=volume)), str(UUID(bytes=store)), text, origin_size, generation)


def _checksum(data: bytes) -> int:
    return zlib.crc32(data[4:])
