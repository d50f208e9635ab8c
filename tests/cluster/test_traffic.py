"""How much a host asks of etcd, counted by etcd itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from demo.nbd import NbdClient
from snapd.units import MIB
from tests.support.daemons import Hosts
from tests.support.traffic import Traffic, take

QUIET = {"LeaseKeepAlive", "Watch"}  # keepalives; progress requests


def counted(cluster: Hosts, action: Callable[[], None]) -> Counter[str]:
    """Return the requests that etcd received while ``action`` ran."""
    before = cluster.etcd_requests()
    action()
    return cluster.etcd_requests() - before


def test_a_host_alone_asks_nothing() -> None:
    """A host alone writes under a snapshot, its locks cached: no etcd requests but keepalives and watch progress."""
    with Hosts(1) as cluster:
        cluster.start()
        take(cluster[0], "s1", cluster.cow("cow"))
        with Traffic(cluster) as traffic:
            (writer,) = traffic.write_everywhere()
            with NbdClient(cluster[0].socket, "origin") as client:
                for at in range(0, client.size, MIB):  # every region and an extent of the tail
                    client.write(at, bytes(4096))
            traffic.go_on(writer)
            requests = counted(cluster, lambda: traffic.go_on(writer, count=1000))
            assert set(requests) <= QUIET, requests
            assert sum(requests.values()) < 100


def test_an_uncontended_lock_is_one_round_trip() -> None:
    """The first write to each region under a snapshot asks etcd once, and once for the tail; the second not at all."""
    with Hosts(1) as cluster:
        cluster.start()
        host = cluster[0]
        take(host, "s1", cluster.cow("cow"))
        with NbdClient(host.socket, "origin") as client:
            client.write(0, bytes(4096))  # takes the tail

            def touch() -> None:
                for at in range(1, 8):
                    client.write(at * MIB, bytes(4096))

            first = counted(cluster, touch)
            assert {name: count for name, count in first.items() if name not in QUIET} == {"Txn": 7}
            again = counted(cluster, touch)
            assert set(again) <= QUIET
