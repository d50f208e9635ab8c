"""[lockspace]: endpoints; optional: lease_ttl, freeze_limit, ca, cert, key, allow_old_etcd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from snapd.config.checks import boolean, whole
from snapd.config.credentials import secret
from snapd.config.table import Table, shown
from snapd.units import SECOND

TTL_LEAST, TTL_MOST = 2, 300
"""Seconds. Below 2 nothing is left of a lease after the margin of one second; above, an outage is a long one."""

FREEZE_MOST = 300


@dataclass(frozen=True, slots=True)
class LockspaceConfig:
    """``lease_ttl`` in seconds, as etcd counts; ``freeze_limit`` in nanoseconds; paths may be empty."""

    endpoints: tuple[str, ...]
    lease_ttl: int
    freeze_limit: int
    ca: str
    cert: str
    key: str
    allow_old_etcd: bool


def freeze_limit(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= FREEZE_MOST:
        raise ValueError(f"expected seconds, more than 0 and at most {FREEZE_MOST}")
    return int(value * SECOND)


def endpoints(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError('expected a list like ["https://10.0.0.1:2379"]')
    for endpoint in value:
        try:
            url = urlsplit(endpoint)
            good = url.scheme in ("http", "https") and url.hostname and url.port and url.path in ("", "/")
        except (ValueError, TypeError, AttributeError):
            good = False
        if not good or "@" in endpoint:
            raise ValueError(f"{shown(endpoint)} is no endpoint, expected http(s)://host:port")
    return tuple(value)


def read(table: Table, volume: str) -> LockspaceConfig:
    lockspace = LockspaceConfig(
        endpoints=table.get("endpoints", endpoints),
        lease_ttl=table.get("lease_ttl", whole(TTL_LEAST, TTL_MOST, "seconds"), 10),
        freeze_limit=table.get("freeze_limit", freeze_limit, 5 * SECOND),
        ca=table.get("ca", secret(volume), ""),
        cert=table.get("cert", secret(volume), ""),
        key=table.get("key", secret(volume), ""),
        allow_old_etcd=table.get("allow_old_etcd", boolean, False),
    )
    table.finish()
    if bool(lockspace.cert) != bool(lockspace.key):
        missing = "key" if lockspace.cert else "cert"
        raise table.error(missing, "missing: a client certificate needs both cert and key")
    plain = [endpoint for endpoint in lockspace.endpoints if endpoint.startswith("http:")]
    if (lockspace.ca or lockspace.cert) and plain:
        raise table.error("endpoints", "expected https:// because ca or cert is set", plain[0])
    return lockspace
