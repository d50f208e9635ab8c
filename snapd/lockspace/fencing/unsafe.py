"""No fencing at all, for tests and the demo: a member that only pauses can wake up and write over others' work."""

from __future__ import annotations

from collections.abc import Callable

from snapd.lockspace.ports import WARNING, Effects
from snapd.lockspace.records import MemberRecord


class Unsafe:
    """Succeeds at once, and says so."""

    method = "unsafe"

    def __init__(self, effects: Effects) -> None:
        self._effects = effects

    def fence(self, record: MemberRecord, done: Callable[[], None]) -> None:
        self._effects.log(WARNING, "fenced_nobody", {"member": record.node, "method": self.method})
        done()

    def forget(self, record: MemberRecord) -> None: ...

    def left(self, record: MemberRecord) -> None: ...
