"""For whom this host's worker waited: every wait for a lock, with who was in the way, remembered for a while.

The worker's trace knows that a request waited for a region, a tail or the table; the mirror knows who has it. This
joins them: who was in the way is noted when a wait begins, and again whenever somebody asks while it lasts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from snapd.errors import FormatError
from snapd.lockspace.member import Member
from snapd.lockspace.mirror import Mirror
from snapd.lockspace.records import TicketRecord
from snapd.messages import CR, EX, Done, Grant, Message, Revoke, Want

REMEMBERED = 4096
"""Waits that have ended. They are rare: a lock that is cached is not waited for."""


@dataclass(slots=True)
class Wait:
    """Boottime ns; ``until`` 0: it lasts. ``on``: nodes, without those that only queue behind."""

    resource: str
    mode: int
    since: int
    until: int = 0
    on: set[str] = field(default_factory=set)


def blockers(mirror: Mirror, own: str, resource: str, mode: int, before: int = 0) -> set[str]:
    """Nodes but ``own`` whose hold of ``resource`` excludes ``mode``, or whose ticket before ``before`` does.

    before: a create_revision; 0: every ticket that is there is older.
    """
    found = {node for node, held in mirror.holds.get(resource, ()) if node != own and EX in (mode, held)}
    for node, kv in mirror.tickets.get(resource, {}).items():
        if node != own and (not before or kv.create_revision < before):
            try:
                wanted = TicketRecord.from_bytes(kv.key, kv.value).mode
            except FormatError:
                wanted = EX
            if EX in (mode, wanted):
                found.add(node)
    return found


class Waits:
    """Sees what worker and member tell one another. ``member`` is set once it exists."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.member: Member | None = None
        self._now = now
        self._lasting: dict[str, Wait] = {}
        self._ended: deque[Wait] = deque(maxlen=REMEMBERED)

    def received(self, message: Message) -> None:
        """The worker said this, and the member has not been told yet."""
        if isinstance(message, Want):
            self._begin(message.resource, message.mode)
        elif isinstance(message, Done) and message.resource == "table":
            self._begin("table", CR)

    def sending(self, send: Callable[[Message], None]) -> Callable[[Message], None]:
        """Return ``send`` that is watched."""

        def watched(message: Message) -> None:
            if isinstance(message, Grant):
                self._end(message.resource)
            elif isinstance(message, Revoke) and message.resource == "table":
                self._begin("table", CR)  # from here on nothing is admitted
            send(message)

        return watched

    def look(self) -> None:
        """Who is in the way now, of the waits that last."""
        if self.member is not None:
            for wait in self._lasting.values():
                ticket = self.member.resources.entries.get(wait.resource)
                own, before = self.member.settings.node, ticket.ticket if ticket is not None else 0
                wait.on |= blockers(self.member.mirror, own, wait.resource, wait.mode, before)

    def on(self, resource: str, begun: int, ended: int) -> list[str]:
        """Nodes that were in the way of ``resource`` at some time between ``begun`` and ``ended``."""
        found: set[str] = set()
        for wait in (*self._ended, *self._lasting.values()):
            if wait.resource == resource and wait.since <= ended and (not wait.until or wait.until >= begun):
                found |= wait.on
        return sorted(found)

    def _begin(self, resource: str, mode: int) -> None:
        if resource not in self._lasting:
            self._lasting[resource] = Wait(resource, mode, self._now())
            self.look()

    def _end(self, resource: str) -> None:
        wait = self._lasting.pop(resource, None)
        if wait is not None:
            wait.until = self._now()
            if wait.on:
                self._ended.append(wait)
