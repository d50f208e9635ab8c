"""What a member record tells whoever has to fence that member: its ``fence_key``.

scsi-pr    16 hexadecimal digits: the key that its paths are registered with
watchdog   "watchdog:<timeout>:<ttl>": the most seconds its watchdog gives it, and the TTL that it asks for
others     empty
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from snapd.errors import FormatError


def reservation_key(incarnation: str) -> str:
    """Return the 64-bit key of an incarnation: never 0, which means "no key"."""
    digest = hashlib.sha256(incarnation.encode()).hexdigest()[:16]
    return digest if int(digest, 16) else "1".rjust(16, "0")


def is_reservation_key(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{16}", text, re.ASCII) is not None and int(text, 16) != 0


@dataclass(frozen=True, slots=True)
class WatchdogPromise:
    """Seconds."""

    timeout: int
    ttl: int

    def to_text(self) -> str:
        return f"watchdog:{self.timeout}:{self.ttl}"

    @classmethod
    def from_text(cls, text: str) -> WatchdogPromise:
        """Raises FormatError."""
        match = re.fullmatch(r"watchdog:(\d{1,5}):(\d{1,5})", text, re.ASCII)
        if match is None or not int(match[1]) or not int(match[2]):
            raise FormatError(f"fence key {text[:40]!r}: expected watchdog:<seconds>:<seconds>: it has no watchdog")
        return cls(int(match[1]), int(match[2]))
