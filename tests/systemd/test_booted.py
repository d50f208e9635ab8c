"""The units on a host with a real systemd: started, stopped, restarted, hung, refused, and what they may not do."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.support.etcd_server import EtcdServer, wait_for
from tests.support.nbd_client import NbdClient
from tests.systemd.booted import Host
from tests.systemd.conftest import CSNAP, Configure

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="boots a systemd: needs root"),
    pytest.mark.timeout(180),
]

SYS_RESOURCE = 1 << 24


def started(host: Host, unit: str) -> None:
    name = unit.removeprefix("csnapd@").removesuffix(".service")
    host.run(CSNAP, "volume", "init", name, user="csnap")
    result = host.call("systemctl", "start", unit)
    assert result.returncode == 0, result.stderr + host.journal(unit)


def processes(host: Host, unit: str) -> list[Path]:
    """Return /proc/<pid>, as the host has it, of control and worker."""
    group = host.show(unit, "ControlGroup")
    pids = host.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs").split()
    return [host.root / "proc" / pid for pid in pids]


def status(process: Path) -> dict[str, str]:
    lines = (process / "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_start_restart_and_stop(host: Host, configure: Configure) -> None:
    """`start` returns when it serves, the status line says so; `restart` and `stop` are clean; the lock file stays."""
    unit = configure("demo")
    before = len(host.entries(f"_SYSTEMD_UNIT={unit}", "CSNAP_EVENT=stopped"))  # by other tests on this host
    started(host, unit)
    assert host.show(unit, "ActiveState") == "active"
    host.wait_for(unit, "NRestarts", "0")
    assert "active" in host.show(unit, "StatusText")
    assert host.show(unit, "StatusText") in host.run("systemctl", "status", unit)
    first, lock = host.show(unit, "MainPID"), (host.root / "run/csnap/demo/lock").stat().st_ino
    with NbdClient(host.root / "run/csnap/demo/nbd.sock") as client:
        assert client.size == 16 << 20
    host.run("systemctl", "restart", unit)
    assert host.show(unit, "ActiveState") == "active"
    assert host.show(unit, "MainPID") != first
    host.run("systemctl", "stop", unit)
    assert [host.show(unit, key) for key in ("ActiveState", "Result", "ExecMainStatus")] == ["inactive", "success", "0"]
    assert (host.root / "run/csnap/demo/lock").stat().st_ino == lock
    stopped = host.entries(f"_SYSTEMD_UNIT={unit}", "CSNAP_EVENT=stopped")
    assert [entry["CSNAP_CLEAN"] for entry in stopped[before:]] == ["True", "True"]


def test_it_starts_between_the_network_and_remote_file_systems(host: Host, configure: Configure) -> None:
    """In one transaction, as at boot: network-online, the daemon, remote-fs, in this order."""
    unit = configure("demo")
    host.run(CSNAP, "volume", "init", "demo", user="csnap")
    order = ["network-online.target", unit, "remote-fs.target"]
    host.write(
        "/etc/systemd/system/booting.target", f"[Unit]\nWants=remote-fs.target {unit}\nAfter={' '.join(order)}\n"
    )
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "stop", "remote-fs.target", "network-online.target")
    host.run("systemctl", "start", "booting.target")
    begun = [int(host.show(name, "ActiveEnterTimestampMonotonic")) for name in order]
    assert 0 < begun[0] < begun[1] < begun[2]
    host.run("systemctl", "stop", "booting.target")


def test_it_runs_without_privileges_and_with_its_memory_locked(host: Host, configure: Configure) -> None:
    """Both processes are csnap's and can gain nothing; memory is locked, where this machine may; a snapshot works.

    A machine that has no CAP_SYS_RESOURCE itself cannot give it away, nor raise the limit: then both are reported.
    """
    given = int(status(Path("/proc/self"))["CapBnd"], 16) & SYS_RESOURCE
    unit = configure("demo")
    started(host, unit)
    uid = host.run("id", "-u", "csnap").strip()
    both = processes(host, unit)
    assert len(both) == 2
    for process in both:
        found = status(process)
        assert set(found["Uid"].split()) == {uid}
        assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == given
        assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    warnings = " ".join(entry["MESSAGE"] for entry in host.entries(f"_SYSTEMD_UNIT={unit}", "CSNAP_EVENT=warning"))
    assert ("memory not locked" in warnings) == (not given)
    assert ("IO_FLUSHER" in warnings) == (not given)
    assert any(int(status(process)["VmLck"].split()[0]) > 0 for process in both) == bool(given)
    host.run(CSNAP, "snapshot", "create", "demo", "s1", "--cow", "/dev/csnap-cow", "--force")
    assert "s1" in host.run(CSNAP, "status", "demo")
    host.run(CSNAP, "snapshot", "delete", "demo", "s1")


def test_a_device_that_is_not_allowed_is_refused(host: Host, configure: Configure) -> None:
    """Without the drop-in for loop devices the kernel refuses the origin, although its group may open it."""
    unit = configure("barred", dropin="DeviceAllow=\nDeviceAllow=block-sd rw\nRestart=no\n")
    assert host.call("systemctl", "start", unit).returncode != 0
    host.run("test", "-w", "/dev/csnap-origin", user="csnap")
    assert re.search(r"/dev/csnap-origin.*Operation not permitted", host.journal(unit))


def test_a_worker_that_hangs_is_ended_by_the_watchdog_and_started_again(host: Host, configure: Configure) -> None:
    """The control process alone is well, and still the watchdog starves: SIGABRT, its traceback, a fresh start."""
    unit = configure("demo")
    started(host, unit)
    main = host.show(unit, "MainPID")
    worker = next(process for process in processes(host, unit) if process.name != main)
    host.run("kill", f"-{signal.SIGSTOP.value}", worker.name)
    host.wait_for(unit, "NRestarts", "1", 60)
    host.wait_for(unit, "ActiveState", "active")
    assert host.show(unit, "MainPID") != main
    journal = host.journal(unit)
    assert "watchdog_not_fed stale=worker" in journal
    assert "Fatal Python error: Aborted" in journal
    assert not worker.exists()


def test_a_killed_daemon_is_started_again(host: Host, configure: Configure) -> None:
    """kill -9 of the control process: the worker goes with it, and the next one serves."""
    unit = configure("demo")
    started(host, unit)
    old = processes(host, unit)
    host.run("kill", "-9", host.show(unit, "MainPID"))
    host.wait_for(unit, "NRestarts", "1")
    host.wait_for(unit, "ActiveState", "active")
    assert not any(process.exists() for process in old)


def test_a_daemon_that_is_refused_is_not_started_for_ever(host: Host, configure: Configure) -> None:
    """A configuration with an error: some attempts, then the unit has failed, and the journal says why."""
    unit = configure("broken", dropin="RestartSec=100ms\n", edit=lambda text: text + "surprise = 1\n")
    assert host.call("systemctl", "start", unit).returncode != 0
    host.wait_for(unit, "ActiveState", "failed", 60)
    assert int(host.show(unit, "NRestarts")) <= 10
    assert "surprise" in host.journal(unit)


def test_a_host_without_etcd_boots_and_serves_when_etcd_comes(host: Host, configure: Configure) -> None:
    """The start's job ends after its time; the daemon goes on joining, unharmed, and becomes active by itself."""
    with EtcdServer() as late:
        unit = configure("demo", url=late.url)
        host.run(CSNAP, "volume", "init", "demo", user="csnap")
        late.stop()
        host.write(f"/etc/systemd/system/{unit}.d/patience.conf", "[Unit]\nJobRunningTimeoutSec=3\n")
        host.run("systemctl", "daemon-reload")
        assert host.call("systemctl", "start", unit).returncode != 0
        assert host.show(unit, "ActiveState") == "activating"
        assert "etcd" in host.show(unit, "StatusText")
        main = host.show(unit, "MainPID")
        late.start()
        host.wait_for(unit, "ActiveState", "active")
        assert host.show(unit, "MainPID") == main
        host.run("systemctl", "stop", unit)


