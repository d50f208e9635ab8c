"""One client's socket: non-blocking in and out, around the pure negotiation and transmission.

What was received lies in the server's one scratch buffer while it is parsed; only what could not be
used yet is kept (``_rest``), so an idle connection has no buffer. A WRITE's payload that is longer
than what has come so far goes from the socket straight into its slots.

A connection is not read while any of these holds; each ends with ``go_on`` being called:

    blocked    the client does not take its replies (ends with EPOLLOUT)
    depth      too many requests are unanswered (ends with a reply)
    waiting    no memory (the server's queue; ends when slots come back)
    ending     DISC, end of file or a planned stop: what runs is answered, then the socket is closed
    quiet      a planned stop that hands the clients over: what runs is answered, or becomes bytes again (the server's)
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from snapd.nbd.handover import ClientState, ExportFacts
from snapd.nbd.handshake import GREETING, Handshake, Opened
from snapd.nbd.transmission import Transmission
from snapd.nbd.wire import Drop

if TYPE_CHECKING:
    from snapd.nbd.server import NbdServer

IN, OUT = select.EPOLLIN, select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR

NEGOTIATION_READ = 4096
"""Bytes read at a time in the negotiation: bounds what one turn answers to a client that pipelines LISTs."""

SCRATCH = 64 * 1024
"""Bytes received at a time from one connection: what it may ask for in one turn."""

MAX_PIECES = 1024
"""Buffers in one sendmsg: IOV_MAX."""

SEND_BUFFER = 1024 * 1024
"""Bytes asked for in the socket's send buffer; the kernel lowers it to net.core.wmem_max."""


