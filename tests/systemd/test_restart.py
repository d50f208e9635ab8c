"""Restarts of the service under writing clients, on a host with a real systemd: planned ones, and crashes."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snapd.units import MIB
from tests.support.nbd_client import NbdClient
from tests.support.writers import Load, writers
from tests.systemd.booted import Host
from tests.systemd.conftest import CSNAP, Configure

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="boots a systemd: needs root"),
    pytest.mark.timeout(180),
]

WRITERS = 4
STALL_LIMIT = 20.0
"""Seconds: one is usual, five were seen on a machine with six other loads."""

CRASH_LIMIT = 30.0
"""RestartSec, the start, and the retries of the client."""


NUMBERS = itertools.count(1)
"""A volume of its own for each test, so that its journal is its own."""


@pytest.fixture
def unit(host: Host, configure: Configure) -> str:
    """A volume with a snapshot, served."""
    name = f"restart{next(NUMBERS)}"
    unit = configure(name)
    host.run(CSNAP, "volume", "init", name, user="csnap")
    result = host.call("systemctl", "start", unit)
    assert result.returncode == 0, result.stderr + host.journal(unit)
    host.run(CSNAP, "snapshot", "create", name, "s1", "--cow", "/dev/csnap-cow", "--force")
    return unit


@pytest.fixture
def nbd(host: Host, unit: str) -> Path:
    name = unit.removeprefix("csnapd@").removesuffix(".service")
    return host.root / f"run/csnap/{name}/nbd.sock"


def whole(socket: Path, export: str) -> bytes:
    with NbdClient(socket, export) as client:
        return b"".join(client.read(offset, MIB) for offset in range(0, client.size, MIB))


def under(load: Load, what: str, action: Callable[[], object]) -> None:
    """Do it while the threads write; print the longest wait."""
    load.wait_progress()
    load.reset()
    begun = time.monotonic()
    action()
    took = time.monotonic() - begun
    load.wait_progress()
    print(f"{what}: {took:.2f} s, the longest stall of a request {load.longest:.2f} s")


def stored(host: Host, unit: str) -> int:
    return int(host.show(unit, "NFileDescriptorStore"))


def test_a_restart_under_load_costs_no_client_an_error(host: Host, unit: str, nbd: Path) -> None:
    """`systemctl restart` three times under four writing threads: not one error, every connection is the first one,
    what was acknowledged is there, the snapshot is unchanged."""
    before = whole(nbd, "snapshot/s1")
    with NbdClient(nbd, "snapshot/s1") as reader, writers(nbd, WRITERS) as load:
        for number in range(3):
            under(load, f"restart {number + 1}", lambda: host.run("systemctl", "restart", unit))
            assert load.longest < STALL_LIMIT
            assert stored(host, unit) == 0
        assert reader.read(0, MIB) == before[:MIB]
    assert load.errors == []
    assert [thread.connections for thread in load.threads] == [1] * WRITERS
    assert load.verify(nbd) > WRITERS
    assert whole(nbd, "snapshot/s1") == before
    assert "not_taken_over" not in host.journal(unit)


@pytest.mark.parametrize("killed", ["control", "worker"])
def test_a_crash_under_load_costs_reconnecting_clients_nothing(host: Host, unit: str, nbd: Path, killed: str) -> None:
    """kill -9 of either process: connections break, the service comes back by itself, clients that connect again and
    send anew have no error, what was acknowledged is there, the snapshot is unchanged. Nothing was kept for it."""
    before = whole(nbd, "snapshot/s1")
    control = host.show(unit, "MainPID")
    pids = host.run("cat", f"/sys/fs/cgroup{host.show(unit, 'ControlGroup')}/cgroup.procs").split()
    pid = control if killed == "control" else next(pid for pid in pids if pid != control)

    def crash() -> None:
        host.run("kill", "-9", pid)
        host.wait_for(unit, "NRestarts", "1")
        host.wait_for(unit, "ActiveState", "active")

    with writers(nbd, WRITERS, reconnects=True) as load:
        under(load, f"kill -9 of {killed}", crash)
    assert load.errors == []
    assert [thread.connections for thread in load.threads] == [2] * WRITERS
    assert load.longest < CRASH_LIMIT
    assert load.verify(nbd) > WRITERS
    assert whole(nbd, "snapshot/s1") == before
    assert "taken_over" not in host.journal(unit)


def test_a_crash_after_a_restart_reuses_nothing(host: Host, unit: str, nbd: Path) -> None:
    """The store is empty once the daemon serves: the connections of before the restart break with the crash."""
    with NbdClient(nbd) as client:
        host.run("systemctl", "restart", unit)
        assert client.write(0, b"n" * 512) == 0
        assert stored(host, unit) == 0
        host.run("kill", "-9", host.show(unit, "MainPID"))
        assert client.gone()
        host.wait_for(unit, "ActiveState", "active")
    with NbdClient(nbd) as client:
        assert client.read(0, 512) == b"n" * 512


def test_a_stop_drops_what_was_kept(host: Host, unit: str, nbd: Path) -> None:
    """`systemctl stop`: the clients see their connections end, and nothing is kept for the next start."""
    with NbdClient(nbd) as client:
        host.run("systemctl", "stop", unit)
        assert client.gone()
        assert stored(host, unit) == 0
    journal = host.journal(unit)
    assert "handed_over" in journal
    host.run("systemctl", "start", unit)
    with NbdClient(nbd) as client:
        assert len(client.read(0, 512)) == 512
    assert "taken_over" not in host.journal(unit)


def test_who_connects_during_a_restart_waits(host: Host, unit: str, nbd: Path) -> None:
    """The listening socket is kept as well: while no daemon runs a newcomer is not refused, and served by the next."""
    host.write(f"/etc/systemd/system/{unit}.d/slow.conf", "[Service]\nExecStartPre=sleep 1\n")
    host.run("systemctl", "daemon-reload")
    inode = nbd.stat().st_ino
    host.run("systemctl", "--no-block", "restart", unit)
    host.wait_for(unit, "SubState", "start-pre")
    assert stored(host, unit) > 0
    with NbdClient(nbd) as client:
        assert len(client.read(0, 512)) == 512
    assert nbd.stat().st_ino == inode
    host.wait_for(unit, "ActiveState", "active")
