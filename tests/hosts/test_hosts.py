"""The testbed is what its users take it for: hosts that can be told apart, cut off, fenced, and shared disks between
them; and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.host import Host
from tests.hosts.testbed import Testbed
from tests.support.etcd_server import wait_for

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="boots systemds: needs root"),
    pytest.mark.timeout(120),
]

PING = "import socket, sys; socket.create_connection((sys.argv[1], 22), 1).close()"
WRITE = "import os, sys; os.pwrite(os.open(sys.argv[1], os.O_WRONLY | os.O_SYNC), sys.argv[2].encode(), 0)"
BED = """
import sys
from tests.hosts.testbed import testbed
with testbed(1) as bed:
    print(bed.directory, bed.enter()[2], *bed.hosts["host1"].disks.values(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def one(bed: Testbed) -> Host:
    return bed.hosts["host1"]


@pytest.fixture
def two(bed: Testbed) -> Host:
    return bed.hosts["host2"]


def reaches(host: Host, other: Host) -> bool:
    return host.call("python3", "-c", PING, other.address).returncode == 0


def write(host: Host, name: str, text: str) -> bool:
    return host.call("python3", "-c", WRITE, f"/dev/csnap-{name}", text).returncode == 0


def test_a_host_runs_a_systemd_of_its_own(one: Host, two: Host) -> None:
    """Everything has started, its names and identities are its own, and it is clean: no csnap, no etcd."""
    for host in (one, two):
        assert host.run("systemctl", "is-system-running").strip() == "running"
        assert host.run("hostname").strip() == host.name
        assert host.call("which", "etcd", "csnap").stdout == ""
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        assert one.run("cat", path) != two.run("cat", path)


def test_they_reach_one_another_and_are_reached_by_ssh(bed: Testbed, one: Host, two: Host) -> None:
    """By name too; there is no way out."""
    assert reaches(one, two)
    assert one.call("getent", "hosts", "host2").stdout.split() == [two.address, "host2"]
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i", str(bed.key)]
    assert bed.run("ssh", *options, f"root@{two.address}", "hostname").stdout.strip() == "host2"
    assert one.call("python3", "-c", PING, "192.0.2.1").returncode != 0


def test_they_install_packages_without_a_way_out(two: Host) -> None:
    """What the repository holds, with all that it needs."""
    two.run("apt-get", "-q", "update")
    two.run("apt-get", "-q", "--yes", "--simulate", "--no-install-recommends", "install", "etcd-server", "python3-venv")


def test_a_disk_is_shared(one: Host, two: Host) -> None:
    """What one host writes the other reads, and this machine too."""
    assert write(one, "origin", "from one")
    read = ["dd", "iflag=direct", "bs=4096", "count=1", "status=none"]
    assert two.run(*read, "if=/dev/csnap-origin").startswith("from one")
    outside = subprocess.run([*read, f"if={two.disks['origin']}"], capture_output=True, check=True).stdout
    assert outside.startswith(b"from one")


def test_a_fenced_host_cannot_write(one: Host, two: Host) -> None:
    """And the other one can; of one disk only, if that is said."""
    one.fence("cow1")
    try:
        assert not write(one, "cow1", "x")
        assert write(two, "cow1", "x")
        assert write(one, "cow2", "x")
    finally:
        one.unfence()
    assert write(one, "cow1", "x")


def test_a_host_is_cut_off_and_healed(one: Host, two: Host) -> None:
    one.cut()
    assert not reaches(one, two)
    assert not reaches(two, one)
    one.heal()
    wait_for(lambda: reaches(two, one), "healed")


def test_a_frozen_host_stands_still(one: Host) -> None:
    """Its processes do not run, and go on where they were."""
    one.run("systemd-run", "--unit=counting", "sh", "-c", "while :; do date +%s%N > /run/now; done")
    now = one.root / "run/now"
    wait_for(lambda: now.exists() and now.read_text() != "", "it counts")
    one.freeze()
    first = now.read_text()
    with pytest.raises(AssertionError, match="it counts"):
        wait_for(lambda: now.read_text() != first, "it counts", 0.3)
    one.thaw()
    wait_for(lambda: now.read_text() != first, "it counts again")
    one.run("systemctl", "stop", "counting")


def test_a_host_loses_its_power_and_comes_back(one: Host, two: Host) -> None:
    """Its disk is as it was, its memory is not, and its unit was not asked to stop."""
    two.write("/etc/kept", "kept")
    two.write("/run/lost", "lost")
    boot = two.run("cat", "/proc/sys/kernel/random/boot_id")
    two.run("systemd-run", "--unit=stopping", "--property=ExecStop=/bin/touch /etc/stopped", "sleep", "1000")
    two.cut_power()
    assert not reaches(one, two)
    two.boot()
    two.wait_booted()
    assert reaches(one, two)
    assert two.run("cat", "/proc/sys/kernel/random/boot_id") != boot
    assert two.run("cat", "/etc/kept") == "kept"
    assert not (two.root / "run/lost").exists()
    assert not (two.root / "etc/stopped").exists()


def test_a_host_is_shut_down_and_comes_back(one: Host, two: Host) -> None:
    """Its units are asked to stop."""
    two.run("systemd-run", "--unit=stopping", "--property=ExecStop=/bin/touch /etc/stopped", "sleep", "1000")
    two.shut_down()
    assert not reaches(one, two)
    two.boot()
    two.wait_booted()
    assert (two.root / "etc/stopped").exists()


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    """A process with a bed of its own, which ends when its standard input does."""
    command = [sys.executable, "-c", BED]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        yield process
        process.kill()


def groups(process: subprocess.Popen[str]) -> list[Path]:
    return list(Path("/sys/fs/cgroup").glob(f"**/csnap-*-{process.pid}"))


def attached() -> str:
    return subprocess.run(["losetup", "--list", "--noheadings"], capture_output=True, text=True, check=True).stdout


def gone(segment: str, directory: str) -> bool:
    """No process in the bed's namespaces, and none of its loop devices."""
    return not Path(f"/proc/{segment}").exists() and directory not in attached()


@pytest.mark.parametrize("how", ["end", "Ctrl-C"])
def test_nothing_is_left(other: subprocess.Popen[str], how: str) -> None:
    """No process, no device, no file, no control group; devices are whose they were."""
    assert other.stdin is not None and other.stdout is not None
    directory, segment, *devices = other.stdout.readline().split()
    assert directory in attached()
    assert len(groups(other)) >= 1
    if how == "end":
        other.stdin.close()
    else:
        other.send_signal(signal.SIGINT)
    other.wait(20)
    wait_for(lambda: gone(segment, directory), "devices and processes gone")
    assert not Path(directory).exists()
    assert groups(other) == []
    assert all(Path(device).stat().st_gid in (0, 6) for device in devices)


def test_killing_the_test_ends_every_process(other: subprocess.Popen[str]) -> None:
    """Network, mounts and devices go with the processes; files and empty control groups stay."""
    assert other.stdout is not None
    directory, segment, *_ = other.stdout.readline().split()
    left = groups(other)
    other.kill()
    other.wait(20)
    wait_for(lambda: gone(segment, directory), "devices and processes gone")
    wait_for(lambda: all("populated 0" in e.read_text() for g in left for e in g.glob("cgroup.events")), "empty")
    subprocess.run(["rm", "-r", directory], check=True)
    for group in left:
        subprocess.run(["find", str(group), "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"], check=True)
