"""A bounded server of small requests: one request a connection, one thread, nothing that a client can hold up.

A client has REQUEST_LIMIT to send its request and must take some of the reply every REPLY_LIMIT; it may send
``most`` bytes; CLIENTS_MOST are served at a time, and the oldest that has not finished its request makes room. Used by
the admin socket and by the metrics endpoint, each on a loop of its own thread.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Protocol

from snapd.daemon.loop import Loop, Timer
from snapd.units import MIB, SECOND
from snapd.worker.loop import READABLE, WRITABLE

REQUEST_LIMIT = 5 * SECOND
REPLY_LIMIT = 10 * SECOND
CLIENTS_MOST = 32
GONE = select.EPOLLHUP | select.EPOLLERR
UNSENT_MOST = 64 * MIB
"""Bytes of replies that a client has not taken: beyond, it is dropped. 100,000 locks are some 15 MB."""


class Stream(Protocol):
    """The part of a socket that does not block which is needed here; also TLS over one (tls.py)."""

    def fileno(self) -> int: ...

    def recv(self, size: int, /) -> bytes: ...

    def send(self, data: bytes | bytearray, /) -> int: ...

    def close(self) -> None: ...


class Client:
    """One connection. After ``handle`` was called it belongs to the answerer: ``send``, then ``finish``."""

    def __init__(self, server: Server, sock: Stream) -> None:
        self.sock = sock
        self.open = True
        self.asked = False
        self._server = server
        self._received = bytearray()
        self._unsent = bytearray()
        self._last = False
        self._limit: Timer = server.loop.call_later(REQUEST_LIMIT, self.close)
        server.loop.register(sock.fileno(), READABLE, self._ready)

    def send(self, data: bytes) -> None:
        """Send in order, as the client takes it. Sending to one that has gone does nothing."""
        if not self.open:
            return
        if len(self._unsent) + len(data) > UNSENT_MOST:
            self.close()
            return
        if not self._unsent:
            self._progress()
        self._unsent += data
        self._flush()

    def finish(self) -> None:
        """Close when everything is sent."""
        self._last = True
        if self.open and not self._unsent:
            self.close()

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        self._limit.cancel()
        self._server.loop.unregister(self.sock.fileno())
        self._server.gone(self)
        self.sock.close()

    def _progress(self) -> None:
        self._limit.cancel()
        self._limit = self._server.loop.call_later(REPLY_LIMIT, self.close)

    def _ready(self, events: int) -> None:
        if events & GONE:
            self.close()
            return
        if events & WRITABLE:
            self._flush()
        if self.open and events & ~WRITABLE:
            self._read()

    def _read(self) -> None:
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if self.asked:
            self._after(data)
            return
        self._received += data
        end = self._received.find(self._server.terminator)
        if end >= 0:
            self.asked = True
            self._limit.cancel()
            self._server.handle(self, bytes(self._received[:end]))
        elif not data or len(self._received) > self._server.most:
            self.close()

    def _after(self, data: bytes) -> None:
        """Behind the request: a half-closed client still gets its reply, and one that talks on is not heard."""
        if self.open:
            self._server.loop.modify(self.sock.fileno(), WRITABLE if self._unsent else 0)

    def _flush(self) -> None:
        try:
            sent = self.sock.send(self._unsent) if self._unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self._unsent[:sent]
        if sent:
            self._progress()
        if not self._unsent:
            self._limit.cancel()
            if self._last:
                self.close()
                return
        self._server.loop.modify(self.sock.fileno(), WRITABLE if self._unsent else READABLE)


class Server:
    """Serves ``listener``; ``handle(client, request)`` gets what came before ``terminator``."""

    def __init__(
        self, loop: Loop, listener: socket.socket, terminator: bytes, most: int, handle: Callable[[Client, bytes], None]
    ) -> None:
        self.loop = loop
        self.terminator = terminator
        self.most = most
        self.handle = handle
        self._listener = listener
        self._clients: dict[Client, None] = {}  # oldest first
        listener.setblocking(False)
        loop.register(listener.fileno(), READABLE, self._accept)

    def close(self) -> None:
        """Drop every client and stop listening."""
        for client in list(self._clients):
            client.close()
        self.loop.unregister(self._listener.fileno())
        self._listener.close()

    def gone(self, client: Client) -> None:
        self._clients.pop(client, None)

    def admit(self, sock: socket.socket) -> bool:
        """Whether this peer may ask at all."""
        return True

    def wrap(self, sock: socket.socket) -> Stream:
        """What the client speaks over."""
        return sock

    def _accept(self, events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # gone again, or no descriptor left: the next turn tries again
            return
        sock.setblocking(False)
        if not self.admit(sock) or not self._room():
            sock.close()
            return
        try:
            self._clients[Client(self, self.wrap(sock))] = None
        except OSError:  # gone again
            sock.close()

    @property
    def oldest(self) -> Client | None:
        """The client that is here longest."""
        return next(iter(self._clients), None)

    def expendable(self) -> Client | None:
        """Who makes room for a newcomer when all places are taken: the oldest that has not finished its request."""
        return next((client for client in self._clients if not client.asked), None)

    def _room(self) -> bool:
        if len(self._clients) < CLIENTS_MOST:
            return True
        one = self.expendable()
        if one is not None:
            one.close()
        return one is not None
