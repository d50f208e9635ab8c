"""TLS for a server whose clients share one loop: nothing here ever waits for a client.

A ``Stream`` looks like the socket that it wraps. The handshake happens inside ``recv``, as far as the client has come;
a client that says nothing, or garbage, has the same time and room as one that sends half a request (clients.py).

Certificates are renewed while daemons run: the files are looked at whenever somebody connects, and read anew when they
have changed. Files that make no sense then are not taken: the old ones stay, and are tried again with the next client.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path

from snapd.errors import Refused

RECORD = 16 * 1024
"""Bytes of a TLS record at most: what one ``recv`` of SSLSocket returns."""


class Stream:
    """The server's side of one connection: recv, send, fileno and close of a socket that does not block."""

    def __init__(self, context: ssl.SSLContext, sock: socket.socket) -> None:
        self._sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._shaken = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def recv(self, size: int) -> bytes:
        """Return what is there, b"" at the end. BlockingIOError: nothing yet; OSError: this client is no good.

        Several records may be decrypted at once, and epoll does not know of those: all are taken.
        """
        data = bytearray()
        try:
            if not self._shaken:
                self._sock.do_handshake()
                self._shaken = True
            while len(data) + RECORD <= size:
                piece = self._sock.recv(RECORD)
                if not piece:
                    break
                data += piece
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not data:
                raise BlockingIOError from None
        except ValueError as error:  # the socket was closed under it
            raise OSError(str(error)) from None
        return bytes(data)

    def send(self, data: bytes | bytearray) -> int:
        """Return how much was taken. A call that was taken in part must be repeated with the same data first."""
        try:
            return self._sock.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def close(self) -> None:
        if self._shaken:
            with contextlib.suppress(OSError, ValueError):
                self._sock.unwrap()  # says goodbye and does not wait for the answer
        self._sock.close()


class Certificates:
    """The server's context, as the files are now. Raises Refused in the beginning: files that make no sense."""

    def __init__(self, cert: str, key: str, client_ca: str = "") -> None:
        self._paths = [path for path in (cert, key, client_ca) if path]
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._seen = self._look()
        self._context = self._load()

    def wrap(self, sock: socket.socket) -> Stream:
        seen = self._look()
        if seen != self._seen:
            with contextlib.suppress(Refused):
                self._context = self._load()
                self._seen = seen
        return Stream(self._context, sock)

    def _look(self) -> list[tuple[int, int]]:
        """Something that differs when a file was replaced or rewritten."""
        found = []
        for path in self._paths:
            try:
                status = Path(path).stat()
            except OSError:
                found.append((0, 0))
            else:
                found.append((status.st_mtime_ns, status.st_ino))
        return found

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self._cert, self._key, password=lambda: "")
        except (OSError, ValueError) as error:
            raise Refused(f"[metrics] tls_cert {self._cert}, tls_key {self._key}: {_reason(error)}") from error
        if self._client_ca:
            try:
                context.load_verify_locations(self._client_ca)
            except (OSError, ValueError) as error:
                raise Refused(f"[metrics] tls_client_ca {self._client_ca}: {_reason(error)}") from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
