"""csnap-attach@ on a host with a real systemd: order, restarts and stops around a file system that needs it.

The kernel of this machine need not have an NBD client, so a program that only says that it is ready stands in for
`csnap attach`; the real one is shown with a real kernel in tests/kernel. The rest is the unit as it is shipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.systemd.booted import Host
from tests.systemd.conftest import CSNAP, Configure

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="boots a systemd: needs root"),
    pytest.mark.timeout(180),
]

DAEMON, ATTACH, MOUNT = "csnapd@demo.service", "csnap-attach@demo.service", "srv.mount"
STAND_IN = """[Service]
ExecStart=
ExecStart=/bin/sh -c 'systemd-notify --ready; exec sleep infinity'
NotifyAccess=all
"""
FSTAB = "none /srv tmpfs _netdev,x-systemd.requires=csnap-attach@demo.service 0 0\n"


@pytest.fixture
def mounted(host: Host, configure: Configure) -> Iterator[None]:
    """Daemon, device and mount, started in one transaction as at boot."""
    configure("demo")
    host.run(CSNAP, "volume", "init", "demo", user="csnap")
    host.write(f"/etc/systemd/system/{ATTACH}.d/stand-in.conf", STAND_IN)
    host.write("/etc/fstab", FSTAB)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "stop", "remote-fs.target", "remote-fs-pre.target", "network-online.target")
    host.run("systemctl", "start", MOUNT)
    yield
    print(host.run("journalctl", "--no-pager", "-o", "cat", "-u", ATTACH, "-u", MOUNT, check=False))
    host.run("systemctl", "stop", MOUNT, ATTACH, check=False)
    host.write("/etc/fstab", "")
    host.run("rm", "-r", f"/etc/systemd/system/{ATTACH}.d")
    host.run("systemctl", "daemon-reload")


def when(host: Host, unit: str, what: str) -> int:
    return int(host.show(unit, f"{what}TimestampMonotonic"))


def states(host: Host) -> list[str]:
    return [host.show(unit, "ActiveState") for unit in (DAEMON, ATTACH, MOUNT)]


@pytest.mark.usefixtures("mounted")
def test_the_mount_brings_up_what_it_needs_in_order(host: Host) -> None:
    """Of the mount alone: the daemon serves, then the device is there, then the mount; nothing else was started."""
    assert states(host) == ["active"] * 3
    order = [DAEMON, ATTACH, "remote-fs-pre.target", MOUNT]
    entered = [when(host, unit, "ActiveEnter") for unit in order]
    assert 0 < entered[0] <= entered[1] <= entered[2] <= entered[3]


@pytest.mark.usefixtures("mounted")
def test_neither_a_restart_nor_the_end_of_the_daemon_takes_the_device_away(host: Host) -> None:
    """restart, kill and stop of csnapd@ leave device and mount as they are."""
    pid, since = host.show(ATTACH, "MainPID"), when(host, MOUNT, "ActiveEnter")
    host.run("systemctl", "restart", DAEMON)
    host.run("systemctl", "kill", "-s", "KILL", DAEMON)
    host.wait_for(DAEMON, "NRestarts", "1")
    host.wait_for(DAEMON, "ActiveState", "active")
    host.run("systemctl", "stop", DAEMON)
    assert states(host) == ["inactive", "active", "active"]
    assert (host.show(ATTACH, "MainPID"), when(host, MOUNT, "ActiveEnter")) == (pid, since)


@pytest.mark.usefixtures("mounted")
def test_a_crash_of_the_attach_program_leaves_the_mount(host: Host) -> None:
    """It is started again, to adopt the device; whoever requires it stays mounted: with Restart= it would not."""
    since = when(host, MOUNT, "ActiveEnter")
    host.run("systemctl", "kill", "-s", "KILL", ATTACH)
    host.wait_for(ATTACH, "ActiveState", "failed")
    host.wait_for(ATTACH, "ActiveState", "active")
    assert (host.show(MOUNT, "ActiveState"), when(host, MOUNT, "ActiveEnter")) == ("active", since)


@pytest.mark.usefixtures("mounted")
def test_what_is_mounted_is_unmounted_before_the_device_goes(host: Host) -> None:
    """On a stop of the unit, as in a shutdown; and the device goes before the daemon."""
    host.run("systemctl", "stop", DAEMON, ATTACH)
    assert states(host) == ["inactive"] * 3
    left = [when(host, unit, "InactiveEnter") for unit in (MOUNT, ATTACH, DAEMON)]
    assert 0 < left[0] <= left[1] <= left[2]
