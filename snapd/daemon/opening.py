"""Between the worker's Hello and joining: find etcd, judge its version, compare the volume's record with the origin.

An etcd that does not answer is waited for; what can only be put right by a person is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from snapd.cluster.volume import check_origin, read_format
from snapd.config import Config
from snapd.daemon.log import Log
from snapd.errors import CsnapError, LockspaceError, Refused
from snapd.lockspace.kv import Failure, Kv, Status
from snapd.lockspace.ports import NOTICE, WARNING, Timers
from snapd.lockspace.records import FormatRecord
from snapd.lockspace.version import check_version
from snapd.messages import Hello
from snapd.units import SECOND

TIMEOUT = 2 * SECOND
AGAIN = SECOND
SAY_AGAIN = 30 * SECOND


class Etcd(Kv, Protocol):
    def status(self, timeout: int, done: Callable[[Status | Failure], None]) -> None: ...


class Opening:
    """``done`` is called once, with the record or what refuses it; ``waits`` with what is waited for."""

    def __init__(
        self,
        config: Config,
        hello: Hello,
        etcd: Etcd,
        timers: Timers,
        log: Log,
        waits: Callable[[str], None],
        done: Callable[[FormatRecord | CsnapError], None],
    ) -> None:
        self._config, self._hello, self._etcd = config, hello, etcd
        self._timers, self._log, self._waits, self._done = timers, log, waits, done
        self._said = 0
        self.warning = ""

    def begin(self) -> None:
        self._etcd.status(TIMEOUT, self._answered)

    def _answered(self, status: Status | Failure) -> None:
        if isinstance(status, Failure):
            self._wait(status.message)
            return
        try:
            self.warning = check_version(status.version, self._config.lockspace.allow_old_etcd)
        except Refused as error:
            self._done(error)
            return
        self._log(NOTICE, "etcd_found", {"version": status.version, "alarms": ",".join(status.alarms)})
        self._read()

    def _read(self) -> None:
        read_format(self._etcd, self._config.volume.cluster_uuid, self._received)

    def _received(self, record: FormatRecord | CsnapError) -> None:
        if isinstance(record, LockspaceError):
            self._wait(str(record))
            return
        if isinstance(record, FormatRecord):
            try:
                check_origin(self._config.volume, record, self._hello.origin_size, self._hello.identity)
            except Refused as error:
                record = error
        self._done(record)

    def _wait(self, why: str) -> None:
        now = self._timers.now()
        self._waits(why)
        if not self._said or now - self._said >= SAY_AGAIN:
            self._said = now
            self._log(WARNING, "waiting_for_etcd", {"error": why})
        self._timers.call_at(now + AGAIN, self.begin)
