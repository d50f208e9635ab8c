"""An etcd that loses its data or is set back to a backup: found out, refused, and put right by the runbook.

The runbook is that of docs/operations.md, with the distribution's etcdctl.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.nbd import NbdClient
from tests.battery.scene import LIMIT, fence_by_killing
from tests.support.daemons import Daemon, Hosts
from tests.support.etcd_server import wait_for
from tests.support.traffic import Traffic, read_export, take

pytestmark = pytest.mark.timeout(180)

TTL = 3
LOST_KINDS = "amhqvxoc"
"""Keys of members, locks, counters, extents: of processes that are gone, or older than what is on the devices."""


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Two hosts with one etcd."""
    with Hosts(2, chunk_size="4KiB", lease_ttl=TTL) as cluster:
        fence_by_killing(cluster)
        cluster.start()
        yield cluster


def save(cluster: Hosts, name: str) -> Path:
    path = cluster.directory / name
    cluster.etcd.etcdctl("snapshot", "save", str(path))
    return path


def forget_the_lost(cluster: Hosts) -> None:
    for kind in LOST_KINDS:
        cluster.etcd.etcdctl("del", "--prefix", f"/csnap/{cluster.volume.uuid}/{kind}/")


def write_some(host: Daemon, value: bytes, chunks: range) -> None:
    with NbdClient(host.socket, "origin") as client:
        for chunk in chunks:
            client.write(chunk * 4096, value * 4096)


@pytest.mark.parametrize("how", ["wiped", "wiped, another cluster", "older backup", "older backup, another cluster"])
def test_running_hosts_notice(hosts: Hosts, how: str) -> None:
    """Another cluster id, or a revision that was passed long ago: every hold is lost, every daemon ends with 4."""
    backup = save(hosts, "backup")
    take(hosts[0], "s1", hosts.cow("cow"))
    write_some(hosts[1], b"1", range(10))
    token = {"token": "another"} if "another" in how else {}
    if "wiped" in how:
        hosts.etcd.wipe()
        hosts.etcd.start(**token)
    else:
        hosts.etcd.restore(backup, **token)
    assert [host.wait_exit(LIMIT) for host in hosts] == [4, 4]


def test_the_runbook(hosts: Hosts) -> None:
    """A backup newer than the last snapshot taken: hosts stopped, etcd restored, keys deleted, hosts started.

    What was copied out after the backup is on the COW device and is found; the snapshot is what it was.
    """
    with Traffic(hosts) as traffic:
        writers = traffic.write_everywhere()
        traffic.go_on(*writers, count=20)
        began, returned = take(hosts[0], "s1", hosts.cow("cow"))
        image = read_export(hosts[1], "snapshot/s1")
        backup = save(hosts, "backup")
        traffic.go_on(*writers, count=100)  # the backup knows nothing of what these copy out
        traffic.stop()
        for host in hosts:
            assert host.terminate() == 0

        hosts.etcd.restore(backup, token="another")
        forget_the_lost(hosts)
        for host in hosts:
            host.start()
        for host in hosts:
            host.wait_active()
        assert [read_export(host, "snapshot/s1") for host in hosts] == [image, image]
        writers = traffic.write_everywhere()
        readers = traffic.read_everywhere("s1", image)
        traffic.go_on(*writers, *readers, count=50)
        take(hosts[1], "s2", hosts.cow("second"))
        traffic.go_on(*writers, *readers, count=50)
        traffic.stop()
        traffic.judge(image, began, returned)
        traffic.judge_origin()
        assert [host.terminate() for host in hosts] == [0, 0]
        hosts.check(hosts.cow("cow"))
        hosts.check(hosts.cow("second"))


def test_a_backup_older_than_a_snapshot(hosts: Hosts) -> None:
    """What was copied out since went into a store that the backup does not know: the older snapshot is refused by name.

    The daemons stay joining and say so, and serve nothing. With that snapshot given up the origin is served again.
    """
    take(hosts[0], "s1", hosts.cow("cow"))
    backup = save(hosts, "backup")
    take(hosts[0], "s2", hosts.cow("second"))
    write_some(hosts[0], b"1", range(20))
    for host in hosts:
        assert host.terminate() == 0
    hosts.etcd.restore(backup)
    forget_the_lost(hosts)
    for host in hosts:
        host.start()
    for host in hosts:
        wait_for(lambda host=host: "set back in time" in said(host), f"{host.name} says so", LIMIT)  # type: ignore[misc]
        assert str(hosts.cow("cow")) in said(host)
        assert host.state() == "joining"
        with pytest.raises(TimeoutError):
            NbdClient(host.socket, "origin", timeout=1)
        assert host.terminate() == 0

    hosts.etcd.etcdctl("del", f"/csnap/{hosts.volume.uuid}/s/s1")
    for host in hosts:
        host.start()
    for host in hosts:
        host.wait_active()
    expected = (b"1" * 20 * 4096).ljust(hosts.volume.origin.stat().st_size, b"\0")
    assert [read_export(host, "origin") for host in hosts] == [expected, expected]


def test_a_backup_older_than_a_deletion(hosts: Hosts) -> None:
    """The backup knows a snapshot deleted since: its header says so, it is invalid, and is deleted once more."""
    take(hosts[0], "s1", hosts.cow("cow"))
    backup = save(hosts, "backup")
    hosts[0].csnap("snapshot", "delete", "CONFIG", "s1")
    write_some(hosts[1], b"1", range(20))
    for host in hosts:
        assert host.terminate() == 0
    hosts.etcd.restore(backup)
    forget_the_lost(hosts)
    for host in hosts:
        host.start()
    for host in hosts:
        host.wait_active()
    wait_for(lambda: state_of(hosts[0], "s1") == "invalid", "it is found invalid", LIMIT)
    hosts[0].csnap("snapshot", "delete", "CONFIG", "s1")
    take(hosts[1], "s1", hosts.cow("cow"))
    write_some(hosts[1], b"2", range(20))
    assert read_export(hosts[0], "snapshot/s1").rstrip(b"\0") == b"1" * 20 * 4096


def state_of(host: Daemon, name: str) -> str:
    found = json.loads(host.csnap("snapshot", "list", "CONFIG", "--json"))
    return next((str(each["state"]) for each in found if each["name"] == name), "")


def said(host: Daemon) -> str:
    """Why it does not serve, as ``csnap status`` shows it."""
    status = host.status()
    return str(status["member"]["why"]) if status is not None else ""
