"""The control process's event loop: the worker's epoll loop with timers, and a door for other threads.

Timers run on CLOCK_BOOTTIME, which goes on while the host is suspended; epoll's own timeout does not. So no wait is
longer than LONGEST_WAIT: after a suspension everything that is due is seen within it.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections import deque
from collections.abc import Callable

from snapd.clock import Clock, boottime
from snapd.units import SECOND
from snapd.worker.loop import READABLE
from snapd.worker.loop import Loop as Descriptors

LONGEST_WAIT = SECOND // 2


class Timer:
    """A scheduled call; ``cancel`` makes it do nothing."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop(Descriptors):
    """``run`` until ``stop``. Everything but ``call_soon_threadsafe`` is for the loop's own thread."""

    def __init__(self, clock: Clock = boottime) -> None:
        super().__init__()
        self._clock = clock
        self._heap: list[tuple[int, int, Timer]] = []
        self._count = 0
        self._running = True
        self._posted: deque[Callable[[], None]] = deque()
        self._door = threading.RLock()
        """Nobody writes to the eventfd's number once it is closed. A signal handler may interrupt its holder."""
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False
        self.register(self._wake, READABLE, self._run_posted)

    def now(self) -> int:
        """Nanoseconds on CLOCK_BOOTTIME."""
        return self._clock()

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer:
        """Call once at ``when`` or soon after, never from inside this call."""
        timer = Timer(callback)
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, timer))
        return timer

    def call_later(self, delay: int, callback: Callable[[], None]) -> Timer:
        return self.call_at(self.now() + delay, callback)

    def call_soon_threadsafe(self, action: Callable[[], None]) -> None:
        """From any thread, or a signal handler: run ``action`` in the loop. RuntimeError when the loop is closed."""
        with self._door:
            if self._closed:
                raise RuntimeError("the loop is closed")
            self._posted.append(action)
            os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Let ``run`` return after this turn."""
        self._running = False

    def run(self) -> None:
        while self._running:
            self.turn(self._pause() / SECOND)
            self._run_due()

    def close(self) -> None:
        """Free the descriptors; what was posted and not run is dropped."""
        with self._door:
            if self._closed:
                return
            self._closed = True
            os.close(self._wake)
            self._epoll.close()

    def _pause(self) -> int:
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)
        if not self._heap:
            return LONGEST_WAIT
        return min(LONGEST_WAIT, max(0, self._heap[0][0] - self._clock()))

    def _run_due(self) -> None:
        """Run what is due now; what it schedules for now waits for the next turn, so descriptors get theirs."""
        now = self._clock()
        last = self._count
        while self._heap and self._heap[0][0] <= now and self._heap[0][1] <= last:
            timer = heapq.heappop(self._heap)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()

    def _run_posted(self, events: int) -> None:
        os.eventfd_read(self._wake)
        for _ in range(len(self._posted)):
            self._posted.popleft()()
