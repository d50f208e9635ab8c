"""The fixed newstyle negotiation, without I/O: bytes in, bytes out, and how it ended.

    client flags  --> option, option, ...   --> GO, EXPORT_NAME: an export is open, ``opened`` says with what
                                            --> ABORT:           ``finished``
                      anything that makes no sense: an error reply if the option's end is known, else Drop

Nothing but the list of exports is looked at before the negotiation has ended: a volume or file touched
earlier is work done for strangers. An option has at most MAX_OPTION bytes that are kept; a longer one
is skipped and refused, one beyond MAX_SKIPPED ends the connection (a name length of 0xffffffff
once brought nbd-server down). Lengths inside an option are held against the option's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from snapd.nbd import wire
from snapd.nbd.wire import Drop
from snapd.volume.request import Export

MAX_OPTION = 8 * 1024
"""Bytes of an option's data: the longest name and as much again for queries."""

MAX_SKIPPED = 64 * 1024
"""Bytes of an option's data that are read and thrown away before ERR_TOO_BIG."""

MAX_OPTIONS = 1000
"""Options in one negotiation; clients use a dozen, and --list a few for each export."""

DEFAULT_EXPORT = "origin"
"""What the name "" means."""

_FLAGS = wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES

GREETING = wire.GREETING.pack(wire.INIT_MAGIC, wire.OPTION_MAGIC, _FLAGS)
"""What the server says first."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What was agreed on for the transmission phase."""

    export: Export
    structured: bool  # replies to reads are structured
    allocation: int  # id of the context base:allocation; 0: not negotiated


class _Refusal(Exception):
    """An option that is answered with an error reply."""

    def __init__(self, reply: int, message: str) -> None:
        super().__init__(message)
        self.reply = reply


