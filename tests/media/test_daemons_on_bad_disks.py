"""Real clusters whose COW device fails, hangs or rots: the origin goes on everywhere, and ``status`` says what is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from demo.nbd import NbdClient, NbdError
from snapd.units import KIB, MIB
from tests.media.faulty import FaultyDisk, faulty_disk
from tests.support.daemons import Daemon, Hosts
from tests.support.etcd_server import wait_for
from tests.support.traffic import Traffic, read_export

pytestmark = pytest.mark.timeout(180)

COW_SIZE = 16 * MIB
LIMIT = 30.0


@contextmanager
def cluster(hosts: int) -> Iterator[tuple[Hosts, FaultyDisk]]:
    """Hosts with the snapshot s1 on a disk that fails on demand."""
    with faulty_disk(COW_SIZE) as disk, Hosts(hosts) as made:
        made.start()
        made[0].csnap("snapshot", "create", "CONFIG", "s1", "--cow", disk.path)
        yield made, disk


def state(host: Daemon) -> str:
    """Of the snapshot, as this host's daemon tells it; empty while it does not answer."""
    status = host.status()
    return str(status["snapshots"][0]["state"]) if status and status["snapshots"] else ""


def snapshot_fails(host: Daemon) -> bool:
    """Whether a read of the snapshot is an error."""
    with NbdClient(host.socket, "snapshot/s1") as client:
        try:
            client.read(0, 4 * KIB)
        except NbdError:
            return True
    return False


def test_a_cow_device_that_dies_under_two_writing_hosts() -> None:
    """Every write of the COW device fails, also that of valid=0: the snapshot is invalid on both hosts all the same, no
    writer sees an error, and a host that starts anew serves without the device; deleting works."""
    with cluster(2) as (hosts, disk), Traffic(hosts) as traffic:
        writers = traffic.write_everywhere()
        traffic.go_on(*writers, count=50)
        disk.break_down("write")
        for host in hosts:
            wait_for(lambda host=host: state(host) == "invalid", f"{host.name} says invalid", LIMIT)  # type: ignore[misc]
            assert snapshot_fails(host)
        traffic.go_on(*writers, count=100)
        traffic.stop()
        traffic.judge_origin()
        assert hosts[1].terminate() == 0
        hosts[1].start()
        hosts[1].wait_active()
        assert state(hosts[1]) == "invalid"
        hosts[1].csnap("snapshot", "delete", "CONFIG", "s1")
        assert not (hosts[0].status() or {"snapshots": None})["snapshots"]


def test_a_cow_device_that_hangs_longer_than_the_lease_lives() -> None:
    """One host: its lease is renewed all the while, what needs no copy goes on, and the rest after it: a pause, no
    error, the snapshot unchanged."""
    with cluster(1) as (hosts, disk):
        (host,) = hosts
        before = read_export(host, "snapshot/s1")
        with NbdClient(host.socket, "origin") as client, Traffic(hosts) as traffic:
            client.write(0, b"\1" * 16 * KIB)
            with disk.hanging():
                writer = traffic.write(host, 256, 512)  # needs copies: hangs
                end = time.monotonic() + 2 * host.volume.lease_ttl
                while time.monotonic() < end:
                    client.write(0, b"\2" * 16 * KIB)
                    assert client.read(0, 4 * KIB) == b"\2" * 4 * KIB
                    assert host.state() == "active"
                    time.sleep(0.1)
                assert not writer.answered
            traffic.go_on(writer, count=50)
            traffic.stop()
        assert read_export(host, "snapshot/s1") == before and state(host) == "active"


def test_a_host_that_cannot_let_go_for_a_hanging_disk_is_fenced() -> None:
    """A copy-out that hangs keeps a region from another host for longer than the TTL: the first is fenced and ends
    when its I/O has, and the second goes on; the snapshot is unchanged and every acknowledged write is there."""
    with cluster(2) as (hosts, disk), Traffic(hosts) as traffic:
        before = read_export(hosts[1], "snapshot/s1")
        first = traffic.write(hosts[0], 0, 256)
        traffic.go_on(first, count=20)
        with disk.hanging():
            time.sleep(0.5)  # whatever it does next hangs in a copy
            second = traffic.write(hosts[1], 0, 256)
            wait_for(lambda: hosts[0].state() == "fenced", "it is out", LIMIT)
            fenced = time.monotonic()
            wait_for(lambda: "recovered member=host-a" in hosts[1].tail(), "host-b has recovered it", LIMIT)
        assert hosts[0].wait_exit(LIMIT) == 4  # not before its I/O has ended
        traffic.go_on(second, count=50)
        traffic.forget(first, fenced=fenced)
        traffic.stop()
        assert read_export(hosts[1], "snapshot/s1") == before and state(hosts[1]) == "active"
        traffic.judge_origin()


def test_a_header_that_rots_while_no_host_runs() -> None:
    """A flipped bit in the sidecar: nothing says any more that this is the snapshot's device, so the host does not
    serve, and says why; put right, it serves, and the snapshot is what it was."""
    with cluster(1) as (hosts, disk):
        (host,) = hosts
        before = read_export(host, "snapshot/s1")
        with NbdClient(host.socket, "origin") as client:
            client.write(0, b"\1" * 64 * KIB)
        assert host.terminate() == 0
        with open(disk.path, "r+b") as file:
            sector = file.read(512)
            file.seek(0)
            file.write(sector[:40] + bytes([sector[40] ^ 1]) + sector[41:])
        host.start()
        wait_for(lambda: f"{disk.path}: sidecar: checksum" in host.tail(), "it says what is wrong", LIMIT)
        assert host.state() == "joining"
        with open(disk.path, "r+b") as file:
            file.write(sector)
        host.wait_active()
        assert read_export(host, "snapshot/s1") == before
