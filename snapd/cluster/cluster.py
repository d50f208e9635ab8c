"""What an operator asks of a member, and what members ask of one another about snapshots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from snapd.errors import CsnapError
from snapd.lockspace.member import Member

Finished = Callable[[CsnapError | None], None]
"""Called once. None: done. Refused: nothing was changed, and the text says why and which host."""


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """A formatted COW device (header, sidecar, first area zeroed) that is to become a snapshot."""

    name: str
    store: str  # a new uuid
    path: str  # absolute, the same on every host
    identity: str  # hardware identity of the device
    writable: bool
    generation: int


class Cluster:
    """Snapshots of the volume: taken, deleted, invalidated. Registers itself with the member."""

    def __init__(self, member: Member) -> None: ...

    def check_new(self, name: str, identity: str) -> None:
        """Raise Refused if this name or device is in use, before the device is formatted."""

    def take(self, snapshot: NewSnapshot, done: Finished) -> None:
        """Take a snapshot online. On refusal the caller undoes the formatting."""

    def delete(self, name: str, done: Finished) -> None:
        """Delete the only or oldest snapshot, or an invalid one. Its COW device is free afterwards."""