def test_the_helper_is_roots_and_obeys_the_daemon(host: Host, configure: Configure) -> None:
    """It is started first, with the two capabilities it needs; the daemon's user reaches it, others do not."""

    def fenced(text: str) -> str:
        return text.replace('method = "unsafe"', 'method = "scsi-pr"')

    unit, helper = configure("fenced", origin="origin2", edit=fenced), "csnap-helper@fenced.service"
    host.write(f"/etc/systemd/system/{helper}.d/test.conf", "[Service]\nDeviceAllow=block-loop rw\n")
    host.run("systemctl", "enable", helper)
    host.run(CSNAP, "volume", "init", "fenced", user="csnap")
    host.run("systemctl", "start", "--no-block", unit)
    host.wait_for(helper, "ActiveState", "active")
    process = host.root / "proc" / host.show(helper, "MainPID")
    assert set(status(process)["Uid"].split()) == {"0"}
    assert int(status(process)["CapEff"], 16) == 1 << 21 | 1 << 1  # SYS_ADMIN, DAC_OVERRIDE
    assert host.run("stat", "-c", "%U:%G %a", "/run/csnap/fenced", "/run/csnap/fenced/helper.sock").split("\n")[:2] == [
        "csnap:csnap 750",
        "root:csnap 660",
    ]
    ask = ("from snapd.helper.client import Helper", "Helper('/run/csnap/fenced/helper.sock', 5.0).ask('ping')")
    ping = ("/opt/csnap/current/bin/python", "-c", "\n".join(ask))
    host.run(*ping, user="csnap")
    assert host.call(*ping, user="nobody").returncode != 0
    wait_for(lambda: "not_registered" in host.journal(unit), "the daemon has asked it")  # loop devices know no keys


def test_addresses_can_be_limited(host: Host, configure: Configure) -> None:
    """The drop-in of the example: it serves with etcd's address allowed, and without it finds no etcd."""
    example = Path(__file__).parents[2] / "systemd/csnapd@.service.d/addresses.conf.example"
    unit = configure("demo")
    host.write(f"/etc/systemd/system/{unit}.d/addresses.conf", example.read_text())
    host.run("systemctl", "daemon-reload")
    started(host, unit)
    assert "127.0.0.0/8" in host.show(unit, "IPAddressAllow")
    host.run("systemctl", "stop", unit)
    without = example.read_text().replace("IPAddressAllow=localhost\n", "")
    host.write(f"/etc/systemd/system/{unit}.d/addresses.conf", without)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "--no-block", unit)
    wait_for(lambda: "etcd" in host.show(unit, "StatusText"), "it waits for etcd", 60)
    host.run("rm", f"/etc/systemd/system/{unit}.d/addresses.conf")
