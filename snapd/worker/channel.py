"""The worker's end of the channel to the control process: one message, one seqpacket datagram.

The channel is the worker's life line: when it closes, the control process is gone and the worker exits.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable

from snapd.messages import MAX_DATAGRAM, Message, decode, encode
from snapd.worker.loop import READABLE, WRITABLE, Loop

DRAIN_SECONDS = 1.0
"""How long the last messages may take: the control process reads its end in every turn of its loop."""


class Channel:
    """``receive`` is called for every message, ``closed`` once when the other end is gone."""

    def __init__(
        self, sock: socket.socket, loop: Loop, receive: Callable[[Message], None], closed: Callable[[], None]
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._receive = receive
        self._closed = closed
        self._unsent: deque[bytes] = deque()
        sock.setblocking(False)
        loop.register(sock.fileno(), READABLE, self._ready)

    def send(self, message: Message) -> None:
        """Send in order; what the socket does not take now is sent when it does."""
        self._unsent.append(encode(message))
        if len(self._unsent) == 1:
            self._flush()

    def drain(self) -> None:
        """Wait until what was sent is with the other end, or that is gone: the process is about to exit."""
        self._sock.settimeout(DRAIN_SECONDS)
        try:
            while self._unsent:
                self._sock.send(self._unsent.popleft())
        except OSError:
            self._unsent.clear()

    def _flush(self) -> None:
        try:
            while self._unsent:
                self._sock.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            self._loop.modify(self._sock.fileno(), READABLE | WRITABLE)
            return
        except OSError:
            self._closed()
            return
        self._loop.modify(self._sock.fileno(), READABLE)

    def _ready(self, events: int) -> None:
        if events & WRITABLE:
            self._flush()
        while True:
            try:
                data = self._sock.recv(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._closed()
                return
            self._receive(decode(data))
