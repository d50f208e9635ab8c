"""A volume of csnap 0.1 under daemons of this version: it works as it is, and is raised when asked for.

What 0.1 itself makes of it: tests/unit/test_protocol.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from demo.host import CommandFailed
from snapd.lockspace.etcd_sync import EtcdSync
from snapd.lockspace.keys import Keys
from snapd.lockspace.kv import Delete, Put, Range, RangeResult, Txn
from tests.support.daemons import Daemon, Hosts
from tests.support.etcd_server import wait_for

MEMBER = (
    '{"address":"","boot_id":"boot-9","by":"","by_node":"","fence_key":"","incarnation":"old","lock_path":"/l",'
    '"machine_id":"machine-9","node":"host-9","state":"active"}'
)


@pytest.fixture
def cluster() -> Iterator[Hosts]:
    """Two daemons in a volume whose record is as 0.1 wrote it."""
    with Hosts(2) as hosts:
        hosts[0].csnap("volume", "init", "CONFIG")
        key = Keys(hosts.volume.uuid).format
        value = json.loads(_get(hosts, key))
        assert value["protocol"] == 2  # a new volume
        _do(hosts, Put(key, json.dumps({**value, "protocol": 1}).encode()))
        for host in hosts:
            host.start()
        for host in hosts:
            host.wait_active()
        yield hosts


def _do(hosts: Hosts, *operations: Put | Delete) -> None:
    with EtcdSync([hosts.etcd.url], None) as etcd:
        assert etcd.txn(Txn((), operations)).succeeded


def _get(hosts: Hosts, key: str) -> bytes:
    with EtcdSync([hosts.etcd.url], None) as etcd:
        found = etcd.txn(Txn((), (Range(key),))).results[0]
    assert isinstance(found, RangeResult)
    return found.kvs[0].value


def status(host: Daemon) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(host.csnap("status", "CONFIG", "--json"))
    return shown


def test_a_volume_is_raised_when_every_member_speaks_it(cluster: Hosts) -> None:
    """Refused, by name, beside a member of 0.1; then done, while both serve; from then on status says since when."""
    host = cluster[0]
    member = Keys(cluster.volume.uuid).member("host-9")
    _do(cluster, Put(member, MEMBER.encode()))
    with pytest.raises(CommandFailed, match=r"host-9 has a csnap of 0\.1, which speaks protocol 1, expected 2"):
        host.csnap("volume", "upgrade", "CONFIG")
    assert status(host)["protocol"] == {"in_force": 1, "oldest": 1, "newest": 2, "spoken_by_all": 1}
    _do(cluster, Delete(member))
    wait_for(lambda: status(host)["protocol"]["spoken_by_all"] == 2, "the member has gone", 10)
    assert "all members speak a newer one: csnap volume upgrade vol" in host.csnap("status", "CONFIG")
    assert host.csnap("volume", "upgrade", "CONFIG") == "protocol 2 is in force, it was 1\n"
    wait_for(lambda: all(row["started"] for row in status(host)["members"]), "every record is in the new shape", 10)
    assert all(abs(row["started"] - time.time()) < 300 for row in status(host)["members"])
    assert host.csnap("volume", "upgrade", "CONFIG") == "protocol 2 is in force already\n"
    assert [daemon.state() for daemon in cluster] == ["active", "active"]
    assert cluster[1].terminate() == 0
    cluster[1].start()
    cluster[1].wait_active()
