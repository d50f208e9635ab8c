"""What control and worker tell each other: one message, one seqpacket datagram.

A datagram is a JSON array ``[type, field, ...]``. They are rare (a lock changes hands, a snapshot is
taken); in steady state none is sent, so their cost (some 3 us) does not matter and a person can read
them in strace. The channel is a socketpair made before exec: its two ends trust each other's code but
not each other's life: either end exits when the other is gone.

Control -> worker: Grant, Revoke, Bumped, Prepare, Forget, Invalidate, Revived, Fenced, Trace, Stop.
Worker -> control: Hello, Want, Done, Overflow, Prepared, Invalidated, Serving, Notice, HandedOver, Stopped, Fatal.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from typing import Any

from snapd.errors import FormatError

NL, CR, EX = 0, 1, 2
"""Lock modes (as in the kernel's DLM; NL is "no hold")."""

MODE_NAMES = ("NL", "CR", "EX")
UNTRUSTED = -1
"""A counter's value when it is ``?`` or absent: re-read to the end, under the tail lock."""

MAX_DATAGRAM = 60 * 1024


@dataclass(frozen=True, slots=True)
class SnapshotSpec:
    """One snapshot as ``s/<name>`` has it. The table lists them newest first."""

    name: str
    store: str  # uuid
    path: str  # of the COW device
    state: str  # creating | active | overflow | invalid | deleting
    writable: bool
    generation: int


@dataclass(frozen=True, slots=True)
class Counter:
    store: str
    revision: int  # mod_revision of v/<store>; 0: absent
    value: int  # entries committed, or UNTRUSTED


@dataclass(frozen=True, slots=True)
class Grant:
    """``resource`` (``table``, ``region/<n>``, ``tail/<store>``) is held in ``mode`` from now on.

    counters: of every store of the volume, read in the granting transaction.
    skip: tail grants only: the first COW chunk behind all extents that members have recorded.
    snapshots: table grants only: the whole table, newest first.
    """

    resource: str
    mode: int
    token: int
    counters: tuple[Counter, ...] = ()
    skip: int = 0
    snapshots: tuple[SnapshotSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Revoke:
    """Somebody waits: stop admitting, drain, publish, and answer with Done(resource, mode or less)."""

    resource: str
    mode: int


@dataclass(frozen=True, slots=True)
class Bumped:
    """A release of this member set the counter of ``store``; its mod_revision is now ``revision``."""

    store: str
    revision: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """Open the COW device and verify its sidecar; answer Prepared. The store is not used before a table grant."""

    request: int
    snapshot: SnapshotSpec


@dataclass(frozen=True, slots=True)
class Forget:
    """The snapshot of this store was not taken after all: close its COW device."""

    store: str


@dataclass(frozen=True, slots=True)
class Invalidate:
    """This member holds table EX: set valid=0 in the header of ``store`` with FUA; answer Invalidated."""

    request: int
    store: str


@dataclass(frozen=True, slots=True)
class Revived:
    """The lease stands again and every hold was kept: go on."""


@dataclass(frozen=True, slots=True)
class FencedNotice:
    """Others recovered this member: fail all I/O and exit."""

    reason: str


@dataclass(frozen=True, slots=True)
class Trace:
    """Note requests that take ``threshold`` ns or longer in the trace page."""

    threshold: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Take nothing new, then send Stopped and exit.

    hand_over: answer what can be answered soon, and send HandedOver before. Else: answer what was received.
    """

    hand_over: bool = False


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a worker: the origin is open."""

    pid: int
    origin_size: int
    logical_block: int
    identity: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Want:
    resource: str
    mode: int


@dataclass(frozen=True, slots=True)
class Done:
    """The worker no longer uses ``resource`` beyond ``mode``: release or demote it.

    committed: entries committed per store (pairs), for every store whose tail this member holds.
    reserved: tail releases only: first COW chunk behind this member's extents; 0: nothing reserved.
    """

    resource: str
    mode: int
    committed: tuple[tuple[str, int], ...] = ()
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class Overflow:
    """A chunk that must be copied cannot be: take table EX and invalidate the snapshot of ``store``."""

    store: str
    reason: str


@dataclass(frozen=True, slots=True)
class Prepared:
    request: int
    error: str  # empty: open and verified


@dataclass(frozen=True, slots=True)
class Invalidated:
    request: int
    error: str  # empty: on stable storage


@dataclass(frozen=True, slots=True)
class Serving:
    """The table was granted and every store is loaded; nbd.sock accepts clients. ``error``: why not."""

    error: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something for the log: a level (syslog priority), an event name, key=value pairs."""

    priority: int
    event: str
    fields: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class HandedOver:
    """With it come descriptors for the next worker (see worker.takeover), as many as it says. There may be several."""

    count: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """Every request is answered, nothing is in flight; ``committed`` as in Done."""

    committed: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Fatal:
    """The worker cannot go on; it exits with a non-zero code after this."""

    reason: str


Message = (
    Grant | Revoke | Bumped | Prepare | Forget | Invalidate | Revived | FencedNotice | Trace | Stop
    | Hello | Want | Done | Overflow | Prepared | Invalidated | Serving | Notice | HandedOver | Stopped | Fatal
)  # fmt: skip

_TYPES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Grant, Revoke, Bumped, Prepare, Forget, Invalidate, Revived, FencedNotice, Trace, Stop,
        Hello, Want, Done, Overflow, Prepared, Invalidated, Serving, Notice, HandedOver, Stopped, Fatal,
    )
}  # fmt: skip


def encode(message: Message) -> bytes:
    """Return the datagram of ``message``. Raises FormatError if it does not fit one."""
    data = json.dumps([type(message).__name__, *astuple(message)], separators=(",", ":")).encode()
    if len(data) > MAX_DATAGRAM:
        raise FormatError(f"message {type(message).__name__}: {len(data)} bytes, at most {MAX_DATAGRAM}")
    return data


def _exactly(kind: type[Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"{str(value)[:40]!r}: expected {kind.__name__}")
        return value

    return read


def _many(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: tuple(map(read, _LIST(values)))


def _pair(second: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        key, other = _LIST(value)
        return _TEXT(key), second(other)

    return read


def _object(kind: type[Any]) -> Callable[[Any], Any]:
    readers = [_READERS[str(field.type)] for field in fields(kind)]

    def read(values: Any) -> Any:
        if len(_LIST(values)) != len(readers):
            raise ValueError(f"{len(values)} fields, expected {len(readers)}")
        return kind(*[read(value) for read, value in zip(readers, values, strict=True)])

    return read


_TEXT, _NUMBER, _LIST = _exactly(str), _exactly(int), _exactly(list)
_READERS: dict[str, Callable[[Any], Any]] = {
    "str": _TEXT,
    "int": _NUMBER,
    "bool": _exactly(bool),
    "tuple[str, ...]": _many(_TEXT),
    "tuple[tuple[str, int], ...]": _many(_pair(_NUMBER)),
    "tuple[tuple[str, str], ...]": _many(_pair(_TEXT)),
}
"""By a field's type as it is written above."""

_READERS["SnapshotSpec"] = _object(SnapshotSpec)
_READERS["tuple[Counter, ...]"] = _many(_object(Counter))
_READERS["tuple[SnapshotSpec, ...]"] = _many(_READERS["SnapshotSpec"])
_MESSAGES = {name: _object(kind) for name, kind in _TYPES.items()}


def decode(data: bytes) -> Message:
    """Return the message of a datagram. Raises FormatError for anything that ``encode`` does not make."""
    try:
        name, *values = _LIST(json.loads(data))
        message: Message = _MESSAGES[name](values)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"message {data[:80]!r}: {error}") from error
    return message
