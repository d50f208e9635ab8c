"""Virtual time: a queue of events, run in order of time and, at one time, in order of arrival. Deterministic."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Timer:
    """A scheduled call; ``cancel`` makes it do nothing."""

    __slots__ = ("callback", "when")

    def __init__(self, when: int, callback: Callable[[], None] | None) -> None:
        self.when = when
        self.callback = callback

    def cancel(self) -> None:
        self.callback = None


class Scheduler:
    """Nanoseconds that pass only when something is run."""

    def __init__(self, start: int = 1_000_000_000) -> None:
        self._now = start
        self._count = 0
        self._heap: list[tuple[int, int, Timer]] = []

    def now(self) -> int:
        return self._now

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer:
        """Call at ``when``, or as soon as possible if that is past; never from inside this call."""
        timer = Timer(max(when, self._now), callback)
        self._count += 1
        heapq.heappush(self._heap, (timer.when, self._count, timer))
        return timer

    def call_later(self, delay: int, callback: Callable[[], None]) -> Timer:
        return self.call_at(self._now + delay, callback)

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.call_at(self._now, callback)

    def step(self, limit: int | None = None) -> bool:
        """Run the next event; False if there is none (at or before ``limit``)."""
        while self._heap and (limit is None or self._heap[0][0] <= limit):
            _, _, timer = heapq.heappop(self._heap)
            callback = timer.callback
            if callback is not None:
                self._now = timer.when
                callback()
                return True
        return False

    def run_until(self, predicate: Callable[[], bool], limit: int = 60_000_000_000) -> None:
        """Run events until ``predicate`` holds; TimeoutError after ``limit`` nanoseconds of virtual time."""
        end = self._now + limit
        while not predicate():
            if not self.step(end):
                self._now = end
                if predicate():
                    return
                raise TimeoutError(f"not true within {limit} ns of virtual time")

    def run_for(self, duration: int) -> None:
        """Run every event of the next ``duration`` nanoseconds."""
        end = self._now + duration
        while self.step(end):
            pass
        self._now = end
