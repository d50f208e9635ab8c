"""`systemctl reload` on a booted host: what changes live, what needs a restart, what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.support.etcd_server import wait_for
from tests.systemd.booted import Host
from tests.systemd.conftest import CSNAP, Configure

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="boots a systemd: needs root"),
    pytest.mark.timeout(180),
]
FILE = "/etc/csnap/demo.toml"


@pytest.fixture
def change(host: Host) -> Callable[[str, str], None]:
    """Return a function that changes the text of the configuration in place, its owner and mode untouched."""

    def changed(old: str, new: str) -> None:
        path = host.root / FILE.lstrip("/")
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    return changed


def test_reload(host: Host, configure: Configure, change: Callable[[str, str], None]) -> None:
    """The same process goes on in every case; systemd is told when it is done, and its line says what waits."""
    unit = configure("demo", edit=lambda text: text.replace("lease_ttl = 10", "lease_ttl = 10\nfreeze_limit = 5"))
    host.run(CSNAP, "volume", "init", "demo", user="csnap")
    host.run("systemctl", "start", unit)
    main = host.show(unit, "MainPID")

    change("freeze_limit = 5", "freeze_limit = 7")
    host.run("systemctl", "reload", unit)
    (event,) = host.entries("CSNAP_EVENT=reloaded", f"_PID={main}")
    assert event["CSNAP_APPLIED"] == "[lockspace] freeze_limit"
    assert host.show(unit, "ReloadResult") == "success"

    change("lease_ttl = 10", "lease_ttl = 11")
    host.run("systemctl", "reload", unit)
    assert "needs a restart for [lockspace] lease_ttl" in host.show(unit, "StatusText")
    assert "csnap: needs a restart: [lockspace] lease_ttl" in host.journal(unit)
    assert "restart  needed for [lockspace] lease_ttl" in host.run(CSNAP, "status", "demo")

    change("lease_ttl = 11", "lease_ttl = ten")
    assert host.call("systemctl", "reload", unit).returncode == 1
    assert "demo.toml: not TOML" in host.journal(unit)
    host.run("systemctl", "kill", "--kill-who=main", "--signal=SIGHUP", unit)
    refused = "needs a restart for [lockspace] lease_ttl, the changed configuration was refused"
    wait_for(lambda: host.show(unit, "StatusText").endswith(refused), "the status line says so", 30)

    change("lease_ttl = ten", "lease_ttl = 11")
    host.run("systemctl", "restart", unit)
    assert host.show(unit, "MainPID") != main
    assert "11 s" in host.run(CSNAP, "status", "demo").partition("lease")[2].partition("\n")[0]
    assert host.call(CSNAP, "reload", "demo").stdout == "in force: nothing has changed\n"
