"""The transmission phase of one connection: bytes in, requests out, replies out; no socket.

``parse`` takes whole requests from the bytes that were received and starts them; replies gather in
``out`` until the connection sends them. It stops early, and says why, when

    depth         DEPTH requests are unanswered: goes on after a reply
    need          no memory for a request of so many bytes: goes on when slots come back
    room          a WRITE's payload is not all here: the rest is received straight into its slots
    ending        the client said DISC

What is refused is answered with an error and nothing is started; the payload of a refused WRITE is
skipped as it comes in. Without common ground (a wrong magic, a payload beyond the maximum): Drop.

Reads are answered from the slots they were read into: the slots go back once the kernel has taken the
reply (``held``). An object made here costs every request, so requests are plain tuples of work.

At a planned stop that hands the clients over (``Desk.taking_back``) what the volume refuses with ESHUTDOWN is not
answered: it becomes bytes again, as the client had sent it (``back``), and is served anew by the next process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EINVAL, ENOSPC, EPERM, ESHUTDOWN
from typing import Protocol

from snapd import counters
from snapd.clock import Clock
from snapd.nbd import wire
from snapd.nbd.handshake import Opened
from snapd.nbd.lots import Lot, Lots
from snapd.nbd.wire import Drop, error_on_the_wire
from snapd.units import SECOND
from snapd.volume.request import FLUSH, READ, TRIM, WRITE, ZERO, Request

DEPTH = 128
"""Unanswered requests of one connection. The kernel's client and fio stop at 128 by default, qemu at 16."""

NEVER = 1 << 62
LATE = SECOND // 100
"""How long a payload may take before its time is told apart from that of the write."""

_OPERATIONS = {
    wire.CMD_READ: READ,
    wire.CMD_WRITE: WRITE,
    wire.CMD_FLUSH: FLUSH,
    wire.CMD_TRIM: TRIM,
    wire.CMD_WRITE_ZEROES: ZERO,
}
_COMMANDS = {operation: command for command, operation in _OPERATIONS.items()}
_FLAGS = {
    wire.CMD_READ: wire.CMD_FLAG_FUA,
    wire.CMD_WRITE: wire.CMD_FLAG_FUA,
    wire.CMD_FLUSH: wire.CMD_FLAG_FUA,
    wire.CMD_TRIM: wire.CMD_FLAG_FUA,
    wire.CMD_WRITE_ZEROES: wire.CMD_FLAG_FUA | wire.CMD_FLAG_NO_HOLE,
    wire.CMD_BLOCK_STATUS: wire.CMD_FLAG_FUA | wire.CMD_FLAG_REQ_ONE,
}
"""FUA is legal on every command; anything else only where the document says so."""

_CHANGES = (wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES)
_REQUEST_SIZE, _REQUEST_MAGIC, _MAX_REQUEST = wire.REQUEST.size, wire.REQUEST_MAGIC, wire.MAX_REQUEST
_DATA_CHUNK = wire.DATA_CHUNK.pack
_STRUCTURED, _DONE, _OFFSET_DATA = wire.STRUCTURED_REPLY_MAGIC, wire.REPLY_FLAG_DONE, wire.REPLY_TYPE_OFFSET_DATA
_OK = wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, b"")[:8]


class Slots(Protocol):
    """Memory for payloads: runs of the arena."""

    def take(self, length: int) -> Sequence[tuple[int, int]] | None: ...

    def give(self, segments: Sequence[tuple[int, int]]) -> None: ...


class Desk:
    """What all connections of a server share."""

    def __init__(
        self, view: memoryview, slots: Slots, submit: Callable[[Request], None], words: memoryview, clock: Clock
    ) -> None:
        self.view = view
        self.take = slots.take
        self.give = slots.give
        self.submit = submit
        self.words = words
        self.clock = clock
        self.now = clock()  # of this turn: durations are measured by it, one look at the clock for all
        self.lots = Lots(words)
        self.slow = NEVER  # ns from which on a request's time is asked about
        self.on_slow: Callable[[Request, int], None] = lambda request, error: None
        self.on_late: Callable[[Request], None] = lambda request: None
        self.answered: list[Transmission] = []  # those whose ``out`` is no longer empty
        self.taking_back = False  # stopping: another process will serve what cannot be served now

    @property
    def inflight(self) -> int:
        """Requests received and not answered, of all connections."""
        return self.lots.inflight()

    def publish(self) -> None:
        """Now and then: what is not answered, into the counters page."""
        self.words[counters.INFLIGHT] = self.inflight
        self.words[counters.OLDEST] = self.lots.oldest()


