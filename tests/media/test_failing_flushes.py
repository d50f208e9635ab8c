"""Flushes that fail, which no filter of nbdkit makes: whole hosts over disks in memory."""

from __future__ import annotations

import random
from errno import EIO
from typing import cast

from snapd.blockdev.memory import FLUSH, READ, WRITE, MemoryEngine
from snapd.units import KIB
from snapd.volume import request
from tests.crash.history import SPEC, Shape, first_truth, fresh, open_rig
from tests.crash.recorder import Recorder
from tests.support.worker_rig import Host, Rig

SHAPE = Shape()


def two_hosts() -> Rig:
    """With a snapshot in use."""
    rig = open_rig(SHAPE, Recorder(), fresh(SHAPE, random.Random(1)), hosts=2, seed=1)
    rig.run()
    for host in rig.hosts:
        assert rig.write(host, "origin", rig.hosts.index(host) * 20 * KIB, bytes(KIB)) == 0
    return rig


def engine_of(host: Host) -> MemoryEngine:
    return cast(MemoryEngine, host.engine)


def test_a_cow_device_that_cannot_be_flushed_costs_the_snapshot_only() -> None:
    """On one host's path: no entry may be written behind that, so the snapshot is lost; no writer sees an error, on
    either host, and nothing of the origin."""
    rig = two_hosts()
    engine_of(rig.hosts[0]).fail(rig.devices[SPEC.path], FLUSH)
    assert [rig.write(host, "origin", 50 * KIB, b"\1" * KIB) for host in rig.hosts] == [0, 0]
    assert rig.locks.snapshots[0].state == "invalid"
    for host in rig.hosts:
        errors: list[int] = []
        host.submit(host.export("snapshot/s1"), request.READ, 0, KIB, lambda error, _, to=errors: to.append(error))  # type: ignore[misc]
        rig.run()
        assert errors == [EIO]
        assert rig.read(host, "origin", 50 * KIB, KIB) == b"\1" * KIB


def test_an_origin_that_cannot_be_flushed_fails_flushes() -> None:
    """The client that asked for it hears of it, on that host; everything else goes on."""
    rig = two_hosts()
    engine = engine_of(rig.hosts[0])
    engine.fail(rig.origin, FLUSH)
    assert [rig.flush(host, "origin") for host in rig.hosts] == [EIO, 0]
    assert rig.write(rig.hosts[0], "origin", 60 * KIB, b"\1" * KIB) == 0
    assert rig.locks.snapshots[0].state == "active"
    assert all(rig.read_all(host, "snapshot/s1") == first_truth(SHAPE) for host in rig.hosts)
    engine.fail(rig.origin, FLUSH, count=0)
    assert rig.flush(rig.hosts[0], "origin") == 0


def test_metadata_that_cannot_be_read_again_by_one_host() -> None:
    """Its path to the COW device fails when it must pick up what the other has committed: it cannot know the truth, so
    the snapshot is lost; the origin is not."""
    rig = two_hosts()
    assert rig.write(rig.hosts[0], "origin", 70 * KIB, b"\1" * KIB) == 0
    engine_of(rig.hosts[1]).fail(rig.devices[SPEC.path], READ)
    assert rig.write(rig.hosts[1], "origin", 71 * KIB, b"\2" * KIB) == 0
    assert rig.read(rig.hosts[0], "origin", 70 * KIB, 2 * KIB) == b"\1" * KIB + b"\2" * KIB
    assert rig.locks.snapshots[0].state == "invalid"


def test_one_host_without_its_path_to_the_origin() -> None:
    """Its writes and reads fail; the other host's do not, and the snapshot stays right there."""
    rig = two_hosts()
    first, second = rig.hosts
    assert rig.write(first, "origin", 80 * KIB, b"\1" * KIB) == 0
    for kind in (READ, WRITE):
        engine_of(first).fail(rig.origin, kind)
    assert rig.write(first, "origin", 80 * KIB, b"\2" * KIB) == EIO
    assert rig.write(second, "origin", 80 * KIB, b"\3" * KIB) == 0
    assert rig.read(second, "origin", 80 * KIB, KIB) == b"\3" * KIB
    assert rig.read_all(second, "snapshot/s1") == first_truth(SHAPE)
    assert rig.locks.snapshots[0].state == "active"
