"""Growing the origin, as docs/operations.md says it."""

from __future__ import annotations

import os

from snapd.units import MIB
from tests.support.daemons import Hosts
from tests.support.nbd_client import NbdClient


def test_the_origin_grows(two: Hosts) -> None:
    """No snapshot, all stopped, disk grown, the format's key deleted, init anew: both hosts serve the new size."""
    volume, old = two.volume, two.volume.origin.stat().st_size
    two[0].csnap("snapshot", "create", "CONFIG", "s1", "--cow", two.cow("s1"))
    with NbdClient(two[0].socket, "origin") as client:
        client.write(0, b"kept" * 1024)
    two[0].csnap("snapshot", "delete", "CONFIG", "s1")
    for host in two:
        assert host.terminate() == 0
    os.truncate(volume.origin, old + 8 * MIB)
    two.etcd.etcdctl("del", f"/csnap/{volume.uuid}/format")
    two.start()
    two[1].csnap("snapshot", "create", "CONFIG", "s2", "--cow", two.cow("s1"))
    for host in two:
        with NbdClient(host.socket, "origin") as client:
            assert client.size == old + 8 * MIB
            client.write(old + 4 * MIB, b"new" + b"\0" * 4093)
            assert client.read(0, 4096) == b"kept" * 1024
