"""Which etcd may keep our locks.

Below 3.5.13 a member that was cut off can renew leases that the others have ended, and a lease can outlive its
keys or the other way round; below 3.5.23 a keepalive may succeed on a lease that is gone. Both break locks.
"""

from __future__ import annotations

import re

from snapd.errors import Refused

OLDEST = (3, 5, 13)  # refused below
SOUND = (3, 5, 23)  # warned below


def check_version(version: str, allow_old: bool = False) -> str:
    """Return a warning, empty if there is nothing to warn of. Raises Refused for an etcd too old to be trusted."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        raise Refused(f"etcd says it has version {version!r}, expected something like 3.5.23")
    numbers = tuple(int(part) for part in match.groups())
    if numbers >= SOUND:
        return ""
    if numbers >= OLDEST:
        return f"etcd {version} has lease bugs that {_dotted(SOUND)} has not: upgrade it"
    if allow_old:
        return f"etcd {version} has lease bugs that can break locks; used because the configuration allows it"
    raise Refused(
        f"etcd {version} has lease bugs that break locks, expected at least {_dotted(OLDEST)} (or allow_old_etcd)"
    )


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in numbers)
