"""``fence-confirm`` of the admin socket: a person says that a dead member writes no more."""

from __future__ import annotations

from typing import Any

from snapd.daemon.admin import Reply
from snapd.daemon.loop import Loop
from snapd.errors import CsnapError, LockspaceError, Refused
from snapd.lockspace.member import Member
from snapd.units import SECOND

LIMIT = 8 * SECOND
"""For one transaction whose outcome may stay unknown."""


def confirm(member: Member | None, loop: Loop, request: dict[str, Any], reply: Reply) -> None:
    """Raises CsnapError."""
    node = request.get("node")
    if not isinstance(node, str):
        raise Refused("fence confirm: expected a member's name")
    if member is None:
        raise Refused("this host is only starting: ask another host, or wait")

    def done(error: CsnapError | None) -> None:
        timer.cancel()
        if error is None:
            reply.result({"node": node})
        else:
            reply.error(error)

    def late() -> None:
        reply.error(LockspaceError("etcd has not said whether it was done: look at csnap status"))

    timer = loop.call_later(LIMIT, late)
    try:
        member.confirm_fenced(node, done)
    except CsnapError:
        timer.cancel()
        raise
    reply.progress(f"marking {node} as fenced")
