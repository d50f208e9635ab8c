"""One answer of the daemon (daemon/observe.py), checked and frozen.

Texts are made printable here: a node's name and a reason come out of etcd, and no terminal is to obey them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from snapd.errors import CsnapError
from snapd.printable import printable

FORMAT = 1
TEXT_MOST = 200

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """Totals since the daemon's start; ``bytes`` None: not counted.

    ``log2_ns[k]``: operations that took from 2**(k-1) to below 2**k nanoseconds.
    """

    group: str
    op: str
    ops: int
    bytes: int | None
    log2_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Worker:
    """Totals, and gauges of this moment."""

    inflight: int
    waiting: int
    stalled: bool
    connections: int
    oldest_seconds: float
    copies: int
    copy_bytes: int
    commits: int
    commit_entries: int
    errors: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """``version`` empty: its member record does not say."""

    node: str
    state: str
    by: str
    version: str


@dataclass(frozen=True, slots=True)
class Store:
    """A snapshot. Bytes None: its COW device is not loaded here."""

    name: str
    state: str
    store: str
    used: int | None
    size: int | None
    exceptions: int | None


@dataclass(frozen=True, slots=True)
class Wait:
    """A ticket. ``holders``: (node, mode) of holds that exclude it; ``behind``: older tickets that do."""

    resource: str
    node: str
    mode: str
    seconds: float
    holders: tuple[tuple[str, str], ...]
    behind: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fencing:
    """A dead member whose locks stay until it is fenced."""

    node: str
    by: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Observation:
    """``now`` in seconds of the host's boot; ``incarnation`` tells a restarted daemon from the one before."""

    now: float
    incarnation: str
    volume: str
    node: str
    state: str
    why: str
    lease_remaining: float
    lease_ttl: float
    fencing: str
    version: str
    warnings: tuple[str, ...]
    fencing_waits: tuple[Fencing, ...]
    hosts: tuple[Host, ...]
    held: dict[str, dict[str, int]]
    waits: tuple[Wait, ...]
    waits_total: int
    worker: Worker | None
    stores: tuple[Store, ...]


def parse(value: Any) -> Observation:
    """Raises CsnapError for what is no answer of a daemon that this command understands."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        shown = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise CsnapError(f"the daemon's figures have format {shown}, expected {FORMAT}: use the csnap it runs from")
    try:
        return _observation(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CsnapError(f"the daemon's figures make no sense: {type(error).__name__}: {error}") from None


def _observation(value: dict[str, Any]) -> Observation:
    status = value["status"]
    member = status["member"]
    return Observation(
        now=float(value["now_seconds"]),
        incarnation=str(value["incarnation"]),
        volume=_text(status["volume"]),
        node=_text(status["node"]),
        state=_text(member["state"]),
        why=_text(member["why"]),
        lease_remaining=float(member["lease_remaining_seconds"]),
        lease_ttl=float(member["lease_ttl_seconds"]),
        fencing=_text(member["fencing"]),
        version=_text(status["version"]),
        warnings=_each(status["warnings"], _text),
        fencing_waits=_each(status["fencing"]["waiting"], _fencing),
        hosts=_each(status["members"], _host),
        held={
            _text(node): {_text(name): int(count) for name, count in counts.items()}
            for node, counts in value["held"].items()
        },
        waits=_each(value["waits"], _wait),
        waits_total=int(value["waits_total"]),
        worker=_worker(value["worker"]) if value["worker"] is not None else None,
        stores=_each(value["snapshots"], _store),
    )


def _each(values: Iterable[Any], parse_one: Callable[[Any], T]) -> tuple[T, ...]:
    return tuple(parse_one(value) for value in values)


def _text(value: Any) -> str:
    text = printable(str(value))
    return text if len(text) <= TEXT_MOST else text[: TEXT_MOST - 1] + "…"


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _fencing(value: dict[str, Any]) -> Fencing:
    return Fencing(_text(value["node"]), _text(value["by"]), float(value["since_seconds"]))


def _host(value: dict[str, Any]) -> Host:
    return Host(_text(value["node"]), _text(value["state"]), _text(value["by"]), _text(value.get("version") or ""))


def _wait(value: dict[str, Any]) -> Wait:
    holders = _each(value["holders"], lambda holder: (_text(holder["node"]), _text(holder["mode"])))
    return Wait(
        _text(value["resource"]),
        _text(value["node"]),
        _text(value["mode"]),
        float(value["since_seconds"]),
        holders,
        _each(value["behind"], _text),
    )


def _worker(value: dict[str, Any]) -> Worker:
    return Worker(
        inflight=int(value["inflight"]),
        waiting=int(value["waiting"]),
        stalled=bool(value["stalled"]),
        connections=int(value["connections"]),
        oldest_seconds=float(value["oldest_seconds"]),
        copies=int(value["copies"]),
        copy_bytes=int(value["copy_bytes"]),
        commits=int(value["commits"]),
        commit_entries=int(value["commit_entries"]),
        errors=int(value["errors"]),
        rows=_each(value["rows"], _row),
    )


def _row(value: dict[str, Any]) -> Row:
    counts = _each(value["log2_ns"], int)
    return Row(_text(value["group"]), _text(value["op"]), int(value["ops"]), _number(value["bytes"]), counts)


def _store(value: dict[str, Any]) -> Store:
    used, size, exceptions = (_number(value[name]) for name in ("used_bytes", "size_bytes", "exceptions"))
    return Store(_text(value["name"]), _text(value["state"]), _text(value["store"]), used, size, exceptions)
