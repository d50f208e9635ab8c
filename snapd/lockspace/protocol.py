"""Which protocol the members of a volume speak to one another in etcd, and how it is changed while they live.

    format.protocol    the protocol in force. Everybody writes keys and records in its shape, whatever else they know,
                       so everybody can read everything, and parsers stay strict
    m/<node>           says what that member speaks, oldest to newest, in its field ``address``: the one text that
                       every protocol has and that no parser refuses. A record that does not say it speaks 1

A member joins only if it speaks what is in force, under a compare on ``format`` as it saw it. The protocol is raised
by a person (``csnap volume upgrade``), one at a time, when every member record says that it speaks it, under a compare
that says that no record has changed since (raising.py). By a person, because there is no way back: hosts that do not
speak it are refused from then on, so a roll that fails half way could not be rolled back.

    1    csnap 0.1.0. It does not compare ``format`` when it joins, but looks at it when it starts: one that started
         before protocol 2 came into force and joins after is a member that cannot read the others' records. So
         protocol 2 may add nothing that anybody's data depends on; and before 3, no csnap 0.1 may be starting still
    2    m/<node> has ``started``. From here on joining compares
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache

from snapd import __version__
from snapd.errors import FormatError, Refused

OLDEST, NEWEST = 1, 2
"""What this csnap speaks."""

STARTED = 2
"""The protocol in which member records say since when."""

_TEXT = re.compile(r"csnap (\S{1,40}) protocol (\d{1,9})-(\d{1,9})(?: .*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Speaks:
    """What one member speaks. ``version`` of its csnap is for people; empty: it does not say."""

    oldest: int = OLDEST
    newest: int = NEWEST
    version: str = __version__

    def to_text(self) -> str:
        return f"csnap {self.version} protocol {self.oldest}-{self.newest}"

    @classmethod
    def from_text(cls, text: str) -> Speaks:
        """Of a member record's ``address``. What says nothing of it is a member of protocol 1."""
        match = _TEXT.fullmatch(text)
        return cls(int(match[2]), int(match[3]), match[1]) if match else cls(1, 1, "")

    def __contains__(self, protocol: int) -> bool:
        return self.oldest <= protocol <= self.newest

    def __str__(self) -> str:
        who = f"csnap {self.version}" if self.version else "a csnap of 0.1"
        return f"{who}, which speaks protocol {self.shown}"

    @property
    def shown(self) -> str:
        return f"{self.oldest}" if self.oldest == self.newest else f"{self.oldest} to {self.newest}"


@lru_cache(maxsize=16)  # it is looked at whenever something changes
def in_force(key: str, value: bytes | None) -> int:
    """The protocol that ``format`` names, whatever else a newer csnap may have put there; absent: 1.

    Raises FormatError.
    """
    if value is None:
        return 1
    try:
        protocol = json.loads(value)["protocol"]
    except (ValueError, TypeError, KeyError, RecursionError):
        protocol = None
    if type(protocol) is not int or protocol < 1:
        raise FormatError(f"{key}: {value[:80]!r}: expected JSON, an object with a protocol from 1")
    return protocol


def check_spoken(node: str, speaks: Speaks, protocol: int) -> None:
    """Raise Refused unless a member that speaks this may join."""
    if protocol in speaks:
        return
    if protocol > speaks.newest:
        what = f"install a csnap here that speaks {protocol}"
    else:
        what = f"run csnap volume upgrade on a member until {speaks.oldest} is in force, or install an older csnap here"
    raise Refused(f"node {node} has {speaks}; protocol {protocol} is in force in this volume: {what}")
