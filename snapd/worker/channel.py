"""The worker's end of the channel to the control process: one message, one seqpacket datagram.

The channel is the worker's life line: when it closes, the control process is gone and the worker exits.
Descriptors may ride on a message (SCM_RIGHTS): the kernel delivers them together, or not at all.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence

from snapd.messages import MAX_DATAGRAM, Message, decode, encode
from snapd.worker.loop import READABLE, WRITABLE, Loop

MAX_DESCRIPTORS = 250
"""With one message: the kernel allows 253."""

DRAIN_SECONDS = 1.0
"""How long the last messages may take: the control process reads its end in every turn of its loop."""


class Channel:
    """``receive`` is called for every message, ``closed`` once when the other end is gone.

    descriptors: what came with messages, in order; whoever owns the channel takes them, or closes them.
    """

    def __init__(
        self, sock: socket.socket, loop: Loop, receive: Callable[[Message], None], closed: Callable[[], None]
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._receive = receive
        self._closed = closed
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self.descriptors: list[int] = []
        sock.setblocking(False)
        loop.register(sock.fileno(), READABLE, self._ready)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send in order; what the socket does not take now is sent when it does. Descriptors stay open until then."""
        self._unsent.append((encode(message), descriptors))
        if len(self._unsent) == 1:
            self._flush()

    def drain(self) -> None:
        """Wait until what was sent is with the other end, or that is gone: the process is about to exit."""
        self._sock.settimeout(DRAIN_SECONDS)
        try:
            while self._unsent:
                self._send(*self._unsent.popleft())
        except OSError:
            self._unsent.clear()

    def _flush(self) -> None:
        try:
            while self._unsent:
                self._send(*self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            self._loop.modify(self._sock.fileno(), READABLE | WRITABLE)
            return
        except OSError:
            self._closed()
            return
        self._loop.modify(self._sock.fileno(), READABLE)

    def _send(self, data: bytes, descriptors: Sequence[int]) -> None:
        if descriptors:
            socket.send_fds(self._sock, [data], descriptors)
        else:
            self._sock.send(data)

    def _ready(self, events: int) -> None:
        if events & WRITABLE:
            self._flush()
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(
                    self._sock, MAX_DATAGRAM, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
                self.descriptors += descriptors
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._closed()
                return
            self._receive(decode(data))
