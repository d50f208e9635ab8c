"""Fencing by SCSI-3 or NVMe persistent reservations: the dead member's key is preempted on every device.

    1. on each device of the volume: this host's own key is there, else *we* are fenced, and end
    2. PREEMPT_ABORT of the dead member's key: its commands end, and every later write of its host gets EBADE
    3. a reservation is made sure of: without one, everybody may write

Idempotent: a key that is gone already is success, so a second survivor, or a second attempt, finishes what a first one
began. A device that does not answer is a failure, and everything is tried again: a member that may still write to one
device is not fenced. Its host's *reads* go on; a late answer is stopped by its own deadline (worker).

A member that leaves while others are there may leave its key behind (daemon/registering.py says why): whoever sees its
record go removes it, without abort. Once is enough, and a failure harms nobody: a path stays registered.

The key is derived from the incarnation, so a member that came back meanwhile is not hit: its path has another key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from snapd.lockspace.fencing.keys import is_reservation_key
from snapd.lockspace.fencing.retrying import Attempts
from snapd.lockspace.ports import NOTICE, WARNING, Effects, Timers
from snapd.lockspace.records import MemberRecord


class Preempter(Protocol):
    """Who can do it on every device of the volume: the daemon, by its helper."""

    def preempt(self, victim: str, ended: Callable[[str, bool], None]) -> None:
        """``ended(error, aborted)``, once: "" when the key is on no device any more."""

    def tidy(self, key: str) -> None:
        """Remove the key of a member that has gone, as far as it is there."""


class ScsiPr:
    """See the module."""

    method = "scsi-pr"

    def __init__(self, preempter: Preempter, timers: Timers, effects: Effects) -> None:
        self._preempter, self._effects = preempter, effects
        attempts = Attempts(self.method, timers, effects, self._attempt)
        self.fence, self.forget = attempts.fence, attempts.forget

    def left(self, record: MemberRecord) -> None:
        if is_reservation_key(record.fence_key):
            self._preempter.tidy(record.fence_key)

    def _attempt(self, record: MemberRecord, ended: Callable[[str], None]) -> None:
        if not is_reservation_key(record.fence_key):
            ended(
                f"{record.node} has joined without a reservation key: it runs another fencing method;"
                " switch it off, then csnap fence confirm"
            )
            return

        def answered(error: str, aborted: bool) -> None:
            fields: dict[str, object] = {"target": record.node, "key": record.fence_key}
            if not error and not aborted:
                why = "the device knows no preempt-and-abort: what it had accepted may still be written"
                self._effects.log(WARNING, "fence_without_abort", {**fields, "why": why})
            elif not error:
                self._effects.log(NOTICE, "key_preempted", fields)
            ended(error)

        self._preempter.preempt(record.fence_key, answered)
