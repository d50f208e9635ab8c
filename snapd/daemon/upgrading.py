"""``csnap volume upgrade``: what the daemon answers, and what ``csnap status`` says of versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from snapd.daemon.admin import Reply
from snapd.errors import CsnapError, Refused
from snapd.lockspace.member import Member, MemberRow
from snapd.lockspace.protocol import Speaks


def upgrade(member: Member | None, reply: Reply) -> None:
    """Raise the protocol in force by one. Raises CsnapError."""
    if member is None:
        raise Refused("this host has not joined yet: ask another host, or wait")
    before = member.protocol

    def done(outcome: int | CsnapError) -> None:
        if isinstance(outcome, CsnapError):
            reply.error(outcome)
        else:
            reply.result({"protocol": outcome, "was": before})

    reply.progress("asking every member's record")
    member.upgrade(done)


def described(member: Member | None, rows: Sequence[MemberRow]) -> dict[str, Any]:
    """``in_force`` 0: not known yet. ``spoken_by_all``: the newest that every member record says it speaks."""
    ours = Speaks()
    return {
        "in_force": member.protocol if member is not None else 0,
        "oldest": ours.oldest,
        "newest": ours.newest,
        "spoken_by_all": min((row.speaks.newest if row.speaks is not None else 0 for row in rows), default=0),
    }
