"""An etcd that has no space left, or forgets its past under the hosts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from queue import SimpleQueue

import pytest

from demo.nbd import NbdClient
from snapd.errors import LockspaceError
from snapd.lockspace.etcd import Etcd
from snapd.lockspace.etcd_sync import EtcdSync
from snapd.lockspace.kv import Failure, Put, Txn, TxnResult
from snapd.units import MIB, SECOND
from tests.battery.observer import Observer
from tests.battery.scene import LIMIT, Scene, fence_by_killing, while_away
from tests.support.daemons import Hosts
from tests.support.etcd_server import EtcdServer, wait_for
from tests.support.traffic import take

pytestmark = pytest.mark.timeout(180)

QUOTA = 4 * MIB
CHUNK = 4096
TTL = 3
FLOOD, FLOOD_DEPTH = 3000, 100


@pytest.fixture
def small() -> Iterator[Hosts]:
    """Three hosts over an etcd with little space."""
    etcd = EtcdServer(arguments=["--quota-backend-bytes", str(QUOTA)])
    with etcd, Hosts(3, etcds=[etcd], chunk_size="4KiB", lease_ttl=TTL) as cluster:
        fence_by_killing(cluster)
        cluster.start()
        yield cluster


def fill(etcd: EtcdServer) -> None:
    """Put foreign keys until there is no space."""
    with EtcdSync([etcd.url]) as client, pytest.raises(LockspaceError, match="space"):
        for number in range(2 * QUOTA // (64 << 10)):
            client.txn(Txn((), (Put(f"/fill/{number:04}", bytes(64 << 10)),)))


def flood(etcd: EtcdServer, key: str) -> None:
    """Put this key more often than etcd, gRPC and the sockets between them keep for a slow watcher."""
    answers: SimpleQueue[TxnResult | Failure] = SimpleQueue()
    driver = Etcd([etcd.url], lambda action: action())
    with closing(driver):
        for number in range(FLOOD):
            if number >= FLOOD_DEPTH:
                assert isinstance(answers.get(timeout=LIMIT), TxnResult)
            driver.txn(Txn((), (Put(key, bytes(4096)),)), int(LIMIT) * SECOND, answers.put)
        for _ in range(FLOOD_DEPTH):
            assert isinstance(answers.get(timeout=LIMIT), TxnResult)


def empty(etcd: EtcdServer) -> None:
    """What an administrator does: delete, compact, defragment, disarm."""
    etcd.etcdctl("del", "--prefix", "/fill/")
    etcd.etcdctl("compact", str(etcd.revision()))
    etcd.etcdctl("defrag")
    etcd.etcdctl("alarm", "disarm")


def test_no_space(small: Hosts) -> None:
    """etcd full: who holds a lock goes on, who needs one waits, a dead host is not recovered; then all of that goes on.

    No request fails, and nobody is fenced but the dead one.
    """
    holder, waiter, dead = small
    take(holder, "s1", small.cow("cow"))
    etcd = small.etcd
    with (
        Observer([etcd.url], small.volume.uuid) as observer,
        NbdClient(holder.socket, "origin") as origin,
        NbdClient(waiter.socket, "snapshot/s1", timeout=LIMIT) as snapshot,
    ):
        origin.write(0, b"1" * CHUNK)  # takes the region and the tail
        fill(etcd)
        for chunk in range(1, 100):
            origin.write(chunk * CHUNK, b"2" * CHUNK)  # copied out, under the cached locks
        answers: list[bytes] = []
        waiting = threading.Thread(target=lambda: answers.append(snapshot.read(200 * CHUNK, CHUNK)), daemon=True)
        waiting.start()
        dead.kill()
        wait_for(lambda: observer.died.get(dead.name, 0) > 0, "its lease ends", LIMIT)
        while_away(2 * TTL)  # more than its survivors' patience
        assert observer.members[dead.name] == "active"
        assert waiting.is_alive()
        assert holder.state() == waiter.state() == "active"
        origin.write(100 * CHUNK, b"2" * CHUNK)

        empty(etcd)
        waiting.join(LIMIT)
        assert answers == [bytes(CHUNK)]
        observer.wait_gone(dead.name)
        assert set(observer.fenced) == {dead.name}
        origin.write(200 * CHUNK, b"3" * CHUNK)
        assert not any(snapshot.read(0, MIB))
        assert observer.problems == []


def test_compaction_under_the_watch(patient: Scene) -> None:
    """Compacted up to now again and again; then while one host's watch is far behind: it reads anew and goes on."""
    etcd = patient.cluster.etcd
    for _ in range(20):
        etcd.compact(etcd.revision())
        patient.go_on(count=2)
    slow = patient.cluster[0]
    slow.pause(worker=False)
    flood(etcd, f"/csnap/{patient.cluster.volume.uuid}/foreign")
    etcd.compact(etcd.revision())
    slow.resume()
    wait_for(lambda: "compacted" in slow.log.read_text(), "its watch is told so", LIMIT)
    patient.go_on()
    assert patient.observer.fenced == {}
    patient.end()
