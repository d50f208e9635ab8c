"""Three real daemons, a real Prometheus, and what happens to devices: slow, full, failing, overwritten."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from snapd.units import KIB, MIB
from tests.media.faulty import faulty_disk
from tests.monitoring.live import SLOW_MACHINE, Agent, fence_by, watched
from tests.support.daemons import Hosts
from tests.support.nbd_client import NbdClient
from tests.support.traffic import Traffic

CHUNK = 16 * KIB
BLOCKS = 256  # of 4 KiB: the first region
SLOW = 500  # ms for each request: a copy-out has three in a row, and two hosts take turns
SMALL = 2 * MIB  # 128 chunks: header, one area, 126 exceptions
LEASE_TTL = 10


def fill(client: NbdClient, first: int, last: int) -> None:
    """Write these chunks of the origin, each for the first time."""
    for chunk in range(first, last):
        assert not client.write(chunk * CHUNK, bytes(CHUNK))


@pytest.mark.timeout(400)
def test_cow_devices_that_are_slow_full_and_overwritten(tmp_path: Path) -> None:
    """A slow one makes hosts wait for each other's locks; one fills up step by step until the snapshot is lost, and
    reading it is an error; an entry that makes no sense is found by the host that loads it."""
    with faulty_disk(16 * MIB, delay=SLOW) as disk, Hosts(3, lease_ttl=LEASE_TTL) as hosts:
        fence_by(hosts, Agent(tmp_path))
        with watched(hosts, tmp_path) as prometheus:
            hosts[0].csnap("snapshot", "create", "CONFIG", "slow", "--cow", disk.path)
            with Traffic(hosts) as traffic:
                for host in (hosts[0], hosts[1]):
                    traffic.write(host, 0, BLOCKS)
                prometheus.wait_fired("CsnapLockWaitSlow")
            hosts[0].csnap("snapshot", "delete", "CONFIG", "slow")

            hosts[0].csnap("snapshot", "create", "CONFIG", "small", "--cow", hosts.cow("small", SMALL))
            with NbdClient(hosts[0].socket) as client:
                fill(client, 0, 105)
                prometheus.wait_fired("CsnapCowFilling", "CsnapCowFullSoon")
                fill(client, 105, 122)
                prometheus.wait_fired("CsnapCowAlmostFull")
                fill(client, 122, SMALL // CHUNK)
            prometheus.wait_fired("CsnapSnapshotInvalid")
            with NbdClient(hosts[1].socket, "snapshot/small") as client:
                assert client.do(0, offset=0, length=4 * KIB)
            prometheus.wait_fired("CsnapIoErrors")
            hosts[0].csnap("snapshot", "delete", "CONFIG", "small")

            cow = hosts.cow("rotten")
            hosts[0].csnap("snapshot", "create", "CONFIG", "rotten", "--cow", cow)
            for number, host in enumerate((hosts[0], hosts[1])):  # the second takes the tail: the first's entry counts
                with NbdClient(host.socket) as client:
                    fill(client, number, number + 1)
            assert hosts[2].terminate() == 0
            with open(cow, "r+b") as device:
                device.seek(CHUNK)  # the first area's first entry: old chunk, new chunk
                device.write(struct.pack("<QQ", 1 << 40, 2))
            hosts[2].start()
            prometheus.wait_fired("CsnapMetadataCorrupt")
            expected = {"CsnapCowFilling", "CsnapCowFullSoon", "CsnapCowAlmostFull", "CsnapSnapshotInvalid"}
            expected |= {"CsnapIoErrors", "CsnapMetadataCorrupt", "CsnapDown"}
            expected |= {"CsnapIoStuck"}  # a write of a host whose turn comes again and again too late
            assert prometheus.fired() <= SLOW_MACHINE | expected


@pytest.mark.timeout(200)
def test_an_origin_that_cannot_be_read(tmp_path: Path) -> None:
    """The client sees the error, and it is an alert that names host, operation and errno."""
    with faulty_disk(8 * MIB) as disk, Hosts(1, origin=disk.path) as hosts:
        fence_by(hosts, Agent(tmp_path))
        with watched(hosts, tmp_path) as prometheus, disk.failing("read"), NbdClient(hosts[0].socket) as client:
            assert client.do(0, offset=0, length=4 * KIB)
            prometheus.wait_fired("CsnapIoErrors")
            found = prometheus.query('ALERTS{alertname="CsnapIoErrors"}')
            labels = {(one["metric"]["host"], one["metric"]["op"], one["metric"]["errno"]) for one in found}
            assert labels == {("host-a", "read", "EIO")}
            assert prometheus.fired() <= SLOW_MACHINE | {"CsnapIoErrors"}
