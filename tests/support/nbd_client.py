"""A small blocking NBD client that says exactly what a test wants said, also what no real client would say."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from snapd.nbd import wire

TIMEOUT = 20.0


@dataclass(frozen=True)
class Reply:
    """One answer: the request's number, the NBD error, the data of a READ."""

    cookie: int
    error: int
    data: bytes


class NbdClient:
    """Connects and opens ``export`` with OPT_GO, structured replies on."""

    def __init__(self, path: Path | str, export: str = "origin") -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self._next = 0
        self._lengths: dict[int, int] = {}
        self.early: dict[int, Reply] = {}
        try:
            self.sock.connect(os.fspath(path))
            self._negotiate(export)
        except BaseException:
            self.sock.close()
            raise

    def _negotiate(self, export: str) -> None:
        assert self.receive(wire.GREETING.size) == wire.GREETING.pack(wire.INIT_MAGIC, wire.OPTION_MAGIC, 3)
        self.sock.sendall(wire.CLIENT_FLAGS.pack(3))
        name = export.encode()
        for option, body in (
            (wire.OPT_STRUCTURED_REPLY, b""),
            (wire.OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0)),
        ):
            self.sock.sendall(wire.OPTION.pack(wire.OPTION_MAGIC, option, len(body)) + body)
            kind = 0
            while kind != wire.REP_ACK:
                _, _, kind, length = wire.OPTION_REPLY.unpack(self.receive(wire.OPTION_REPLY.size))
                body = self.receive(length)
                assert kind < wire.REP_ERROR, f"option {option}: {kind:#x} {body!r}"
                if kind == wire.REP_INFO and body[:2] == b"\0\0":
                    _, self.size, self.flags = wire.INFO_EXPORT_REPLY.unpack(body)

    def receive(self, count: int) -> bytes:
        """Return exactly ``count`` bytes. Raises EOFError where the server has closed the connection."""
        data = bytearray()
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            if not piece:
                raise EOFError(f"closed after {len(data)} of {count} bytes")
            data += piece
        return bytes(data)

    # ---- requests

    def send(self, kind: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> int:
        """Send a request; return its number."""
        cookie = self._next
        self._next += 1
        self.sock.sendall(
            wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, kind, struct.pack(">Q", cookie), offset, length or len(data))
            + data
        )
        return cookie

    def reply(self) -> Reply:
        """Return the next answer."""
        (magic,) = struct.unpack(">I", self.receive(4))
        if magic == wire.SIMPLE_REPLY_MAGIC:
            error, cookie = struct.unpack(">IQ", self.receive(12))
            return Reply(cookie, error, b"")
        assert magic == wire.STRUCTURED_REPLY_MAGIC, hex(magic)
        flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
        body = self.receive(length)
        assert flags == wire.REPLY_FLAG_DONE
        if kind == wire.REPLY_TYPE_ERROR:
            return Reply(cookie, struct.unpack_from(">I", body)[0], b"")
        return Reply(cookie, 0, body[8:] if kind == wire.REPLY_TYPE_OFFSET_DATA else body)

    def answer(self, cookie: int) -> Reply:
        """Return the answer to request ``cookie``; answers to others are kept."""
        while cookie not in self.early:
            reply = self.reply()
            self.early[reply.cookie] = reply
        return self.early.pop(cookie)

    def read(self, offset: int, length: int) -> bytes:
        reply = self.answer(self.send(wire.CMD_READ, offset, length))
        assert not reply.error, reply.error
        return reply.data

    def write(self, offset: int, data: bytes, flags: int = 0) -> int:
        return self.answer(self.send(wire.CMD_WRITE, offset, data=data, flags=flags)).error

    def do(self, kind: int, offset: int = 0, length: int = 0, flags: int = 0) -> int:
        """Do a request that has no data; return its error."""
        return self.answer(self.send(kind, offset, length, flags=flags)).error

    def silent(self, seconds: float = 0.1) -> bool:
        """Whether nothing is answered for a while: the only way to see that something waits."""
        self.sock.settimeout(seconds)
        try:
            return not self.sock.recv(1, socket.MSG_PEEK) and False
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(TIMEOUT)

    def gone(self) -> bool:
        """Wait for the server to close the connection; False if it says anything before."""
        try:
            return not self.sock.recv(1)
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> NbdClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
