"""A method of fencing: after it has succeeded, nothing of that member incarnation reaches the LUN any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from snapd.lockspace.records import MemberRecord


class Fencer(Protocol):
    """Implementations retry by themselves for as long as it takes, loudly; ``done`` is called once, on success.

    ``fence`` is idempotent: after a takeover or a doubt it is called again for a member that is fenced already.
    It may take minutes, and ``done`` may be called from inside the call.
    """

    method: str  # as configured and as shown: unsafe, agent, scsi-pr, watchdog

    def fence(self, record: MemberRecord, done: Callable[[], None]) -> None: ...

    def left(self, record: MemberRecord) -> None:
        """This incarnation is no member any more, in order or after its recovery: tidy up what is left of it."""

    def forget(self, record: MemberRecord) -> None:
        """Try no more: somebody else saw to it. ``done`` is not called any more."""
