"""The NBD server: accepts clients, shares memory between them fairly, ends in order.

One thread, driven from outside: the poller calls when a descriptor is ready, ``end_turn`` once a turn of
the loop (it sends the replies that have gathered), ``tick`` a few times a second (limits on time).

Memory for payloads is shared by all connections. Who finds none waits in one of two queues, for small
and for large requests, and is served in order, a few requests at a time; nobody passes those who wait.
While somebody waits, clients that have slots and do nothing with them lose them: replies that are not
taken are copied to private memory; a payload that does not come, or too much private memory, ends the connection.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from snapd import counters
from snapd.blockdev.base import Arena
from snapd.clock import Clock
from snapd.nbd.connection import IN, SCRATCH, Connection
from snapd.nbd.handover import ClientState, ExportFacts
from snapd.nbd.handshake import Opened
from snapd.nbd.transmission import Desk, Slots
from snapd.units import KIB, MIB, SECOND
from snapd.volume.request import Backend, Export, Request

NEGOTIATION_LIMIT = 30 * SECOND
"""From accept to the end of the negotiation: programs take milliseconds, a person at a prompt some seconds."""

STOP_LIMIT = 3 * SECOND
"""How long a planned stop waits for clients that do not take their replies."""

PATIENCE = SECOND // 4
"""How long a client may leave replies in the slots that others wait for."""

PAYLOAD_LIMIT = 5 * SECOND
"""How long a client may be silent in the middle of a payload whose slots others wait for."""

PRIVATE_LIMIT = 34 * MIB
"""Bytes of private memory for replies that are not taken, all clients together: whatever the large slots hold."""

MAX_CONNECTIONS = 900
"""A newcomer beyond is closed at once. A process has 1,024 descriptors by default, and the rest is for devices: a
COW device that cannot be opened for want of one would keep this host from serving anything."""

ACCEPTS = 64
"""Clients accepted in one turn."""

SMALL = 64 * KIB
"""Bytes of a request up to which it waits with the small ones."""

SHARE = 16
"""Requests that one connection starts before the next that waits for memory has its turn."""


class Poller(Protocol):
    """The part of an event loop that is needed here; level triggered."""

    def register(self, fd: int, mask: int, handler: Callable[[int], None]) -> None: ...

    def modify(self, fd: int, mask: int) -> None: ...

    def unregister(self, fd: int) -> None: ...


class NbdServer:
    """See the module. Clients are accepted from ``open`` to ``stop`` or ``quiesce``."""

    def __init__(
        self,
        listener: socket.socket,
        poller: Poller,
        backend: Backend,
        slots: Slots,
        arena: Arena,
        words: memoryview,
        clock: Clock,
    ) -> None:
        self.poller = poller
        self.exports: Callable[[], Sequence[Export]] = backend.exports
        self.scratch = memoryview(bytearray(SCRATCH + KIB))
        self.desk = Desk(arena.view, slots, backend.submit, words, clock)
        self.now = clock()
        self._listener = listener
        self._settled: Callable[[], bool] = backend.settled
        self._opened = False
        self._accepting = False
        self._full = False  # no descriptor was left at the last try
        self._slots = slots
        self._words = words
        self._clock = clock
        self._connections: set[Connection] = set()
        self._negotiating: dict[Connection, int] = {}  # and when they were accepted, oldest first
        self._queues: tuple[deque[Connection], deque[Connection]] = (deque(), deque())  # for memory: small, large
        self._served = -1  # the queue whose head is being served
        self._share = 0
        self._progress = False
        self._stopping_since: int | None = None
        self._inherited: list[tuple[ClientState, socket.socket]] = []  # until the exports are known
        self._given: list[tuple[ClientState, socket.socket]] = []  # what becomes garbage is closed
        self.quiet = False  # nothing is read any more: the clients are handed over

    # ---- what the loop calls

    def inherit(self, clients: Sequence[tuple[ClientState, socket.socket]]) -> None:
        """Before ``open``: take over clients of another server; they are served from then on."""
        self._inherited = list(clients)

    def open(self) -> list[str]:
        """Accept clients from now on, whenever the exports are settled: see ``end_turn``. Go on with those that were
        inherited; return the exports of those that found theirs no more and are disconnected."""
        self._opened = True
        clients, self._inherited = self._inherited, []
        refused = [state.export.name for state, sock in clients if not self._resume(state, sock)]
        self._consider_accepting()
        return refused

    def end_turn(self, now: int) -> bool:
        """Send the replies that have gathered; return whether there is more to do without waiting."""
        self.now = now
        desk = self.desk
        self._progress = False
        answered = desk.answered
        if answered:
            desk.answered = []
            for talk in answered:
                connection = talk.owner
                if isinstance(connection, Connection):
                    connection.flush()
        for which, queue in enumerate(self._queues):
            if queue:
                self._serve_queue(which)
        self._consider_accepting()
        if desk.lots.fresh:
            desk.lots.settle(desk.now)
        return self._progress or bool(desk.answered)

    def tick(self, now: int) -> None:
        """Look at the limits on time, and say what is not answered."""
        self.now = now
        self.desk.publish()
        while self._negotiating:
            connection, accepted = next(iter(self._negotiating.items()))
            if now - accepted < NEGOTIATION_LIMIT:
                break
            self.protocol_error()
            connection.close()
        if self._stopping_since is not None:
            if now - self._stopping_since >= STOP_LIMIT and not self.quiet:
                for connection in [each for each in self._connections if each.blocked]:
                    connection.close()
        else:
            self._full = False  # perhaps descriptors have come back
        if any(self._queues):
            self._reclaim(now)

    def stop(self) -> None:
        """Accept no more, take nothing new, answer what was received; then ``idle``."""
        if self._stopping_since is not None:
            return
        self._stopping_since = self._clock()
        self._pause_accepting()
        self._listener.close()
        while self._inherited:
            self._inherited.pop()[1].close()
        for connection in list(self._connections):
            if connection.talk is None:
                connection.close()
            else:
                connection.end()

    def quiesce(self) -> None:
        """Instead of ``stop``: accept and read no more; what was read is answered, or becomes bytes again when the
        volume refuses it with ESHUTDOWN. Once ``quiescent``, ``hand_over``."""
        if self._stopping_since is not None:
            return
        self._stopping_since = self._clock()
        self.quiet = self.desk.taking_back = True
        self._pause_accepting()
        for connection in list(self._connections):
            connection.quiesce()

    @property
    def quiescent(self) -> bool:
        """Whether every client is at a request boundary."""
        return self.quiet and not self.desk.inflight

    def hand_over(self) -> tuple[socket.socket, list[tuple[ClientState, socket.socket]]]:
        """Return the listening socket and the clients, who wait. They stay open for as long as there is this server:
        they are sent by their numbers, and perhaps not at once."""
        given = [connection.hand_over() for connection in list(self._connections)]
        clients, self._inherited = self._inherited, []
        self._given = [*clients, *(one for one in given if one is not None)]
        return self._listener, self._given

    @property
    def idle(self) -> bool:
        """Whether no connection is left and nothing is in flight."""
        return not self._connections and not self.desk.inflight

    def drop_export(self, export: object) -> None:
        """Close the connections of an export that is gone."""
        for connection in list(self._connections):
            if connection.talk is not None and connection.talk.export is export:
                connection.close()

    # ---- what connections call

    def negotiated(self, connection: Connection) -> None:
        """It is in its transmission phase."""
        self._negotiating.pop(connection, None)

    def closed(self, connection: Connection) -> None:
        """It is closed."""
        self._connections.discard(connection)
        self._negotiating.pop(connection, None)
        self._words[counters.CONNECTIONS] = len(self._connections)

    def protocol_error(self) -> None:
        """Count a client that broke the protocol."""
        self._words[counters.PROTOCOL_ERRORS] += 1

    def note_progress(self, progress: bool) -> None:
        """Requests were started outside of the handlers: the loop must not wait before they are handed over."""
        self._progress |= progress

    def wait_for_memory(self, connection: Connection) -> None:
        """Queue it until slots come back."""
        connection.waiting = True
        talk = connection.talk
        self._queues[talk is not None and talk.need > SMALL].append(connection)
        self.desk.take = self._take_in_order

    def partial(self) -> list[Request]:
        """WRITEs whose payload is not all here."""
        talks = (connection.talk for connection in self._connections)
        return [talk.partial for talk in talks if talk is not None and talk.partial is not None]

    # ---- memory

    def _take_in_order(self, length: int) -> Sequence[tuple[int, int]] | None:
        """``take`` while somebody waits: nobody passes those in the queue for his size."""
        which = int(length > SMALL)
        if which == self._served:
            if not self._share:
                return None
            self._share -= 1
        elif self._queues[which]:
            return None
        return self._slots.take(length)

    def _serve_queue(self, which: int) -> None:
        queue = self._queues[which]
        self._served = which
        for _ in range(len(queue)):
            connection = queue.popleft()
            if connection.fd < 0:
                continue
            connection.waiting = False
            self._share = SHARE
            progress = connection.go_on()
            self._progress |= progress
            if connection.waiting and not progress:  # the first in the queue cannot go on, so nobody can
                queue.remove(connection)
                queue.appendleft(connection)
                break
        self._served = -1
        if not any(self._queues):
            self.desk.take = self._slots.take

    def _reclaim(self, now: int) -> None:
        """Take slots back from clients that do nothing with them."""
        private = sum(connection.private for connection in self._connections)
        for connection in [each for each in self._connections if each.holds_slots]:
            silent = now - connection.since
            if connection.blocked and silent >= PATIENCE:
                if private < PRIVATE_LIMIT:
                    connection.spill()
                    private += connection.private
                else:
                    connection.close()
            elif connection.talk is not None and connection.talk.room and silent >= PAYLOAD_LIMIT:
                self.protocol_error()
                connection.close()

    # ---- accepting

    def _resume(self, state: ClientState, sock: socket.socket) -> bool:
        export = next((each for each in self.exports() if ExportFacts.of(each) == state.export), None)
        if export is None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            return False
        connection = Connection(self, sock, self.now)
        self._connections.add(connection)
        self._words[counters.CONNECTIONS] = len(self._connections)
        connection.resume(Opened(export, state.structured, state.allocation), state)
        return True

    def _accept(self, events: int) -> None:
        now = self._clock()
        for _ in range(ACCEPTS):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # out of descriptors: the next tick tries again, level triggering would spin
                self._full = True
                self._pause_accepting()
                return
            if len(self._connections) >= MAX_CONNECTIONS:
                sock.close()
                continue
            sock.setblocking(False)
            connection = Connection(self, sock, now)
            self._connections.add(connection)
            self._negotiating[connection] = now
            self._words[counters.CONNECTIONS] = len(self._connections)
            connection.begin()

    def _consider_accepting(self) -> None:
        """Let newcomers wait while the exports may change: whoever comes after a snapshot was taken finds it."""
        if self._opened and not self._full and self._stopping_since is None and self._settled():
            if not self._accepting:
                self._accepting = True
                self.poller.register(self._listener.fileno(), IN, self._accept)
        else:
            self._pause_accepting()

    def _pause_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            self.poller.unregister(self._listener.fileno())
