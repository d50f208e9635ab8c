"""One way for a test to use any ``Kv``: calls that wait, and waiting for what the watch brings."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from queue import Empty, SimpleQueue

from snapd.lockspace.etcd import Etcd
from snapd.lockspace.kv import (
    Failure,
    Kv,
    LeaseResult,
    Range,
    RangeResult,
    Txn,
    TxnResult,
    Watch,
    WatchEvents,
    WatchLost,
    WatchProgress,
)
from tests.support.etcd_server import EtcdServer
from tests.support.fake_etcd import FakeEtcd
from tests.support.virtual_time import Scheduler

SECOND = 1_000_000_000
TIMEOUT = 5 * SECOND

LeaseCall = Callable[[int, int, Callable[[LeaseResult | Failure], None]], None]

_names = itertools.count(1)


class Recorder:
    """A watch and everything it notified."""

    def __init__(self) -> None:
        self.notices: list[WatchEvents | WatchProgress | WatchLost] = []
        self.watch: Watch

    def events(self) -> list[tuple[str, bytes, bool]]:
        """Return (key, value, deleted) of every event so far."""
        batches = [notice.events for notice in self.notices if isinstance(notice, WatchEvents)]
        return [(event.kv.key, event.kv.value, event.deleted) for batch in batches for event in batch]

    def lost(self) -> bool:
        return any(isinstance(notice, WatchLost) for notice in self.notices)

    def progressed(self) -> bool:
        return any(isinstance(notice, WatchProgress) for notice in self.notices)


class Rig(ABC):
    """``kv`` is the client under test; ``prefix`` is this rig's own part of the keys."""

    kv: Kv

    def __init__(self) -> None:
        self.prefix = f"/test-{next(_names)}/"

    @abstractmethod
    def wait(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        """Let things happen until ``condition`` holds; TimeoutError."""

    @abstractmethod
    def compact(self, revision: int) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    def run(self, txn: Txn, timeout: int = TIMEOUT) -> TxnResult | Failure:
        answers: list[TxnResult | Failure] = []
        self.kv.txn(txn, timeout, answers.append)
        self.wait(lambda: bool(answers))
        return answers[0]

    def done(self, txn: Txn) -> TxnResult:
        """Run a transaction that must be answered."""
        answer = self.run(txn)
        assert isinstance(answer, TxnResult), answer
        return answer

    def refused(self, txn: Txn) -> Failure:
        """Run a transaction that must be refused; refusals are never ambiguous."""
        answer = self.run(txn)
        assert isinstance(answer, Failure), answer
        assert not answer.ambiguous
        return answer

    def range_or_failure(self, request: Range, timeout: int = TIMEOUT) -> tuple[RangeResult | Failure, int]:
        answers: list[tuple[RangeResult | Failure, int]] = []
        self.kv.range(request, timeout, lambda result, revision: answers.append((result, revision)))
        self.wait(lambda: bool(answers))
        return answers[0]

    def range(self, request: Range) -> tuple[RangeResult, int]:
        result, revision = self.range_or_failure(request)
        assert isinstance(result, RangeResult), result
        return result, revision

    def lease(self, call: LeaseCall, argument: int) -> LeaseResult:
        answers: list[LeaseResult | Failure] = []
        call(argument, TIMEOUT, answers.append)
        self.wait(lambda: bool(answers))
        assert isinstance(answers[0], LeaseResult), answers[0]
        return answers[0]

    def watch(self, prefix: str, start_revision: int) -> Recorder:
        """Open a watch that records."""
        recorder = Recorder()
        recorder.watch = self.kv.watch(prefix, start_revision, recorder.notices.append)
        return recorder


class RealRig(Rig):
    """The driver and a real etcd. This thread is the owner: it runs what is posted while it waits."""

    def __init__(self, server: EtcdServer, urls: list[str] | None = None) -> None:
        super().__init__()
        self.server = server
        self.posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.etcd = Etcd(urls or [server.url], self.posted.put, server.client_tls)
        self.kv: Kv = self.etcd

    def wait(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while not condition():
            try:
                self.posted.get(timeout=max(0.0, end - time.monotonic()))()
            except Empty:
                raise TimeoutError(f"not true within {seconds} s") from None

    def compact(self, revision: int) -> None:
        self.server.compact(revision)

    def close(self) -> None:
        self.etcd.close()


class FakeRig(Rig):
    """The in-memory etcd in virtual time."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()
        self.etcd = FakeEtcd(self.scheduler)
        self.kv: Kv = self.etcd.client("host-a")

    def wait(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        self.scheduler.run_until(condition, int(seconds * SECOND))

    def compact(self, revision: int) -> None:
        self.etcd.compact(revision)

    def close(self) -> None:
        """Nothing runs, nothing is open."""
