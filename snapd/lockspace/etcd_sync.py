"""etcd for the command line and for start-up: calls that block, over the same driver.

What is known not to have happened is tried again, with tenacity, until ``patience`` is over; what may have
happened never is. Before a transaction that writes, a read finds an endpoint that answers, so that one dead endpoint
in the list does not make its outcome ambiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from snapd.errors import Ambiguous, LockspaceError
from snapd.lockspace.etcd import Etcd, Tls
from snapd.lockspace.kv import Failure, KeyValue, Range, RangeResult, Status, Txn, TxnResult
from snapd.lockspace.pages import read_prefix

T = TypeVar("T")

SECOND = 1_000_000_000
ATTEMPT = 2 * SECOND  # one call; then the next endpoint is asked
PATIENCE = 10 * SECOND  # all attempts together
GRACE = 5.0  # seconds beyond ATTEMPT in which gRPC must have reported its own timeout


class CallFailed(LockspaceError):
    """A call failed, and nothing happened. ``again``: it may go better next time."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.no_space = failure.no_space
        self.again = not (failure.no_space or failure.wrong_cluster or failure.refused)


class EtcdSync:
    """Use it as a context manager, or call ``close``. Every call raises LockspaceError, or Ambiguous."""

    def __init__(self, endpoints: Sequence[str], tls: Tls | None = None, patience: int = PATIENCE) -> None:
        self._etcd = Etcd(endpoints, lambda action: action(), tls)
        self._patience = patience

    def __enter__(self) -> EtcdSync:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._etcd.close()

    def range(self, request: Range) -> RangeResult:
        return self._retry(
            RangeResult, lambda done: self._etcd.range(request, ATTEMPT, lambda result, revision: done(result))
        )

    def read_prefix(self, prefix: str) -> tuple[KeyValue, ...]:
        """Return all keys under ``prefix``, of one moment."""
        return self._retry(
            tuple, lambda done: read_prefix(self._etcd, prefix, ATTEMPT, lambda kvs, revision: done(kvs))
        )

    def status(self) -> Status:
        return self._retry(Status, lambda done: self._etcd.status(ATTEMPT, done))

    def txn(self, txn: Txn) -> TxnResult:
        if txn.writes():
            asked = (*txn.compare, *txn.success)[0]  # of a key that this user may read
            self.range(Range(asked.key if not isinstance(asked, Txn) else "\0", limit=1))
        return self._retry(TxnResult, lambda done: self._etcd.txn(txn, ATTEMPT, done))

    def _retry(self, kind: type[T], call: Callable[[Callable[[T | Failure], None]], None]) -> T:
        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, CallFailed) and error.again),
            stop=stop_after_delay(self._patience / SECOND),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            reraise=True,
        )
        answer: T = retrying(self._once, call)
        return answer

    def _once(self, call: Callable[[Callable[[T | Failure], None]], None]) -> T:
        answers: SimpleQueue[T | Failure] = SimpleQueue()
        call(answers.put)
        try:
            answer = answers.get(timeout=ATTEMPT / SECOND + GRACE)
        except Empty:
            raise Ambiguous("etcd: gRPC reported neither an answer nor its own timeout") from None
        if isinstance(answer, Failure):
            raise Ambiguous(answer.message) if answer.ambiguous else CallFailed(answer)
        return answer
