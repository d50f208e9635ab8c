"""The client's side of NBD's negotiation; the kernel's client takes the socket over behind it.

    server: greeting
    client: flags, GO export + description, block size
    server: INFO export, INFO block size, INFO description, ACK

Structured replies are not asked for: the kernel's client does not know them.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass

from snapd.clock import boottime
from snapd.errors import CsnapError, Refused
from snapd.nbd import wire
from snapd.units import SECOND

LIMIT = 10 * SECOND
"""For everything. A server that joins its cluster lets clients wait; who is let go asks again."""

REPLY_MOST = 64 * 1024
REPLIES_MOST = 100

Wait = Callable[[int, int, int], bool]
"""``wait(until, fd, events)``: False, if that was not to be."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What the server says of the export. ``block``: the smallest request, which is the origin's logical block."""

    size: int
    flags: int
    block: int
    description: str

    @property
    def read_only(self) -> bool:
        return bool(self.flags & wire.READ_ONLY)


def reach(path: str, export: str, wait: Wait) -> tuple[socket.socket, Offer]:
    """Connect and negotiate; return a blocking socket in the transmission phase. Raises CsnapError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with contextlib.ExitStack() as stack:
        stack.callback(sock.close)
        sock.setblocking(False)
        try:
            sock.connect(path)
            offer = _negotiate(_Stream(sock, path, boottime() + LIMIT, wait), export)
        except OSError as error:  # a full backlog is EAGAIN
            raise CsnapError(f"{path}: {error.strerror}") from error
        sock.setblocking(True)
        stack.pop_all()
    return sock, offer


class _Stream:
    def __init__(self, sock: socket.socket, path: str, until: int, wait: Wait) -> None:
        self._sock, self._until, self._wait = sock, until, wait
        self.path = path

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            if not self._wait(self._until, self._sock.fileno(), select.POLLIN):
                raise CsnapError(f"{self.path}: no answer within {LIMIT // SECOND} s: does the daemon still join?")
            piece = self._sock.recv(count - len(data))
            if not piece:
                raise CsnapError(f"{self.path}: disconnected during the negotiation")
            data += piece
        return data

    def send(self, data: bytes) -> None:
        """Some dozen bytes: a socket buffer takes them at once."""
        self._sock.sendall(data)


def _negotiate(stream: _Stream, export: str) -> Offer:
    magic, options, flags = wire.GREETING.unpack(stream.receive(wire.GREETING.size))
    if (magic, options) != (wire.INIT_MAGIC, wire.OPTION_MAGIC) or not flags & wire.FLAG_FIXED_NEWSTYLE:
        raise Refused(f"{stream.path}: not an NBD server of the fixed newstyle")
    name = export.encode()
    wanted = (wire.INFO_DESCRIPTION, wire.INFO_BLOCK_SIZE)
    body = wire.U32.pack(len(name)) + name + b"".join(map(wire.U16.pack, (len(wanted), *wanted)))
    stream.send(wire.CLIENT_FLAGS.pack(wire.FLAG_FIXED_NEWSTYLE | flags & wire.FLAG_NO_ZEROES))
    stream.send(wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_GO, len(body)) + body)
    size, found, block, description = -1, 0, 1, ""
    for _ in range(REPLIES_MOST):
        magic, option, kind, length = wire.OPTION_REPLY.unpack(stream.receive(wire.OPTION_REPLY.size))
        if magic != wire.REPLY_MAGIC or option != wire.OPT_GO or length > REPLY_MOST:
            raise Refused(f"{stream.path}: a reply that is none: magic {magic:#x}, option {option}, {length} bytes")
        data = stream.receive(length)
        if kind & wire.REP_ERROR:
            raise CsnapError(f"{stream.path}: export {export!r}: {data.decode(errors='replace') or hex(kind)}")
        if kind == wire.REP_ACK:
            break
        info = int.from_bytes(data[:2])
        if kind == wire.REP_INFO and info == wire.INFO_EXPORT and length == wire.INFO_EXPORT_REPLY.size:
            _, size, found = wire.INFO_EXPORT_REPLY.unpack(data)
        if kind == wire.REP_INFO and info == wire.INFO_BLOCK_SIZE and length == wire.INFO_BLOCK_SIZE_REPLY.size:
            _, block, _, _ = wire.INFO_BLOCK_SIZE_REPLY.unpack(data)
        if kind == wire.REP_INFO and info == wire.INFO_DESCRIPTION:
            description = data[2:].decode(errors="replace")
    if size < 0:
        raise Refused(f"{stream.path}: export {export!r}: the server does not say its size")
    return Offer(size, found, max(block, 512), description)
