"""The end of a daemon that is told to stop: what happens when, and what it leaves to the next one.

t = 0 the signal; the worker answers what it has got, by 6 s at the latest by failing what waits (2 s without a lease),
and ends by 8 s; then leaving has until LEAVE_END; at STOP_LIMIT the process ends.

    until  8.3 s  WORKER_END   the worker has stopped, or is killed and nothing is released
    until  9.1 s  LEAVE_END    everything is released, or left to recovery
    until  9.3 s  STOP_LIMIT   out
    until  9.8 s  KEEP_END     the clients are handed over, if there are any; closing takes a moment

Under systemd the worker hands its clients over: what waits for a lock does not fail, but waits in the next process.
What a death at each step leaves of that:

    1. the worker is at a request boundary, sends the sockets and their state, then Stopped.  Before: sockets break.
    2. every lock is released and the record is gone.          Before, or not clean: this process closes the sockets.
    3. systemd has the sockets, and last the state.            Before: sockets without state, which are shut down.
    4. the next process has had systemd forget them.           Before: the one after it finds the same, untouched.
    5. its worker has them and serves.                         From 4. on they are this process's alone: they break.
"""

from __future__ import annotations

from collections.abc import Callable

from snapd.daemon.fdstore import FdStore
from snapd.daemon.fencing import Guard
from snapd.daemon.log import Log
from snapd.daemon.loop import Loop, Timer
from snapd.daemon.workerproc import Worker
from snapd.lockspace.member import Member
from snapd.lockspace.ports import ERROR, NOTICE, WARNING
from snapd.messages import Stop
from snapd.units import SECOND

WORKER_END = 83 * SECOND // 10
LEAVE_END = 91 * SECOND // 10
LEAVE_LIMIT = 5 * SECOND
"""An etcd that has not answered for so long does not in the next seconds either."""

STOP_LIMIT = 93 * SECOND // 10
KEEP_END = 98 * SECOND // 10
KEEP_LEAST, KEEP_LIMIT = 0.1, 4.0
"""Seconds: for a stop that is late already, and for one that has time left: systemd may be busy."""


class Ending:
    """``begun`` tells whether it is under way, ``clean`` whether every lock was released, or none was ever held."""

    def __init__(self, loop: Loop, log: Log, store: FdStore | None) -> None:
        self._loop, self._log, self._store = loop, log, store
        self._since = 0
        self._worker: Worker | None = None
        self._timer: Timer | None = None
        self._out: Callable[[], None] = lambda: None
        self.left = False
        self.clean = False
        self.let_go = False

    @property
    def begun(self) -> bool:
        return self._since > 0

    def begin(self, worker: Worker | None, hand_over: bool) -> None:
        """``hand_over``: there may be a next process soon."""
        self._since = self._loop.now()
        self._worker = worker
        if worker is None or not worker.alive:
            self._loop.stop()
            return
        worker.send(Stop(hand_over and self._store is not None))
        self._timer = self._loop.call_later(WORKER_END, self._worker_hangs)
        self._loop.call_later(STOP_LIMIT, self._loop.stop)

    def _worker_hangs(self) -> None:
        assert self._worker is not None
        self._log(ERROR, "worker_does_not_stop", {"pid": self._worker.pid})
        self._worker.kill()  # its death is an error: nothing was released, and recovery has to do it

    def worker_stopped(self, member: Member | None, guard: Guard | None) -> None:
        """Stopped: nothing is in flight and nothing is used any more."""
        if self._timer is not None:
            self._timer.cancel()
        if member is None:  # it has not joined
            self.clean = True
            return
        left = self._since + LEAVE_END - self._loop.now()
        member.leave(lambda clean: self._gone(clean, guard), max(SECOND // 2, min(LEAVE_LIMIT, left)))

    def _gone(self, clean: bool, guard: Guard | None) -> None:
        self.left, self.clean = True, clean
        if not clean:
            self._log(WARNING, "not_released", {"why": "etcd did not answer in time; others, or the next start, will"})
        if clean and guard is not None:
            guard.left(self._leave)
        else:
            self._leave()

    def _leave(self) -> None:
        self.let_go = True
        if self._worker is None or not self._worker.alive:
            self._loop.stop()

    def hand_over(self) -> None:
        """After the loop, if the stop was no error: leave the clients to the next process, if that is right."""
        if self._worker is None or self._store is None or not self.clean:
            return
        descriptors = self._worker.handed_over()
        if descriptors:
            left = (self._since + KEEP_END - self._loop.now()) / SECOND
            kept = self._store.keep(descriptors, max(KEEP_LEAST, min(left, KEEP_LIMIT)))
            self._log(NOTICE if kept else WARNING, "handed_over", {"descriptors": len(descriptors), "confirmed": kept})
