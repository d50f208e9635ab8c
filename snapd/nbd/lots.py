"""Requests counted by the lot: those of one operation and length that one look at a connection has brought.

They were received at the same instant, and what is answered in one turn of the loop is answered at the same instant
too: so all of a lot that one turn answers took equally long, and are counted together. A request itself costs one
comparison, one entry in its lot's list, and one increment when it is answered (docs/performance.md has the figures).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from snapd.counters import BUCKETS, BYTES, HISTOGRAM, SUM
from snapd.volume.request import Request

LAST = BUCKETS - 1
KEPT = 32
"""Requests that are gone and may be kept in a lot whose others are not answered."""


class Lot:
    """answered: in this turn; gone: in all turns before, or taken back. ``row``: of the counters page."""

    __slots__ = ("answered", "gone", "length", "requests", "row", "started")

    def __init__(self, row: int, length: int, started: int) -> None:
        self.row = row
        self.length = length
        self.started = started
        self.requests: list[Request] = []  # those with ``started`` 0 are answered
        self.answered = 0
        self.gone = 0


class Lots:
    """All lots with an unanswered request, oldest first; and ``fresh``: those of which this turn has answered some."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._order: deque[Lot] = deque()
        self.fresh: list[Lot] = []

    def open(self, row: int, length: int, started: int) -> Lot:
        """A new lot; whoever opens it appends to its ``requests``."""
        lot = Lot(row, length, started)
        self._order.append(lot)
        return lot

    def settle(self, now: int) -> None:
        """Count what was answered in this turn. At least one of a lot's requests is in it by now."""
        words = self._words
        fresh, self.fresh = self.fresh, []
        for lot in fresh:
            row, count, took = lot.row, lot.answered, now - lot.started
            lot.answered = 0
            words[row] += count
            words[row + BYTES] += count * lot.length
            words[row + SUM] += count * took
            bucket = took.bit_length()
            words[row + HISTOGRAM + (bucket if bucket < LAST else LAST)] += count
            gone, requests = lot.gone + count, lot.requests
            if gone == len(requests):
                requests.clear()  # they know the lot: nothing is left for the garbage collector to find
                gone = 0
            elif gone > KEPT and len(requests) < 2 * gone:
                lot.requests = [request for request in requests if request.started]
                gone = 0
            lot.gone = gone

    def oldest(self) -> int:
        """Return when the oldest unanswered request was received; 0: there is none."""
        order = self._order
        while order:
            lot = order[0]
            if len(lot.requests) > lot.gone:
                return lot.started
            order.popleft().requests.clear()
        return 0

    def unanswered(self) -> Iterator[Request]:
        """Requests that are not answered, oldest first."""
        return (request for lot in self._order for request in lot.requests if request.started)
