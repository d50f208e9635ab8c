"""Clusters for the live tests: three daemons, fenced by an agent that can be made to fail, scraped by a Prometheus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.monitoring.prometheus import Prometheus, scraping
from tests.support.daemons import Hosts

SLOW_MACHINE = {"CsnapLeaseRunningOut", "CsnapLeaseRenewFailing", "CsnapLockWaitSlow"}
"""What may fire beside what is provoked, where twenty other processes want these two cores."""


NOT_HERE = {
    "CsnapRereadStorm": "20 re-reads a second on one host, for a while, are 60 hand-overs of regions a second among "
    "three: two idle cores do it, two shared ones do not. test_live_fleet.py sees its series move, promtool the rest",
}
"""Alerts that these tests do not provoke, and why."""


class Agent:
    """A fence agent: it succeeds, and has switched nothing off, unless it is told to fail."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "fence_nobody"
        self._trigger = directory / "fails"
        self.path.write_text(f"#!/bin/sh\ncat > /dev/null\ntest ! -e {self._trigger}\n")
        self.path.chmod(0o755)

    def fail(self) -> None:
        self._trigger.touch()

    def succeed(self) -> None:
        self._trigger.unlink()


def fence_by(hosts: Hosts, agent: Agent) -> None:
    """Configure the agent on every host."""
    for host in hosts:
        host.configure("method", '"agent"')
        with open(host.config, "a") as config:  # its last section is [fencing]
            config.write(f"agent = {json.dumps(str(agent.path))}\ntimeout = 10\n")


@contextmanager
def watched(hosts: Hosts, directory: Path) -> Iterator[Prometheus]:
    """Start the hosts; yield the Prometheus that scrapes them."""
    hosts.start()
    with scraping(hosts, directory) as prometheus:
        yield prometheus