class Connection:
    """See the module. ``since``: when bytes last went in or out."""

    __slots__ = (
        "_ending", "_handshake", "_lent", "_mask", "_rest", "_sending", "_server", "_sock",
        "fd", "private", "since", "talk", "waiting",
    )  # fmt: skip

    def __init__(self, server: NbdServer, sock: socket.socket, now: int) -> None:
        self._server = server
        self._sock = sock
        self._handshake: Handshake | None = Handshake(server.exports)
        self._rest: bytes | memoryview = b""
        self._sending: list[bytes | memoryview] = [GREETING]
        self._lent: list[Sequence[tuple[int, int]]] = []  # slots that ``_sending`` shows
        self._ending = False
        self._mask = IN
        self.fd = sock.fileno()
        self.private = 0  # bytes of replies that were moved out of the slots (``spill``)
        self.since = now
        self.talk: Transmission | None = None  # once the negotiation has ended well
        self.waiting = False  # in the server's queue for memory
        server.poller.register(self.fd, IN, self._ready)

    def begin(self) -> None:
        """A newcomer: greet it."""
        self.flush()

    def resume(self, opened: Opened, state: ClientState) -> None:
        """One that another server has negotiated with: go on where that has stopped."""
        self._handshake = None
        self.talk = Transmission(opened, self._server.desk, self)
        self.talk.skip = state.skip
        self._rest = state.unread
        self._sending = [state.unsent] if state.unsent else []
        self.private = len(state.unsent)
        self.flush()

    @property
    def blocked(self) -> bool:
        """Whether the client does not take its replies."""
        return bool(self._sending)

    # ---- events

    def _ready(self, events: int) -> None:
        if events & OUT:
            self.flush()
        if self.fd < 0:
            return
        if events & IN and self._mask & IN:
            self._receive()
        elif events & GONE:  # nobody is left to answer
            self.close()

    def _receive(self) -> None:
        try:
            if self.talk is not None:
                self._receive_requests(self.talk)
            else:
                self._negotiate(self._sock.recv(NEGOTIATION_READ))
        except BlockingIOError:
            return
        except Drop:
            self._server.protocol_error()
            self.close()
        except OSError:
            self.close()

    # ---- negotiation

    def _negotiate(self, data: bytes) -> None:
        handshake = self._handshake
        if not data or handshake is None:
            self.close()
            return
        answer = handshake.receive(data)
        if answer:
            self._sending.append(answer)
        if handshake.opened is not None:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            self.talk = Transmission(handshake.opened, self._server.desk, self)
            self._rest = handshake.rest
            self._handshake = None
            self._server.negotiated(self)
        self._ending = handshake.finished
        self.flush()

    # ---- requests

    def _receive_requests(self, talk: Transmission) -> None:
        scratch = self._server.scratch
        self.since = self._server.now
        if talk.room:  # nothing is left over then: the payload would have taken it
            wanted = sum(map(len, talk.room))
            count = self._sock.recvmsg_into([*talk.room[: MAX_PIECES - 1], scratch])[0]
            if count:
                talk.received_later(min(count, wanted))
                count -= min(count, wanted)
                self._parse(talk, scratch, count)
                return
        else:
            kept = len(self._rest)
            scratch[:kept] = self._rest
            count = self._sock.recv_into(scratch[kept:])
            if count:
                self._parse(talk, scratch, kept + count)
                return
        self.end()

    def _parse(self, talk: Transmission, data: memoryview, end: int) -> bool:
        """Parse the first ``end`` bytes of ``data``; return whether anything was used."""
        position = talk.parse(data, 0, end)
        if position == end:
            self._rest = b""
        elif data.obj is self._server.scratch.obj or end - position <= SCRATCH:
            self._rest = bytes(data[position:end])
        else:  # what another server had received: it is here once, and not copied with every request
            self._rest = data[position:end]
        if talk.ending:
            self.end()
        elif talk.need:
            self._server.wait_for_memory(self)
        self._watch()
        return position > 0

    def go_on(self) -> bool:
        """Parse what was left over, if nothing forbids it; return whether anything was used."""
        talk = self.talk
        if talk is None or self._ending or self._sending or self.waiting or talk.depth or self._server.quiet:
            self._watch()
            return False
        try:
            return self._parse(talk, memoryview(self._rest), len(self._rest))
        except Drop:
            self._server.protocol_error()
            self.close()
            return False

    def _watch(self) -> None:
        """Tell the poller what this connection waits for."""
        if self.fd < 0:
            return
        talk = self.talk
        mask = OUT if self._sending else 0
        if not (mask or self._ending or self.waiting or self._server.quiet or (talk is not None and talk.depth)):
            mask = IN
        if mask != self._mask:
            self._mask = mask
            self._server.poller.modify(self.fd, mask)

    # ---- replies

    def flush(self) -> None:
        """Send what there is, as far as the socket takes it; then go on parsing, or close."""
        talk = self.talk
        while self.fd >= 0:
            if not self._sending:
                if talk is None or not talk.out:
                    break
                self._sending, talk.out = talk.out, []
                self._lent, talk.held = talk.held, []
            if not self._send():
                self._watch()
                return
            self._return_slots()
        if self._ending:
            self._close_if_answered()
        elif self._rest or self._mask != IN:
            self._server.note_progress(self.go_on())

    def _send(self) -> bool:
        """Return whether all of ``_sending`` is with the kernel."""
        while self._sending:
            try:
                count = self._sock.sendmsg(self._sending[:MAX_PIECES])
            except BlockingIOError:
                return False
            except OSError:
                self.close()
                return True
            self.since = self._server.now
            if count == sum(map(len, self._sending)):
                self._sending = []
            else:
                self._sending = _after(self._sending, count)
        return True

    def _return_slots(self) -> None:
        """What ``_sending`` showed is with the kernel, or nobody wants it."""
        for segments in self._lent:
            self._server.desk.give(segments)
        self._lent = []
        self.private = 0

    def spill(self) -> None:
        """Copy the replies that the client does not take to private memory, so that others get the slots."""
        if self.talk is not None:
            self._sending += self.talk.out
            self._lent += self.talk.held
            self.talk.out, self.talk.held = [], []
        self._sending = [bytes(piece) for piece in self._sending]
        self._return_slots()
        self.private = sum(map(len, self._sending))

    @property
    def holds_slots(self) -> bool:
        """Whether replies that are not with the kernel, or a payload that is not all here, are in slots."""
        return bool(self._lent or (self.talk is not None and (self.talk.held or self.talk.room)))

    # ---- the end

    def quiesce(self) -> None:
        """Read no more, because somebody else will: the server is quiet."""
        if self.talk is None:
            self.close()
            return
        self._rest = self.talk.take_back_partial() or self._rest
        self._watch()

    def hand_over(self) -> tuple[ClientState, socket.socket] | None:
        """Give the socket away, with what the next server must know. Nothing is in flight.

        None, and closed, if this connection is at its end, or in the middle of a refused payload that would have to
        be thrown away before requests that are bytes again.
        """
        talk = self.talk
        if talk is None or self._ending or (talk.skip and talk.back):
            self.close()
            return None
        state = ClientState(
            os.fstat(self.fd).st_ino,
            ExportFacts.of(talk.export),
            talk.opened.structured,
            talk.opened.allocation,
            talk.skip,
            b"".join([*talk.back, self._rest]),
            b"".join([*self._sending, *talk.out]),
        )
        self._server.poller.unregister(self.fd)
        self._let_go()
        return state, self._sock

    def end(self) -> None:
        """Read no more; close when what was parsed is answered."""
        self._ending = True
        self._rest = b""
        if self.talk is not None:
            self.talk.forget_partial()
        self._close_if_answered()

    def _close_if_answered(self) -> None:
        talk = self.talk
        if not self._sending and (talk is None or not (talk.inflight or talk.out)):
            self.close()
        else:
            self._watch()

    def close(self) -> None:
        """Close at once; replies that were not sent are thrown away."""
        if self.fd < 0:
            return
        self._server.poller.unregister(self.fd)
        self._sock.close()
        self._let_go()

    def _let_go(self) -> None:
        """The socket is closed, or somebody else's: give back what there was for it."""
        self.fd = -1
        self._sending, self._rest = [], b""
        self._return_slots()
        if self.talk is not None:
            self.talk.close()
        self._server.closed(self)


def _after(pieces: list[bytes | memoryview], count: int) -> list[bytes | memoryview]:
    """Return ``pieces`` without their first ``count`` bytes."""
    for index, piece in enumerate(pieces):
        if count < len(piece):
            return [memoryview(piece)[count:], *pieces[index + 1 :]]
        count -= len(piece)
    return []
