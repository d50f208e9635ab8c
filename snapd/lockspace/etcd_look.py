"""Looking at one etcd member, for the doctor: calls that block, one endpoint, no retries, nothing written.

Beside etcd.py, because the driver speaks to whichever endpoint answers, and here each is asked for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from snapd.clock import boottime
from snapd.errors import LockspaceError
from snapd.lockspace.etcd import CHANNEL_OPTIONS, Tls, parse_endpoint
from snapd.lockspace.etcd_descriptors import rpc
from snapd.units import SECOND

LIMIT = 2.0
"""Seconds for an answer: a member that needs longer is as good as none for a lease."""

ALARMS = {1: "NOSPACE", 2: "CORRUPT"}


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """Identities are etcd's 64-bit numbers; ``leader`` 0: it knows of none. ``size`` in bytes."""

    member: int
    version: str
    size: int
    leader: int
    term: int
    raft_index: int
    revision: int
    alarms: tuple[str, ...]


class Look:
    """Use it as a context manager. Every call raises LockspaceError."""

    def __init__(self, url: str, tls: Tls | None) -> None:
        target, secure = parse_endpoint(url)
        if secure:
            self._channel = grpc.secure_channel(target, (tls or Tls()).credentials(), options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._kv, self._cluster = rpc.KVStub(self._channel), rpc.ClusterStub(self._channel)
        self._maintenance = rpc.MaintenanceStub(self._channel)

    def __enter__(self) -> Look:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def status(self) -> MemberStatus:
        answer = _call(self._maintenance.Status, rpc.StatusRequest())
        return MemberStatus(
            member=answer.header.member_id,
            version=answer.version,
            size=answer.dbSize,
            leader=answer.leader,
            term=answer.raftTerm,
            raft_index=answer.raftIndex,
            revision=answer.header.revision,
            alarms=tuple(answer.errors),
        )

    def alarms(self) -> tuple[str, ...]:
        """Of the whole cluster."""
        answer = _call(self._maintenance.Alarm, rpc.AlarmRequest(action=0))
        return tuple(ALARMS.get(alarm.alarm, f"alarm {alarm.alarm}") for alarm in answer.alarms)

    def members(self) -> tuple[str, ...]:
        """Their names; one that has not started yet has none."""
        answer = _call(self._cluster.MemberList, rpc.MemberListRequest())
        return tuple(member.name for member in answer.members)

    def timed_status(self) -> float:
        """Seconds that a question takes which this member answers by itself."""
        return _timed(self.status)

    def timed_read(self, key: str) -> float:
        """Seconds that a linearizable read takes: the leader makes sure that it still is one."""
        return _timed(lambda: _call(self._kv.Range, rpc.RangeRequest(key=key.encode(), limit=1)))

    def oldest_revision(self, key: str, newest: int) -> int:
        """The oldest revision at which ``key`` can be read: compaction went that far. Some forty reads at most."""
        low, high = 1, max(1, newest)
        while low < high:
            middle = (low + high) // 2
            if self._readable(key, middle):
                high = middle
            else:
                low = middle + 1
        return low

    def _readable(self, key: str, revision: int) -> bool:
        request = rpc.RangeRequest(key=key.encode(), limit=1, revision=revision, count_only=True, serializable=True)
        try:
            self._kv.Range(request, timeout=LIMIT)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.OUT_OF_RANGE and "compacted" in error.details():
                return False
            raise _failed(error) from None
        return True


def _call(method: Callable[..., Any], request: Any) -> Any:
    try:
        return method(request, timeout=LIMIT)
    except grpc.RpcError as error:
        raise _failed(error) from None


def _failed(error: Any) -> LockspaceError:
    return LockspaceError(f"{error.code().name.lower().replace('_', ' ')}: {error.details()}")


def _timed(call: Callable[[], object]) -> float:
    begun = boottime()
    call()
    return (boottime() - begun) / SECOND
