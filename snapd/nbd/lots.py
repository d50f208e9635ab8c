"""Requests counted by the lot: those of one operation and length that one look at a connection has brought.

They were received at the same instant, and what is answered in one turn of the loop is answered at the same instant
too: so all of a lot that one turn answers took equally long, and are counted together. A request itself costs one
comparison when it comes, and one increment when it is answered (docs/performance.md has the figures).
"""

from __future__ import annotations

from collections import deque

from snapd.counters import BUCKETS, BYTES, HISTOGRAM, SUM

LAST = BUCKETS - 1


class Lot:
    """answered: requests answered in this turn; left: those not answered in any turn before. ``row``: of the page."""

    __slots__ = ("answered", "left", "length", "row", "started")

    def __init__(self, row: int, length: int, started: int) -> None:
        self.row = row
        self.length = length
        self.started = started
        self.left = 0
        self.answered = 0


class Lots:
    """``order``: lots with unanswered requests, oldest first; ``fresh``: those of which this turn has answered some."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self.order: deque[Lot] = deque()
        self.fresh: list[Lot] = []

    def settle(self, now: int) -> None:
        """Count what was answered in this turn, which ends."""
        words, order = self._words, self.order
        for lot in self.fresh:
            row, count, took = lot.row, lot.answered, now - lot.started
            bucket = took.bit_length()
            words[row] += count
            words[row + BYTES] += count * lot.length
            words[row + SUM] += count * took
            words[row + HISTOGRAM + (bucket if bucket < LAST else LAST)] += count
            lot.answered = 0
            lot.left -= count
        self.fresh.clear()
        while order and not order[0].left:
            order.popleft()

    def inflight(self) -> int:
        """Requests received and not answered."""
        return sum(lot.left - lot.answered for lot in self.order)

    def oldest(self) -> int:
        """Return when the oldest unanswered request was received; 0: there is none."""
        return next((lot.started for lot in self.order if lot.left > lot.answered), 0)
