"""What a stopping server leaves to the next one, as bytes: which clients, in which state. Pure.

    magic, version, length of the rest, CRC-32 of the rest
    the rest: length of the facts, the facts (JSON), then each connection's ``unread`` and ``unsent``

Big-endian. The next process may be another version, of another volume, or get what somebody else has written: it is
hostile until all of it has been parsed. A change of what any field means, or of what clients are told in the
negotiation (but for descriptions, on which no request depends), is a new VERSION: an unknown one is refused, and the
clients connect again.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import astuple, dataclass
from struct import Struct
from typing import Any

from snapd.errors import FormatError
from snapd.nbd import wire
from snapd.units import MIB
from snapd.volume.request import Export

MAGIC = b"csnap-HO"
VERSION = 1
HEAD = Struct(">8sIQI")
LENGTH = Struct(">I")

MAX_BYTES = 512 * MIB
"""Of all of it: the worker's buffers, private replies and what was received hold a fraction of that."""

MAX_CONNECTIONS = 1024


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """By what an export is known again: what its client was told, and the store behind the name."""

    name: str
    identity: str
    size: int
    read_only: bool
    minimum_block: int

    @classmethod
    def of(cls, export: Export) -> ExportFacts:
        return cls(export.name, export.identity, export.size, export.read_only, export.minimum_block)


@dataclass(frozen=True, slots=True)
class ClientState:
    """One negotiated connection at a request boundary: nothing of it is in flight.

    socket: the inode of its socket, by which it is found among the descriptors.
    skip: bytes of a refused payload that are still to come and to be thrown away.
    unread: bytes received and not acted on. Requests that had been read but not begun are there again, first.
    unsent: bytes of replies that the client has not taken yet.
    """

    socket: int
    export: ExportFacts
    structured: bool
    allocation: int
    skip: int
    unread: bytes
    unsent: bytes


@dataclass(frozen=True, slots=True)
class Handover:
    """volume: its uuid. boot: of this host. listener: its socket's inode; file: device and inode of its path."""

    volume: str
    boot: str
    listener: int
    file: tuple[int, int]
    clients: tuple[ClientState, ...]

    def to_bytes(self) -> bytes:
        rows = [
            [each.socket, *astuple(each.export), each.structured, each.allocation, each.skip,
             len(each.unread), len(each.unsent)]
            for each in self.clients
        ]  # fmt: skip
        facts = json.dumps([self.volume, self.boot, self.listener, *self.file, rows]).encode()
        blobs = [piece for each in self.clients for piece in (each.unread, each.unsent)]
        rest = b"".join([LENGTH.pack(len(facts)), facts, *blobs])
        return HEAD.pack(MAGIC, VERSION, len(rest), zlib.crc32(rest)) + rest

    @classmethod
    def from_bytes(cls, data: bytes) -> Handover:
        """Raises FormatError for anything that ``to_bytes`` does not make."""
        if len(data) < HEAD.size + LENGTH.size:
            raise FormatError(f"hand-over: {len(data)} bytes, expected a head of {HEAD.size + LENGTH.size}")
        magic, version, length, checksum = HEAD.unpack_from(data)
        if magic != MAGIC:
            raise FormatError(f"hand-over: magic {magic!r}, expected {MAGIC!r}")
        if version != VERSION:
            raise FormatError(f"hand-over: version {version}, expected {VERSION}")
        rest = memoryview(data)[HEAD.size :]
        if len(rest) != length:
            raise FormatError(f"hand-over: {len(rest)} bytes, expected {length}")
        if zlib.crc32(rest) != checksum:
            raise FormatError("hand-over: the checksum is wrong")
        (size,) = LENGTH.unpack_from(rest)
        try:
            if size > length - LENGTH.size:
                raise ValueError(f"facts of {size} bytes in {length}")
            facts = json.loads(bytes(rest[LENGTH.size : LENGTH.size + size]))
            return _handover(_List(facts), rest[LENGTH.size + size :])
        except (ValueError, RecursionError) as error:
            raise FormatError(f"hand-over: {error}") from error


class _List:
    """A JSON list, taken from front to back; ValueError for what is not as expected."""

    def __init__(self, values: Any) -> None:
        if not isinstance(values, list):
            raise ValueError(f"{str(values)[:40]!r}: expected a list")
        self._values = values[::-1]

    def take(self, kind: type[Any]) -> Any:
        if not self._values:
            raise ValueError("a field is missing")
        value = self._values.pop()
        if type(value) is not kind:
            raise ValueError(f"{str(value)[:40]!r}: expected {kind.__name__}")
        return value

    def number(self, most: int) -> int:
        value: int = self.take(int)
        if not 0 <= value <= most:
            raise ValueError(f"{value}: expected 0 to {most}")
        return value

    def text(self) -> str:
        value: str = self.take(str)
        if len(value.encode()) > wire.MAX_STRING:
            raise ValueError(f"a string of more than {wire.MAX_STRING} bytes")
        return value

    def end(self) -> None:
        if self._values:
            raise ValueError(f"{len(self._values)} fields too many")


_MOST = (1 << 63) - 1


def _handover(facts: _List, blobs: memoryview) -> Handover:
    volume, boot, listener = facts.text(), facts.text(), facts.number(_MOST)
    file = (facts.number(_MOST), facts.number(_MOST))
    rows: list[Any] = facts.take(list)
    facts.end()
    if len(rows) > MAX_CONNECTIONS:
        raise ValueError(f"{len(rows)} connections, expected at most {MAX_CONNECTIONS}")
    clients = []
    for row in rows:
        client, blobs = _client(_List(row), blobs)
        clients.append(client)
    if len(blobs):
        raise ValueError(f"{len(blobs)} bytes belong to no connection")
    sockets = [listener, *(client.socket for client in clients)]
    if len(set(sockets)) != len(sockets):
        raise ValueError("a socket is named twice")
    return Handover(volume, boot, listener, file, tuple(clients))


def _client(row: _List, blobs: memoryview) -> tuple[ClientState, memoryview]:
    socket = row.number(_MOST)
    export = ExportFacts(row.text(), row.text(), row.number(_MOST), row.take(bool), row.number(_MOST))
    structured, allocation, skip = row.take(bool), row.number(1), row.number(wire.MAX_REQUEST)
    unread, unsent = row.number(len(blobs)), row.number(len(blobs))
    row.end()
    end = unread + unsent
    if end > len(blobs):
        raise ValueError(f"{unread} and {unsent} bytes of a connection, {len(blobs)} are left")
    state = ClientState(socket, export, structured, allocation, skip, bytes(blobs[:unread]), bytes(blobs[unread:end]))
    return state, blobs[end:]
