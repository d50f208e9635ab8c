"""Whole daemons with each fencing method. Reservations and watchdogs are played by the tests' own helpers, which serve
the daemons in place of privileged ones; against a real kernel they are tested in tests/kernel."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from demo.host import run_csnap
from demo.stage import children, runs
from snapd import config as configuration
from snapd.helper.server import Server
from snapd.helper.service import Service
from tests.support.daemons import Daemon, Hosts
from tests.support.etcd_server import wait_for
from tests.support.scsi_lun import Lun
from tests.support.scsi_lun import Path as LunPath
from tests.unit.test_watchdog import FakeSystem

Make = Callable[[configuration.Config, str], Service]


@contextmanager
def helpers(cluster: Hosts, make: Make) -> Iterator[None]:
    """A helper for each host, in this process."""
    with ExitStack() as stack:
        for host in cluster:
            config = configuration.load(host.config)
            server = Server(config.export.helper, make(config, host.name))
            thread = threading.Thread(target=server.run)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.stop)
        yield


def status(host: Daemon) -> dict[str, Any]:
    found = host.status()
    assert found is not None
    return found


def members(host: Daemon) -> list[str]:
    return [row["node"] for row in status(host)["members"]]


class Luns:
    """The reservations of every disk of the cluster, whatever path leads to it."""

    def __init__(self) -> None:
        self._luns: dict[tuple[int, int], Lun] = {}

    def service(self, config: configuration.Config, name: str) -> Service:
        return Service(config, lambda fd, path: self._path(os.fstat(fd), name))

    def _path(self, found: os.stat_result, name: str) -> LunPath:
        return self._luns.setdefault((found.st_dev, found.st_ino), Lun()).path(name)

    def of(self, path: Path) -> Lun:
        found = path.stat()
        return self._luns[found.st_dev, found.st_ino]


def test_reservations_from_joining_to_leaving() -> None:
    """Every member's key is on the origin and on the COW device of a snapshot taken later; a killed member's is removed
    from both before its locks are; it comes back with another; whoever leaves takes its key along, and the last one
    the reservation. ``fence test`` beside the running daemons changes nothing."""
    luns = Luns()
    with Hosts(2) as cluster:
        for host in cluster:
            host.configure("method", '"scsi-pr"')
        a, b = cluster[0], cluster[1]
        with helpers(cluster, luns.service):
            cluster.start()
            cow = cluster.cow("c1")
            a.csnap("snapshot", "create", "CONFIG", "s1", "--cow", cow)
            disks = [luns.of(Path(cluster.volume.origin)), luns.of(cow)]
            assert [set(lun.keys) for lun in disks] == [{"host-a", "host-b"}] * 2
            before = disks[0].keys["host-b"]
            assert all(lun.keys["host-b"] == before and lun.holder for lun in disks)

            tried = json.loads(run_csnap("fence", "test", a.config, "--json").stdout)
            assert tried["works"] and {row["step"] for row in tried["steps"]} == {"register", "reserve", "preempt"}
            assert {row["target"] for row in tried["steps"]} == {str(cluster.volume.origin), str(cow)}
            assert [set(lun.keys) for lun in disks] == [{"host-a", "host-b"}] * 2

            b.kill()
            wait_for(lambda: members(a) == ["host-a"], "host-b is recovered", 40)
            assert [set(lun.keys) for lun in disks] == [{"host-a"}] * 2
            assert all(f"host-a preempts {before:x}: abort" in lun.log for lun in disks)
            assert not any(lun.may_write("host-b") for lun in disks)

            b.start()
            b.wait_active()
            assert all(lun.keys["host-b"] not in (before, 0) for lun in disks)

            assert a.terminate() == 0
            wait_for(lambda: all(set(lun.keys) == {"host-b"} for lun in disks), "host-a's key is gone", 20)
            assert all(lun.holder == "host-b" for lun in disks)
            assert b.terminate() == 0
            assert all((lun.keys, lun.holder) == ({}, "") for lun in disks)


def test_survivors_wait_for_the_watchdog() -> None:
    """It is armed before the host serves, and petted; of a killed host it is left armed, and survivors wait; of one
    that stops in order it is disarmed."""
    systems = {"host-a": FakeSystem(), "host-b": FakeSystem()}

    def make(config: configuration.Config, name: str) -> Service:
        return Service(config, system=systems[name])

    with Hosts(2) as cluster:
        for host in cluster:
            host.configure("method", '"watchdog"\nwatchdog_timeout = 2')
        with helpers(cluster, make):
            cluster.start()
            assert all(system.opened and system.timeout == 2 for system in systems.values())
            cluster[1].kill()
            wait_for(lambda: status(cluster[0])["fencing"]["waiting"], "it waits for host-b", 20)
            shown = run_csnap("status", cluster[0].config).stdout
            assert "waiting for fencing of host-b since" in shown
            begun = status(cluster[0])["fencing"]["waiting"][0]
            assert begun["by"] == "host-a"
            wait_for(lambda: members(cluster[0]) == ["host-a"], "host-b is recovered", 40)
            log = cluster[0].log.read_text()
            assert "waiting_for_watchdog target=host-b seconds=6" in log  # 3 + 2 + 1
            assert systems["host-b"].opened and systems["host-b"].fires is not None
            assert cluster[0].terminate() == 0
            assert systems["host-a"].fires is None


def test_a_person_confirms_what_the_agent_cannot_do() -> None:
    """The agent fails for ever: the dead host's locks stay, and status says so; a live host cannot be confirmed; then
    one is, and everything goes on. The confirmation is counted."""
    with Hosts(2) as cluster:
        a, b = cluster[0], cluster[1]
        agent = cluster.directory / "fence_test"
        agent.write_text("#!/bin/sh\nexit 1\n")
        agent.chmod(agent.stat().st_mode | stat.S_IXUSR)
        for host in cluster:
            host.configure("method", f'"agent"\nagent = "{agent}"')
        cluster.start()
        refused = run_csnap("fence", "confirm", a.config, "host-b", "--yes")
        assert refused.returncode == 1 and "host-b: is alive" in refused.stderr
        b.kill()
        wait_for(lambda: "fence_failed target=host-b attempt=2" in a.log.read_text(), "the agent failed twice", 30)
        assert "waiting for fencing of host-b since" in run_csnap("status", a.config).stdout
        assert members(a) == ["host-a", "host-b"]
        done = run_csnap("fence", "confirm", a.config, "host-b", "--yes")
        assert (done.returncode, done.stderr) == (0, "")
        wait_for(lambda: members(a) == ["host-a"], "host-b is recovered", 30)
        assert "fenced_by_confirmation member=host-b" in a.log.read_text()
        assert status(a)["fencing"]["waiting"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a helper")
def test_root_starts_a_helper_and_takes_it_along() -> None:
    """A file has no reservations: the host stays joining and says why. The helper is the daemon's child, and ends with
    it, be it stopped or killed."""
    with Hosts(1) as cluster:
        host = cluster[0]
        host.configure("method", '"scsi-pr"')
        host.csnap("volume", "init", "CONFIG")

        def refused() -> bool:
            found = host.status()
            return found is not None and "persistent reservations" in found["member"]["why"]

        def helper() -> int:
            assert host.process is not None
            pids = children(host.process.pid)
            (found,) = [pid for pid in pids if b"snapd.helper" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            return found

        for end in (host.terminate, host.kill):
            host.start()
            wait_for(refused, "it says why it does not serve", 30)
            pid = helper()
            assert status(host)["fencing"]["helper"] == f"child of this daemon, process {pid}"
            assert status(host)["member"]["state"] == "joining"
            end()
            wait_for(lambda pid=pid: not runs(pid), "the helper ends, too", 10)  # type: ignore[misc]
