"""The values of the records in etcd: strict JSON, hostile until parsed.

Written in the shape of the protocol in force (protocol.py), so strictness is no obstacle to a newer member.
A value that does not make sense raises FormatError naming the key, the field and what was expected; it concerns
that snapshot or member only.

    format     FormatRecord      m/<node>   MemberRecord      a/<node>  the incarnation, plain
    s/<name>   SnapshotRecord    q/...      TicketRecord      v/<store> digits, or "?"       x/... digits
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from functools import cache, lru_cache
from typing import ClassVar, Self, get_type_hints

from snapd.errors import FormatError
from snapd.lockspace.protocol import Speaks, in_force
from snapd.messages import UNTRUSTED

MAX_VALUE = 16 * 1024
"""Bytes; our own records stay below one KiB."""

MAX_TEXT = 4096
"""Characters of one text: a path's most. The whole table goes to the worker in one datagram."""

ACTIVE, FENCING, FENCED = "active", "fencing", "fenced"
MEMBER_STATES = (ACTIVE, FENCING, FENCED)
SNAPSHOT_STATES = ("creating", "active", "overflow", "invalid", "deleting")
UNTRUSTED_MARK = b"?"
MAX_NUMBER = 2**63 - 1
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class _Record:
    """JSON with exactly the fields of the dataclass, each of its type; ``later`` ones only if they say something."""

    choices: ClassVar[dict[str, tuple[object, ...]]] = {}
    later: ClassVar[frozenset[str]] = frozenset()
    """Fields that protocol 1 had not: they have a default, and who writes them has looked at the protocol in force."""
    named: ClassVar[str] = ""
    """The field that repeats the last part of the key."""

    def to_bytes(self) -> bytes:
        values = asdict(self)  # type: ignore[call-overload]
        said = {name: value for name, value in values.items() if value or name not in self.later}
        return json.dumps(said, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    @lru_cache(maxsize=256)  # the same few records are looked at whenever anything in the mirror changes
    def from_bytes(cls, key: str, data: bytes) -> Self:
        """Parse; ``key`` is for the error text. Raises FormatError."""
        if len(data) > MAX_VALUE:
            raise FormatError(f"{key}: {len(data)} bytes, expected at most {MAX_VALUE}")
        cls.first(key, data)
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{key}: {data[:80]!r}: expected JSON") from error
        types = _types(cls)  # type: ignore[arg-type]  # mypy: a class of ours is hashable
        if not isinstance(values, dict) or values.keys() | cls.later != types.keys():
            raise FormatError(f"{key}: {data[:80]!r}: expected an object with the fields {', '.join(sorted(types))}")
        for name, value in values.items():
            _check(key, name, value, types[name], cls.choices.get(name))
        if cls.named and values[cls.named] != key.rpartition("/")[2]:
            raise FormatError(f"{key}: {cls.named} {values[cls.named]!r}: expected that of the key")
        record = cls(**values)
        record.check(key)
        return record

    @classmethod
    def first(cls, key: str, data: bytes) -> None:
        """Raise FormatError for what is to be said before all else."""

    def check(self, key: str) -> None:
        """Raise FormatError for what the types do not say."""


@cache
def _types(kind: type[_Record]) -> dict[str, type]:
    """The fields; it takes 200 us to find out."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}  # type: ignore[arg-type]


def _check(key: str, name: str, value: object, kind: type, choices: tuple[object, ...] | None) -> None:
    if type(value) is not kind:
        raise FormatError(f"{key}: {name} {value!r}: expected {kind.__name__}")
    if choices is not None and value not in choices:
        raise FormatError(f"{key}: {name} {value!r}: expected one of {', '.join(map(str, choices))}")
    if isinstance(value, int) and not 0 <= value <= MAX_NUMBER:
        raise FormatError(f"{key}: {name} {value}: expected 0 to {MAX_NUMBER}")
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise FormatError(f"{key}: {name} {value[:40]!r}...: expected at most {MAX_TEXT} characters")
        if any(ord(letter) < 0x20 for letter in value):
            raise FormatError(f"{key}: {name} {value!r}: expected text without control characters")
        if any("\ud800" <= letter <= "\udfff" for letter in value):  # JSON can say half a surrogate pair
            raise FormatError(f"{key}: {name} {value!r}: expected UTF-8")


@dataclass(frozen=True, slots=True)
class FormatRecord(_Record):
    """Fixed by ``csnap volume init``, but for the protocol in force. Sizes in bytes."""

    protocol: int
    origin_size: int
    origin_identity: str
    chunk_size: int
    region_size: int

    @classmethod
    def first(cls, key: str, data: bytes) -> None:
        """A protocol that this csnap does not speak is named, whatever else there is."""
        protocol = in_force(key, data)
        if protocol not in Speaks():
            raise FormatError(f"{key}: protocol {protocol} is in force, and this is {Speaks()}: install one that does")


@dataclass(frozen=True, slots=True)
class MemberRecord(_Record):
    """``m/<node>``. ``by``: the incarnation that fences and cleans up (``by_node``'s); empty while active.

    ``address`` says what the member speaks. ``started``: when its daemon was, in seconds since 1970, by its own clock;
    from protocol 2 on.
    """

    node: str
    state: str
    machine_id: str
    boot_id: str
    incarnation: str
    lock_path: str
    fence_key: str
    address: str
    by: str = ""
    by_node: str = ""
    started: int = 0

    choices: ClassVar[dict[str, tuple[object, ...]]] = {"state": MEMBER_STATES}
    later: ClassVar[frozenset[str]] = frozenset({"started"})
    named: ClassVar[str] = "node"

    @property
    def speaks(self) -> Speaks:
        return Speaks.from_text(self.address)


@dataclass(frozen=True, slots=True)
class SnapshotRecord(_Record):
    """``s/<name>``. ``by``: the incarnation whose unfinished work this is; empty when at rest.

    ``place`` in the stack: the newest snapshot has the highest. ``identity`` is the COW device's.
    """

    name: str
    store: str
    path: str
    identity: str
    state: str
    writable: bool
    generation: int
    place: int
    by: str = ""

    choices: ClassVar[dict[str, tuple[object, ...]]] = {"state": SNAPSHOT_STATES}
    named: ClassVar[str] = "name"

    def check(self, key: str) -> None:
        if not _UUID.fullmatch(self.store):  # it is part of the names of locks
            raise FormatError(f"{key}: store {self.store!r}: expected a UUID")
        if not self.path.startswith("/"):
            raise FormatError(f"{key}: path {self.path!r}: expected an absolute path")


@dataclass(frozen=True, slots=True)
class TicketRecord(_Record):
    """``q/<resource>/<node>``: the mode wanted (1 CR, 2 EX) and the incarnation that waits."""

    mode: int
    incarnation: str

    choices: ClassVar[dict[str, tuple[object, ...]]] = {"mode": (1, 2)}


def parse_number(key: str, data: bytes) -> int:
    """Return the number in plain digits. Raises FormatError."""
    if not data.isdigit() or len(data) > 19 or int(data) > MAX_NUMBER or (data[:1] == b"0" and data != b"0"):
        raise FormatError(f"{key}: {data[:40]!r}: expected a number from 0 to {MAX_NUMBER}")
    return int(data)


def counter_value(key: str, data: bytes) -> int:
    """Return a counter's value. What makes no sense is no number to trust."""
    try:
        return parse_number(key, data)
    except FormatError:
        return UNTRUSTED
