"""Method ``watchdog`` on this host: it is armed before the worker may do I/O, and told each new deadline.

The helper pets it while the deadline lies ahead (helper/petter.py); a deadline of 0, when the lease or a/<n> is gone,
stops that at once. It is disarmed when the worker has ended: nothing of this host can reach the disk then.
*A killed control process disarms nothing: csnap is started again within the watchdog's timeout, or the host resets.*
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from snapd.daemon.background import in_thread
from snapd.daemon.gate import Gate, Ready, Sink
from snapd.daemon.log import Log
from snapd.daemon.loop import Loop
from snapd.errors import CsnapError
from snapd.helper.client import Helper
from snapd.lockspace.member import Member
from snapd.lockspace.ports import ERROR, NOTICE, WARNING
from snapd.messages import Grant, Message

DISARM_LIMIT = 2.0
"""Seconds."""


class WatchdogGuard:
    """See ``fencing.Guard``."""

    def __init__(
        self,
        loop: Loop,
        sink: Sink,
        log: Log,
        told: Callable[[Message], None],
        helper: Helper,
        fence_key: str,
    ) -> None:
        self.fence_key = fence_key
        self.member: Member | None = None
        self._loop, self._sink, self._log, self._helper = loop, sink, log, helper
        self._gate = Gate(loop, sink, told, self._prepare)
        self.send = self._gate.send
        self._deadline = 0
        self._busy = self._armed = self._failing = False
        self._waiting: Ready | None = None

    def set_deadline(self, deadline: int) -> None:
        self._sink.set_deadline(deadline)
        self._deadline = deadline
        self._pet()

    def _pet(self) -> None:
        """One request at a time, so that no older deadline follows a newer one."""
        if self._busy or not (self._deadline or self._armed):
            return
        self._busy = True
        deadline = self._deadline

        def told(outcome: dict[str, Any] | CsnapError) -> None:
            self._busy = False
            self._told(outcome)
            if deadline != self._deadline:
                self._pet()

        in_thread(self._loop, lambda: self._helper.ask("pet", deadline=deadline), told)

    def _told(self, outcome: dict[str, Any] | CsnapError) -> None:
        waiting, self._waiting = self._waiting, None
        if isinstance(outcome, CsnapError):
            if not self._failing:
                self._log(ERROR, "watchdog_failed", {"error": outcome})
            self._failing = True
            if waiting is not None:
                waiting(f"fencing: {outcome}")
            return
        self._failing = False
        if not self._armed:
            self._armed = True
            self._log(NOTICE, "watchdog_armed", outcome)
            if outcome["nowayout"]:
                why = "nowayout: stopping csnap resets this host, unless it is started again in time"
                self._log(WARNING, "watchdog_cannot_be_disarmed", {"why": why})
        if waiting is not None:
            waiting("")

    def _prepare(self, grant: Grant, ready: Ready) -> bool:
        if self._armed:
            return True
        self._waiting = ready
        self._pet()
        return False

    def before_format(self, device: str) -> None: ...

    def left(self, done: Callable[[], None]) -> None:
        done()

    def close(self, worker_ended: bool) -> None:
        if not worker_ended:
            self._log(ERROR, "watchdog_left_armed", {"why": "the worker has not ended: it may still write"})
            return
        try:
            disarmed = Helper(self._helper.path, DISARM_LIMIT).ask("disarm")["disarmed"]
        except CsnapError as error:
            self._log(WARNING, "watchdog_left_armed", {"why": error})
            return
        if self._armed:
            self._log(NOTICE, "watchdog_disarmed" if disarmed else "watchdog_left_armed", {})

    def preempt(self, victim: str, ended: Callable[[str, bool], None]) -> None:
        ended("this method has no reservations", False)

    def tidy(self, key: str) -> None: ...
