"""Trying a fencing again and again, loudly, on the owner's timers. For methods whose attempts are asynchronous."""

from __future__ import annotations

from collections.abc import Callable

from snapd.lockspace.ports import ERROR, Effects, Timers
from snapd.lockspace.records import MemberRecord
from snapd.units import SECOND

PAUSE_FIRST, PAUSE_MOST = SECOND, 30 * SECOND

Attempt = Callable[[MemberRecord, Callable[[str], None]], None]
"""``attempt(record, ended)``: ``ended("")`` when the member is fenced, else with what failed."""


class Attempts:
    """One for a method. ``fence`` and ``forget`` are ``Fencer``'s."""

    def __init__(self, method: str, timers: Timers, effects: Effects, attempt: Attempt) -> None:
        self._method, self._timers, self._effects, self._attempt = method, timers, effects, attempt
        self._wanted: dict[str, Callable[[], None]] = {}  # by incarnation

    def fence(self, record: MemberRecord, done: Callable[[], None]) -> None:
        running = record.incarnation in self._wanted
        self._wanted[record.incarnation] = done
        if not running:
            self._try(record, 1)

    def forget(self, record: MemberRecord) -> None:
        self._wanted.pop(record.incarnation, None)

    def _try(self, record: MemberRecord, number: int) -> None:
        if record.incarnation not in self._wanted:
            return

        def ended(error: str) -> None:
            if not error:
                done = self._wanted.pop(record.incarnation, None)
                if done is not None:
                    done()
                return
            labels = {"target": record.node, "method": self._method, "result": "failed"}
            self._effects.observe("fence_events_total", labels, 1)
            self._effects.log(ERROR, "fence_failed", {"target": record.node, "attempt": number, "error": error})
            pause = min(PAUSE_FIRST << min(number - 1, 5), PAUSE_MOST)
            self._timers.call_at(self._timers.now() + pause, lambda: self._try(record, number + 1))

        self._attempt(record, ended)
