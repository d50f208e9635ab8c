"""A small blocking NBD client: enough to read and write from a script (fixed newstyle, simple replies).

Source: the NBD protocol, doc/proto.md of the nbd project.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

GO, INFO_EXPORT, REPLY_ACK, REPLY_INFO = 7, 0, 1, 3
OPTION_MAGIC, REPLY_MAGIC = 0x49484156454F5054, 0x3E889045565A9
REQUEST_MAGIC, SIMPLE_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
PIECE = 1 << 20


class NbdError(OSError):
    """The server answered a request with an error."""


class NbdClient:
    """One connection to one export. NbdError: a request failed; ConnectionError: the server is gone."""

    def __init__(self, path: str | os.PathLike[str], export: str, timeout: float = 30.0) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(timeout)
        self._cookie = 0
        try:
            self._sock.connect(os.fspath(path))
            self.size = self._negotiate(export)
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> NbdClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _receive(self, count: int) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            got = self._sock.recv_into(view)
            if not got:
                raise ConnectionError("the server closed the connection")
            view = view[got:]
        return bytes(data)

    def _negotiate(self, export: str) -> int:
        greeting, magic, _ = struct.unpack(">8sQH", self._receive(18))
        if greeting != b"NBDMAGIC" or magic != OPTION_MAGIC:
            raise ConnectionError("not an NBD server of the newstyle")
        name = export.encode()
        option = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._sock.sendall(struct.pack(">I", 3) + struct.pack(">QII", OPTION_MAGIC, GO, len(option)) + option)
        size = -1
        while True:
            _, _, reply, length = struct.unpack(">QIII", self._receive(20))
            data = self._receive(length)
            if reply == REPLY_ACK:
                return size
            if reply == REPLY_INFO and data[:2] == struct.pack(">H", INFO_EXPORT):
                (size,) = struct.unpack_from(">Q", data, 2)
            elif reply & 1 << 31:
                raise NbdError(errno.ENOENT, f"export {export!r}: {data.decode(errors='replace')}")

    def _request(self, kind: int, offset: int, length: int, payload: bytes = b"") -> bytes:
        self._cookie += 1
        self._sock.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, kind, self._cookie, offset, length) + payload)
        magic, error, cookie = struct.unpack(">IIQ", self._receive(16))
        if magic != SIMPLE_MAGIC or cookie != self._cookie:
            raise ConnectionError("the server's reply makes no sense")
        if error:
            raise NbdError(error, f"{os.strerror(error)} at {offset}, {length} bytes")
        return self._receive(length) if kind == READ else b""

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes at ``offset``."""
        return self._request(READ, offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Write ``data`` at ``offset``."""
        self._request(WRITE, offset, len(data), data)

    def flush(self) -> None:
        """Return when everything answered before is on stable storage."""
        self._request(FLUSH, 0, 0)

    def read_all(self) -> bytes:
        """Return the whole export."""
        return b"".join(self.read(at, min(PIECE, self.size - at)) for at in range(0, self.size, PIECE))

    def close(self) -> None:
        """Say good-bye and close."""
        with contextlib.suppress(OSError):
            self._sock.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
        self._sock.close()