class Handshake:
    """One client's negotiation."""

    def __init__(self, exports: Callable[[], Sequence[Export]]) -> None:
        self._exports = exports
        self._buffer = bytearray()
        self._flags: int | None = None
        self._skip = 0
        self._skipped_option = 0
        self._options = 0
        self._structured = False
        self._context_of: str | None = None  # the export's name for which base:allocation is set
        self.opened: Opened | None = None
        self.finished = False  # the client said ABORT

    @property
    def rest(self) -> bytes:
        """What was received behind the end of the negotiation."""
        return bytes(self._buffer)

    def receive(self, data: bytes) -> bytes:
        """Take ``data`` and return what to answer; then look at ``opened`` and ``finished``. Raises Drop."""
        self._buffer += data
        out: list[bytes] = []
        if self._flags is None:
            if len(self._buffer) < wire.CLIENT_FLAGS.size:
                return b""
            (self._flags,) = wire.CLIENT_FLAGS.unpack(self._cut(wire.CLIENT_FLAGS.size))
            if self._flags & ~_FLAGS:
                raise Drop(f"client flags {self._flags:#x}: unknown ones")
        while not (self.opened or self.finished) and self._option(out):
            pass
        return b"".join(out)

    # ---- framing

    def _cut(self, count: int) -> bytes:
        head = bytes(self._buffer[:count])
        del self._buffer[:count]
        return head

    def _option(self, out: list[bytes]) -> bool:
        """Handle one option if all of it is here; return whether another may be."""
        if self._skip:
            self._skip -= len(self._cut(min(self._skip, len(self._buffer))))
            if self._skip:
                return False
            out.append(_reply(self._skipped_option, wire.REP_ERR_TOO_BIG, b"option too long"))
        if len(self._buffer) < wire.OPTION.size:
            return False
        magic, option, length = wire.OPTION.unpack_from(self._buffer)
        if magic != wire.OPTION_MAGIC:
            raise Drop(f"option magic {magic:#x}")
        if length > MAX_SKIPPED or (option == wire.OPT_EXPORT_NAME and length > wire.MAX_STRING):
            raise Drop(f"option {option}: {length} bytes")
        if length > MAX_OPTION:
            self._begin(option)
            self._cut(wire.OPTION.size)
            self._skip, self._skipped_option = length, option
            return True
        if len(self._buffer) < wire.OPTION.size + length:
            return False
        self._begin(option)
        data = self._cut(wire.OPTION.size + length)[wire.OPTION.size :]
        try:
            self._handle(option, data, out)
        except _Refusal as refusal:
            out.append(_reply(option, refusal.reply, str(refusal).encode()))
        return True

    def _begin(self, option: int) -> None:
        self._options += 1
        if self._options > MAX_OPTIONS:
            raise Drop(f"more than {MAX_OPTIONS} options")
        if option != wire.OPT_EXPORT_NAME and not (self._flags or 0) & wire.FLAG_FIXED_NEWSTYLE:
            raise Drop(f"option {option} from a client that is not fixed newstyle: it could not read the answer")

    # ---- options

    def _handle(self, option: int, data: bytes, out: list[bytes]) -> None:
        match option:
            case wire.OPT_EXPORT_NAME:
                self._export_name(data, out)
            case wire.OPT_ABORT:
                out.append(_reply(option, wire.REP_ACK))
                self.finished = True
            case wire.OPT_LIST:
                _expect_empty(data)
                for export in self._exports():
                    name = export.name.encode()
                    body = wire.U32.pack(len(name)) + name + export.description.encode()
                    out.append(_reply(option, wire.REP_SERVER, body))
                out.append(_reply(option, wire.REP_ACK))
            case wire.OPT_INFO | wire.OPT_GO:
                self._info(option, data, out)
            case wire.OPT_STRUCTURED_REPLY:
                _expect_empty(data)
                self._structured = True
                out.append(_reply(option, wire.REP_ACK))
            case wire.OPT_LIST_META_CONTEXT | wire.OPT_SET_META_CONTEXT:
                self._contexts(option, data, out)
            case _:
                raise _Refusal(wire.REP_ERR_UNSUP, f"option {option} is not supported")

    def _find(self, name: str) -> Export | None:
        name = name or DEFAULT_EXPORT
        return next((export for export in self._exports() if export.name == name), None)

    def _flags_of(self, export: Export) -> int:
        flags = wire.HAS_FLAGS | wire.SEND_FLUSH | wire.SEND_FUA | wire.CAN_MULTI_CONN
        flags |= wire.READ_ONLY if export.read_only else wire.SEND_TRIM | wire.SEND_WRITE_ZEROES
        return flags | (wire.SEND_DF if self._structured else 0)

    def _open(self, export: Export, name: str) -> None:
        # A context belongs to the export that it was asked for.
        self.opened = Opened(export, self._structured, 1 if self._context_of == (name or DEFAULT_EXPORT) else 0)

    def _export_name(self, data: bytes, out: list[bytes]) -> None:
        try:
            name = data.decode()
        except UnicodeDecodeError as error:
            raise Drop("EXPORT_NAME: not UTF-8") from error
        export = self._find(name)
        if export is None:
            raise Drop(f"EXPORT_NAME {name!r}: there is none, and this option has no error reply")
        out.append(wire.EXPORT_SIZE.pack(export.size, self._flags_of(export)))
        if not (self._flags or 0) & wire.FLAG_NO_ZEROES:
            out.append(bytes(124))
        self._open(export, name)

    def _info(self, option: int, data: bytes, out: list[bytes]) -> None:
        reader = _Reader(data)
        name = reader.string()
        wanted = {reader.u16() for _ in range(reader.u16())}
        reader.end()
        export = self._find(name)
        if export is None:
            raise _Refusal(wire.REP_ERR_UNKNOWN, "there is no such export")
        minimum = export.minimum_block
        preferred = max(export.preferred_block, minimum, 512)
        bodies = [
            wire.INFO_EXPORT_REPLY.pack(wire.INFO_EXPORT, export.size, self._flags_of(export)),
            # Also unasked: a request that is not a multiple of the minimum is refused.
            wire.INFO_BLOCK_SIZE_REPLY.pack(wire.INFO_BLOCK_SIZE, minimum, preferred, wire.MAX_REQUEST),
        ]
        if wire.INFO_NAME in wanted:
            bodies.append(wire.U16.pack(wire.INFO_NAME) + export.name.encode())
        if wire.INFO_DESCRIPTION in wanted:
            bodies.append(wire.U16.pack(wire.INFO_DESCRIPTION) + export.description.encode())
        out.extend(_reply(option, wire.REP_INFO, body) for body in bodies)
        out.append(_reply(option, wire.REP_ACK))
        if option == wire.OPT_GO:
            self._open(export, name)

    def _contexts(self, option: int, data: bytes, out: list[bytes]) -> None:
        setting = option == wire.OPT_SET_META_CONTEXT
        if setting:
            self._context_of = None  # whatever comes of it, it replaces what was set
        if not self._structured:
            raise _Refusal(wire.REP_ERR_INVALID, "structured replies first")
        reader = _Reader(data)
        name = reader.string()
        queries = [reader.string() for _ in range(reader.u32_count())]
        reader.end()
        if self._find(name) is None:
            raise _Refusal(wire.REP_ERR_UNKNOWN, "there is no such export")
        if wire.ALLOCATION in queries or (not setting and (not queries or "base:" in queries)):
            identity = 0
            if setting:
                identity, self._context_of = 1, name or DEFAULT_EXPORT
            out.append(_reply(option, wire.REP_META_CONTEXT, wire.U32.pack(identity) + wire.ALLOCATION.encode()))
        out.append(_reply(option, wire.REP_ACK))


class _Reader:
    """An option's data, read from front to back; _Refusal(ERR_INVALID) where it ends too early or too late."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def _take(self, count: int) -> bytes:
        begin, self._position = self._position, self._position + count
        if self._position > len(self._data):
            raise _Refusal(wire.REP_ERR_INVALID, "a length goes beyond the option")
        return self._data[begin : self._position]

    def u16(self) -> int:
        return int.from_bytes(self._take(2))

    def u32_count(self) -> int:
        """Return a count of things that have at least four bytes each."""
        count = int.from_bytes(self._take(4))
        if count * 4 > len(self._data) - self._position:
            raise _Refusal(wire.REP_ERR_INVALID, "a count goes beyond the option")
        return count

    def string(self) -> str:
        length = int.from_bytes(self._take(4))
        if length > wire.MAX_STRING:
            raise _Refusal(wire.REP_ERR_INVALID, f"a string has more than {wire.MAX_STRING} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise _Refusal(wire.REP_ERR_INVALID, "a string is not UTF-8") from error

    def end(self) -> None:
        if self._position != len(self._data):
            raise _Refusal(wire.REP_ERR_INVALID, "the option is longer than what is in it")


def _reply(option: int, reply: int, body: bytes = b"") -> bytes:
    return wire.OPTION_REPLY.pack(wire.REPLY_MAGIC, option, reply, len(body)) + body


def _expect_empty(data: bytes) -> None:
    if data:
        raise _Refusal(wire.REP_ERR_INVALID, "the option has no data")
