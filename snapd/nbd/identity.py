"""Which volume's origin an export is, in its description: a client that reconnects holds it against the one it had."""

from __future__ import annotations

import re

UNNAMED = "the volume's origin"
"""What daemons said of it before they named the volume; one may still run when the attach program is a newer one."""

_NAMED = re.compile(r"origin of volume .*, cluster_uuid ([0-9a-f-]{36})", re.DOTALL)


def describe(name: str, cluster_uuid: str) -> str:
    """Return the origin's description: the name for people, the uuid for programs."""
    return f"origin of volume {name}, cluster_uuid {cluster_uuid}"


def is_of(description: str, cluster_uuid: str) -> bool:
    """Whether it describes that volume's origin, or is an older daemon's, which does not say."""
    match = _NAMED.fullmatch(description)
    return match[1] == cluster_uuid if match else description == UNNAMED
