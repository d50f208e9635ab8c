"""[fencing]: method; for "agent": agent, timeout, [fencing.options], [fencing.hosts.<node>];
for "watchdog": device, watchdog_timeout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from snapd.config.checks import NAME, absolute, whole
from snapd.config.table import Table

FENCE_TIMEOUT_MOST = 3600

WATCHDOG_LEAST, WATCHDOG_MOST = 2, 600
"""Seconds: what survivors wait besides the lease, and what a busy host may take between two pets."""

METHODS = ("unsafe", "agent", "scsi-pr", "watchdog")


@dataclass(frozen=True, slots=True)
class FencingConfig:
    """``options`` and ``hosts`` are what the agent reads; they may be secret and are never shown."""

    method: str
    agent: str
    timeout: int  # seconds
    options: dict[str, str] = field(repr=False)
    hosts: dict[str, dict[str, str]] = field(repr=False)
    device: str = "/dev/watchdog"
    watchdog_timeout: int = 15  # seconds

    @property
    def privileged(self) -> bool:
        """Whether it needs the helper."""
        return self.method in ("scsi-pr", "watchdog")


def known_method(value: Any) -> str:
    if value not in METHODS:
        raise ValueError(f"expected one of {', '.join(METHODS)}")
    return str(value)


def read(table: Table) -> FencingConfig:
    method = table.get(
        "method", known_method, why=f": how dead hosts are kept from the disk; one of {', '.join(METHODS)}"
    )
    agent = table.get("agent", absolute, "")
    timeout = table.get("timeout", whole(1, FENCE_TIMEOUT_MOST, "seconds"), 60)
    options = table.table("options", optional=True).texts()
    device = table.get("device", absolute, "/dev/watchdog")
    watchdog_timeout = table.get("watchdog_timeout", whole(WATCHDOG_LEAST, WATCHDOG_MOST, "seconds"), 15)
    by_host = table.table("hosts", optional=True)
    hosts = {name: by_host.table(name).texts() for name in by_host.names()}
    table.finish()
    if method == "agent" and not agent:
        raise table.error("agent", 'missing: method "agent" needs the path of a fence agent')
    for name in hosts:
        if not NAME.fullmatch(name):
            raise table.error(f"hosts.{name}", "expected the name of a node")
    return FencingConfig(method, agent, timeout, options, hosts, device, watchdog_timeout)
