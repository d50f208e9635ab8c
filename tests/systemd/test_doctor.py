"""``csnap doctor`` on a host with a real systemd: the unit as csnap brings it, and with a drop-in that undoes it."""

from __future__ import annotations

import json
import os

import pytest

from tests.systemd.booted import Host
from tests.systemd.conftest import CSNAP, Configure

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="boots a systemd: needs root"),
    pytest.mark.timeout(180),
]


def examined(host: Host) -> dict[tuple[str, str], dict[str, str]]:
    ended = host.call(CSNAP, "doctor", "demo", "--json")
    findings = json.loads(ended.stdout)["findings"]
    return {(row["area"], row["check"]): row for row in findings}


def test_the_unit_as_systemd_has_it(host: Host, configure: Configure) -> None:
    """Started by it: active, its watchdog below the lease's life, its protection whole; then undone by a drop-in."""
    unit = configure("demo")
    host.run(CSNAP, "volume", "init", "demo", user="csnap")
    host.run("systemctl", "start", unit)
    found = examined(host)
    for check in ("unit", "restarts", "watchdog", "memory", "hardening"):
        assert found["unit", check]["level"] == "ok", found["unit", check]
    assert "8 s" in found["unit", "watchdog"]["text"] and "test.conf" in found["unit", "hardening"]["text"]
    assert found["unit", "enabled"]["level"] == "warning"  # nobody has enabled it
    refused = "memory not locked" in host.journal(unit)  # where these tests may not lift the limit
    assert found["host", "memlock"]["level"] == ("warning" if refused else "ok")
    assert found["daemon", "answers"]["level"] == "ok"

    host.run("systemctl", "stop", unit)
    undone = "ProtectSystem=no\nNoNewPrivileges=no\nWatchdogSec=60\nMemoryMax=1G\n"
    host.write(f"/etc/systemd/system/{unit}.d/test.conf", f"[Service]\nDeviceAllow=block-loop rw\n{undone}")
    host.run("systemctl", "daemon-reload")
    found = examined(host)
    assert found["unit", "unit"]["level"] == "failed"  # stopped
    assert (
        "ProtectSystem=no" in found["unit", "hardening"]["text"] and "test.conf" in found["unit", "hardening"]["todo"]
    )
    for check in ("hardening", "watchdog", "memory"):
        assert found["unit", check]["level"] == "warning"
    assert found["daemon", "answers"]["level"] == "failed"