class Transmission:
    """See the module. Whoever feeds it reads ``depth``, ``need``, ``room`` and ``ending`` after each ``parse``."""

    __slots__ = (
        "_allocation", "_desk", "_device", "_finish", "_flags", "_mask", "_rows", "_size", "_structured", "_write",
        "back", "closed", "ending", "export", "held", "inflight", "need", "opened", "out", "owner", "room",
        "skip",
    )  # fmt: skip

    def __init__(self, opened: Opened, desk: Desk, owner: object = None) -> None:
        export = opened.export
        self.opened = opened
        self.export = export
        self.owner = owner
        self.out: list[bytes | memoryview] = []
        self.back: list[bytes] = []  # requests that another process will serve
        self.held: list[Sequence[tuple[int, int]]] = []  # slots that ``out`` shows
        self.inflight = 0
        self.need = 0
        self.room: list[memoryview] = []
        self.skip = 0  # bytes of a refused payload that are still to come
        self.ending = False
        self.closed = False
        self._desk = desk
        self._size = export.size
        self._mask = export.minimum_block - 1
        self._structured = opened.structured
        self._allocation = opened.allocation
        self._flags = dict(_FLAGS)
        if opened.structured:
            self._flags[wire.CMD_READ] |= wire.CMD_FLAG_DF
        self._device = "origin" if export.name == "origin" else "snapshot"
        self._rows = [counters.IO[self._device, operation] for operation in counters.OPERATIONS]
        self._write: Request | None = None  # whose payload is coming in
        self._finish = self._finished  # bound once

    # ---- requests

    @property
    def partial(self) -> Request | None:
        """The WRITE whose payload is coming in."""
        return self._write

    @property
    def depth(self) -> bool:
        """Whether as many requests as allowed are unanswered."""
        return self.inflight >= DEPTH

    def parse(self, data: memoryview, position: int, end: int) -> int:
        """Start what is in ``data[position:end]``; return how far that was. Raises Drop."""
        if self.skip:
            count = min(self.skip, end - position)
            self.skip -= count
            position += count
        if self.room:
            position = self._fill(data, position, end)
        if end - position < _REQUEST_SIZE or self.room or self.skip or self.ending:
            return position
        desk, export, size, mask, unpack = self._desk, self.export, self._size, self._mask, wire.REQUEST.unpack_from
        take, submit, finish = desk.take, desk.submit, self._finish
        lot_kind = lot_length = -1
        now = desk.now = desk.clock()
        self.need = 0
        lot, run = None, 0  # ``run``: requests of the lot that came since it was opened
        try:
            while end - position >= _REQUEST_SIZE and self.inflight < DEPTH:
                magic, flags, kind, cookie, offset, length = unpack(data, position)
                if magic != _REQUEST_MAGIC:
                    raise Drop(f"request magic {magic:#x}")
                if not (
                    kind == READ and not flags and 0 < length <= _MAX_REQUEST
                    and offset + length <= size and not (offset | length) & mask
                ):  # fmt: skip
                    error = self._check(kind, flags, offset, length)
                    if error or kind not in _OPERATIONS:
                        position += _REQUEST_SIZE
                        position = self._answer_at_once(kind, cookie, length, error, position, end)
                        if self.ending or self.skip:
                            return position
                        continue
                segments: Sequence[tuple[int, int]] = ()
                if kind <= WRITE:
                    taken = take(length)
                    if taken is None:
                        self.need = length
                        return position
                    segments = taken
                position += _REQUEST_SIZE
                operation = _OPERATIONS[kind]
                if length != lot_length or kind != lot_kind:
                    lot_kind, lot_length = kind, length
                    if lot is not None:
                        lot.left += run
                    lot, run = Lot(self._rows[operation], length, now), 0
                    desk.lots.order.append(lot)
                request = Request(export, operation, offset, length, segments, flags & 1 == 1, finish, lot, cookie)
                request.started = now
                run += 1
                self.inflight += 1
                if operation == WRITE:
                    self._write = request
                    self.room = [desk.view[where : where + count] for where, count in segments]
                    position = self._fill(data, position, end)
                    if self.room:
                        return position
                else:
                    submit(request)
        finally:
            if lot is not None:
                lot.left += run
        return position

    def _check(self, kind: int, flags: int, offset: int, length: int) -> int:
        """Return 0, or the error with which to refuse the request. Raises Drop for an endless payload."""
        if kind == wire.CMD_DISC:
            return 0
        if kind == wire.CMD_WRITE and length > wire.MAX_REQUEST:
            raise Drop(f"a WRITE of {length} bytes, at most {wire.MAX_REQUEST}")
        allowed = self._flags.get(kind)
        if allowed is None or flags & ~allowed:
            return EINVAL
        if kind in _CHANGES and self.export.read_only:
            return EPERM
        if kind == wire.CMD_FLUSH:
            return EINVAL if offset or length else 0
        if kind == wire.CMD_BLOCK_STATUS:
            if not self._allocation:
                return EINVAL
        elif (offset | length) & self._mask or (kind == wire.CMD_READ and length > wire.MAX_REQUEST):
            return EINVAL
        if not length:
            return EINVAL
        if offset + length > self._size:
            return ENOSPC if kind in (wire.CMD_WRITE, wire.CMD_WRITE_ZEROES) else EINVAL
        return 0

    def _answer_at_once(self, kind: int, cookie: bytes, length: int, error: int, position: int, end: int) -> int:
        """Handle what never reaches the volume: DISC, BLOCK_STATUS, refusals."""
        if kind == wire.CMD_DISC:
            self.ending = True
            return position
        if error:
            if kind in _OPERATIONS:
                self._count_error(_OPERATIONS[kind], error)
            self._queue(self._error(cookie, error))
            if kind == wire.CMD_WRITE:
                count = min(length, end - position)
                self.skip = length - count
                return position + count
            return position
        head = (wire.STRUCTURED_REPLY_MAGIC, wire.REPLY_FLAG_DONE, wire.REPLY_TYPE_BLOCK_STATUS, cookie)
        self._queue(wire.STATUS_CHUNK.pack(*head, 12, self._allocation, length, 0))
        return position

    # ---- the payload of a WRITE

    def _fill(self, data: memoryview, position: int, end: int) -> int:
        """Copy from ``data`` what belongs to the payload."""
        while self.room and position < end:
            view = self.room[0]
            count = min(len(view), end - position)
            view[:count] = data[position : position + count]
            position += count
            self.received(count)
        return position

    def received_later(self, count: int) -> None:
        """As ``received``, of a payload that has not come with its request."""
        request = self._write
        whole = request is not None and count == sum(map(len, self.room))
        if request is not None and whole and self._desk.clock() - request.started >= LATE:
            self._desk.on_late(request)
        self.received(count)

    def received(self, count: int) -> None:
        """``count`` more bytes of the payload are in ``room``; start the WRITE if that was all."""
        room = self.room
        while count:
            view = room[0]
            if count < len(view):
                room[0] = view[count:]
                return
            count -= len(view)
            del room[0]
        if not room and self._write is not None:
            request, self._write = self._write, None
            self._desk.submit(request)

    def _count_error(self, operation: int, error: int) -> None:
        counters.note_error(self._desk.words, self._device, counters.OPERATIONS[operation], error)

    # ---- replies

    def _finished(self, request: Request, error: int) -> None:
        """The volume is done with ``request``."""
        desk = self._desk
        if error == ESHUTDOWN and desk.taking_back:
            self._take_back(request)
            return
        operation, segments = request.operation, request.segments
        self.inflight -= 1
        lot = request.lot
        answered = lot.answered
        lot.answered = answered + 1
        if not answered:
            desk.lots.fresh.append(lot)
        if desk.now - request.started >= desk.slow:
            desk.on_slow(request, error)
        request.started = 0
        if error:
            self._count_error(operation, error)
        if self.closed:
            if segments:
                desk.give(segments)
            return
        out = self.out
        if not out:
            desk.answered.append(self)
        if error:
            out.append(self._error(request.tag, error_on_the_wire(error)))
        elif operation == READ:
            if self._structured:
                length = request.length + 8
                out.append(_DATA_CHUNK(_STRUCTURED, _DONE, _OFFSET_DATA, request.tag, length, request.offset))
            else:
                out.append(_OK + request.tag)
            view = desk.view
            for where, count in segments:
                out.append(view[where : where + count])
            self.held.append(segments)
            return
        else:
            out.append(_OK + request.tag)
        if segments:
            desk.give(segments)

    def _queue(self, reply: bytes) -> None:
        if not self.out:
            self._desk.answered.append(self)
        self.out.append(reply)

    def _error(self, cookie: bytes, error: int) -> bytes:
        if not self._structured:
            return wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, error, cookie)
        return wire.ERROR_CHUNK.pack(
            wire.STRUCTURED_REPLY_MAGIC, wire.REPLY_FLAG_DONE, wire.REPLY_TYPE_ERROR, cookie, 6, error, 0
        )

    # ---- becoming bytes again

    def _take_back(self, request: Request) -> None:
        """The request was not served, or not all of it, which does no harm: it will be served anew."""
        if not self.closed:
            payload = [self._desk.view[where : where + count] for where, count in request.segments]
            self.back.append(self._as_sent(request, payload if request.operation == WRITE else []))
        self._forget(request)

    def take_back_partial(self) -> bytes:
        """Return what has come of a WRITE whose payload is not complete; it is no request any more."""
        if self._write is None:
            return b""
        request, room = self._write, self.room
        missing = sum(map(len, room))
        payload = b"".join(self._desk.view[where : where + count] for where, count in request.segments)
        sent = self._as_sent(request, [memoryview(payload)[: request.length - missing]])
        self.forget_partial()
        return sent

    def _as_sent(self, request: Request, payload: list[memoryview]) -> bytes:
        flags, command = int(request.fua), _COMMANDS[request.operation]
        head = wire.REQUEST.pack(_REQUEST_MAGIC, flags, command, request.tag, request.offset, request.length)
        return b"".join([head, *payload])

    def _forget(self, request: Request) -> None:
        self.inflight -= 1
        request.started = 0
        request.lot.left -= 1
        if request.segments:
            self._desk.give(request.segments)

    def close(self) -> None:
        """Forget the peer: what is in flight is finished and thrown away, all slots find their way back."""
        self.closed = True
        self.out = []
        for segments in self.held:
            self._desk.give(segments)
        self.held = []
        self.forget_partial()

    def forget_partial(self) -> None:
        """No more bytes will come: a WRITE whose payload is not complete never was."""
        self.room = []
        if self._write is not None:
            request, self._write = self._write, None
            self._forget(request)
