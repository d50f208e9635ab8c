"""One resource as this member has it: what etcd holds for it, what the worker believes, what is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from snapd.lockspace.keys import kind
from snapd.lockspace.kv import Operation
from snapd.lockspace.ports import Timer
from snapd.messages import EX, NL, Done


@dataclass(slots=True, eq=False)
class Exclusive:
    """One use of the table without anybody beside it: a snapshot is taken, deleted or invalidated.

    keep False: the transaction that grants it makes the change and leaves CR: nobody ever holds EX.
    keep True: EX is held until ``TableUse.finish``.
    """

    keep: bool
    change: Callable[[], tuple[Operation, ...] | None]
    """What the granting transaction puts besides; asked at the moment it is sent. None: not yet."""
    granted: Callable[[], None]
    withdrawn: Callable[[], None]
    """The ticket is gone without a grant: nothing was changed."""
    finished: Callable[[], None] = lambda: None
    """keep only: the change given to ``TableUse.finish`` is made."""
    ticket: int = 0  # create_revision; 0: not queued yet
    since: int = 0  # when it was queued, or, once held, granted
    held: bool = False
    expired: bool = False
    finish: tuple[Operation, ...] | None = None


class Entry:
    """See the module. Modes are NL, CR, EX.

    hold, token     in etcd, as far as answers and mirror have told
    given           what the worker was granted and has not given back: never more than ``hold``
    want            what the worker waits for, NL if for nothing
    ticket          create_revision of our ticket, 0: none; ticket_mode: what it is for
    refused         a release was refused once, by a counter that is not yet known to have moved
    done            what the worker gave back and etcd was not told yet
    told            a tail's: its token, and the most that the worker said it has committed under it
    busy            a transaction about it is under way: one at a time
    quiet           until when nothing is tried: a condition failed that should have held
    revoked         what the worker was asked to come down to, None if it was not asked
    leaving_since   when it was asked for what it has given back and etcd was not told yet; 0: it was not asked
    """

    __slots__ = (
        "busy", "done", "given", "given_at", "hold", "kind", "leaving_since", "quiet", "refused", "resource",
        "revoke_timer", "revoked", "revoked_at", "ticket", "ticket_mode", "timer", "token", "told", "want",
        "want_since",
    )  # fmt: skip

    def __init__(self, resource: str) -> None:
        self.resource = resource
        self.kind = kind(resource)
        self.hold = self.token = self.given = self.want = self.ticket = self.ticket_mode = NL
        self.want_since = self.given_at = self.revoked_at = self.leaving_since = self.quiet = 0
        self.done: Done | None = None
        self.told = (0, 0)
        self.busy = self.refused = False
        self.revoked: int | None = None
        self.revoke_timer: Timer | None = None
        self.timer: Timer | None = None

    @property
    def conflicting(self) -> int:
        """The least mode of another's ticket that conflicts with what the worker has."""
        return 1 if self.given == EX else EX

    @property
    def unused(self) -> bool:
        """Nothing is known of it: it can be forgotten."""
        return not (self.hold or self.given or self.want or self.ticket or self.done or self.busy)
