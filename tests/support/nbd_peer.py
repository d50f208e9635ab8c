"""The pure halves of the NBD server (negotiation, transmission) with a peer that speaks bytes: no socket."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from snapd import counters
from snapd.blockdev.arena import Arena, SlotPool
from snapd.nbd import wire
from snapd.nbd.handshake import Handshake, Opened
from snapd.nbd.transmission import Desk, Transmission
from snapd.units import KIB, MIB
from snapd.volume.request import Request
from tests.support.ram_volume import RamExport, RamVolume

FIXED, NO_ZEROES = wire.FLAG_FIXED_NEWSTYLE, wire.FLAG_NO_ZEROES
SIZE = MIB


def exports() -> list[RamExport]:
    return [
        RamExport("origin", SIZE, description="the LUN"),
        RamExport("snapshot/s1", SIZE, read_only=True, description="snapshot s1, active"),
        RamExport("snapshot/4k", SIZE, minimum_block=4096, description="snapshot 4k, active"),
    ]


# ---- negotiation


def option(kind: int, body: bytes = b"") -> bytes:
    return wire.OPTION.pack(wire.OPTION_MAGIC, kind, len(body)) + body


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(data)) + data


def info(name: str, *wanted: int) -> bytes:
    """The body of INFO or GO."""
    return string(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def contexts(name: str, *queries: str) -> bytes:
    """The body of LIST_META_CONTEXT or SET_META_CONTEXT."""
    return string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))


@dataclass(frozen=True)
class OptionReply:
    option: int
    kind: int
    body: bytes


def option_replies(data: bytes) -> list[OptionReply]:
    """Cut what the server answered into replies; raises if anything is left over."""
    found = []
    while data:
        magic, which, kind, length = wire.OPTION_REPLY.unpack_from(data)
        assert magic == wire.REPLY_MAGIC
        end = wire.OPTION_REPLY.size + length
        assert len(data) >= end
        found.append(OptionReply(which, kind, data[wire.OPTION_REPLY.size : end]))
        data = data[end:]
    return found


def negotiation(flags: int = FIXED | NO_ZEROES, *, listed: Sequence[RamExport] | None = None) -> Handshake:
    """A negotiation whose client has sent its flags."""
    chosen = exports() if listed is None else listed
    handshake = Handshake(lambda: chosen)
    assert handshake.receive(wire.CLIENT_FLAGS.pack(flags)) == b""
    return handshake


# ---- transmission


def request(kind: int, offset: int, length: int, cookie: int = 0, flags: int = 0, magic: int = 0x25609513) -> bytes:
    return wire.REQUEST.pack(magic, flags, kind, struct.pack(">Q", cookie), offset, length)


def write(offset: int, data: bytes, cookie: int = 0, flags: int = 0) -> bytes:
    return request(wire.CMD_WRITE, offset, len(data), cookie, flags) + data


@dataclass(frozen=True)
class Answer:
    """kind: 0 for a simple reply, else the chunk's type."""

    cookie: int
    error: int = 0
    data: bytes = b""
    kind: int = 0


class Peer:
    """One client's transmission over a RAM volume; ``say`` feeds bytes and returns the answers."""

    def __init__(
        self,
        export: str = "origin",
        structured: bool = True,
        allocation: int = 1,
        small: int = 8,
        large: int = 4,
        large_size: int = MIB,
    ) -> None:
        arena = Arena(SlotPool.bytes_needed(small, 64 * KIB, large, large_size))
        self.slots = SlotPool(arena, small, 64 * KIB, large, large_size)
        self.out_of_pool = 0
        self.volume = RamVolume(arena, exports())
        self.words = memoryview(bytearray(counters.PAGE_BYTES)).cast("Q")
        self.now = 1000
        self.requests: list[Request] = []
        self.desk = Desk(arena.view, self, self._submit, self.words, lambda: self.now)
        chosen = next(each for each in self.volume.list if each.name == export)
        self.structured = structured
        self.talk = Transmission(Opened(chosen, structured, allocation), self.desk)
        self.rest = b""

    def take(self, length: int) -> Sequence[tuple[int, int]] | None:
        segments = self.slots.take(length)
        self.out_of_pool += len(segments or ())
        return segments

    def give(self, segments: Sequence[tuple[int, int]]) -> None:
        self.out_of_pool -= len(segments)
        self.slots.give(segments)

    def _submit(self, request: Request) -> None:
        self.requests.append(request)
        self.volume.submit(request)

    def say(self, data: bytes) -> list[Answer]:
        """Receive ``data`` as a connection would, and send all replies."""
        pending = memoryview(self.rest + data)
        position = self.talk.parse(pending, 0, len(pending))
        self.rest = bytes(pending[position:])
        return self.answers()

    def more(self) -> list[Answer]:
        """Parse what was left over once more."""
        return self.say(b"")

    def answers(self) -> list[Answer]:
        out = b"".join(bytes(piece) for piece in self.talk.out)
        self.talk.out = []
        for segments in self.talk.held:
            self.give(segments)
        self.talk.held = []
        self.desk.answered = []
        return self._cut(out)

    def _cut(self, data: bytes) -> list[Answer]:
        found = []
        while data:
            (magic,) = struct.unpack_from(">I", data)
            if magic == wire.SIMPLE_REPLY_MAGIC:
                _, error, cookie = struct.unpack_from(">IIQ", data)
                length = self._length_of(cookie) if not error and not self.structured else 0
                found.append(Answer(cookie, error, data[16 : 16 + length]))
                data = data[16 + length :]
                continue
            assert self.structured and magic == wire.STRUCTURED_REPLY_MAGIC
            _, flags, kind, cookie, length = struct.unpack_from(">IHHQI", data)
            assert flags == wire.REPLY_FLAG_DONE
            body = data[20 : 20 + length]
            assert len(body) == length
            error = struct.unpack_from(">I", body)[0] if kind == wire.REPLY_TYPE_ERROR else 0
            found.append(Answer(cookie, error, b"" if error else body, kind))
            data = data[20 + length :]
        return found

    def _length_of(self, cookie: int) -> int:
        asked = next(each for each in self.requests if each.tag == struct.pack(">Q", cookie))
        return asked.length if asked.operation == 0 else 0
