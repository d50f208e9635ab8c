"""The part of etcd's vocabulary that csnap uses, as plain values. No I/O, no etcd3, no grpc.

Source: etcd API v3, rpc.proto and kv.proto. Revisions are etcd's; 0 means "no such key" in a compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


class Target(Enum):
    CREATE = "create_revision"
    MOD = "mod_revision"


@dataclass(frozen=True, slots=True)
class Compare:
    """``target`` of ``key`` (of every key in [key, range_end)) equals ``revision``, or is ``less``.

    Absent: CREATE == 0. Over an empty range etcd compares one zero key, so CREATE == 0 is true exactly when the range
    is empty.
    """

    key: str
    target: Target
    revision: int
    range_end: str = ""
    less: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str
    range_end: str = ""


@dataclass(frozen=True, slots=True)
class Range:
    key: str
    range_end: str = ""
    revision: int = 0  # 0: now, linearizable
    limit: int = 0
    keys_only: bool = False


@dataclass(frozen=True, slots=True)
class Txn:
    """IF all of ``compare`` THEN ``success`` ELSE ``failure``; at most 128 operations, nested ones counted in."""

    compare: tuple[Compare, ...]
    success: tuple[Operation, ...]
    failure: tuple[Operation, ...] = ()

    def writes(self) -> bool:
        """Whether some branch changes something: only then can its outcome be ambiguous."""
        return any(
            operation.writes() if isinstance(operation, Txn) else not isinstance(operation, Range)
            for operation in (*self.success, *self.failure)
        )


Operation = Put | Delete | Range | Txn


def prefix_end(prefix: str) -> str:
    """Return the ``range_end`` for every key that starts with ``prefix``."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


@dataclass(frozen=True, slots=True)
class RangeResult:
    kvs: tuple[KeyValue, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class TxnResult:
    """What etcd answered. ``results`` has one entry per operation: RangeResult, TxnResult, or None (put, delete)."""

    succeeded: bool
    revision: int  # of the response header; 0 in a nested result
    results: tuple[RangeResult | TxnResult | None, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaseResult:
    """``ttl`` is what was granted or is left, in whole seconds; <= 0: the lease is gone."""

    lease: int
    ttl: int


@dataclass(frozen=True, slots=True)
class Event:
    """One change seen on the watch. A deletion carries the key, mod_revision (of the deletion) and nothing else."""

    kv: KeyValue
    deleted: bool


@dataclass(frozen=True, slots=True)
class WatchEvents:
    """All events of one revision or several, in order; ``revision`` is that of the newest event."""

    events: tuple[Event, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class WatchProgress:
    """The stream lives. Says nothing about which events were delivered."""


@dataclass(frozen=True, slots=True)
class WatchLost:
    """The stream ended (disconnect, compaction, cancel): range again and open a new one."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that brought no answer. ``ambiguous``: it may have been, or may yet be, applied (never a read).

    ``no_space``: no transaction with a put will succeed until an administrator acts. ``wrong_cluster``: another
    etcd, or an older state of it, answers. ``refused``: the same request will be refused again.
    """

    message: str
    ambiguous: bool
    no_space: bool = False
    wrong_cluster: bool = False
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """What one member says of itself. ``alarms``: its complaints in its own words, "alarm:NOSPACE" among them."""

    version: str
    db_size: int  # bytes
    alarms: tuple[str, ...]


class Kv(Protocol):
    """An asynchronous client of etcd. Every call returns at once; ``done`` is called later, in the owner's thread.

    Calls carry their own timeout (nanoseconds). Nothing is retried inside: the caller knows what is safe.
    """

    def txn(self, txn: Txn, timeout: int, done: Callable[[TxnResult | Failure], None]) -> None: ...

    def range(self, request: Range, timeout: int, done: Callable[[RangeResult | Failure, int], None]) -> None:
        """``done(result, revision)``: revision of the response header, 0 on failure."""

    def lease_grant(self, ttl: int, timeout: int, done: Callable[[LeaseResult | Failure], None]) -> None:
        """``ttl`` in whole seconds; etcd may grant more."""

    def lease_keepalive(self, lease: int, timeout: int, done: Callable[[LeaseResult | Failure], None]) -> None: ...

    def lease_revoke(self, lease: int, timeout: int, done: Callable[[LeaseResult | Failure], None]) -> None: ...

    def watch(
        self,
        prefix: str,
        start_revision: int,
        notify: Callable[[WatchEvents | WatchProgress | WatchLost], None],
    ) -> Watch: ...


class Watch(Protocol):
    """One watch stream. After ``WatchLost`` or ``cancel`` nothing more is notified."""

    def request_progress(self) -> None: ...

    def cancel(self) -> None: ...
