"""Members of etcd that die, hang, and come back: the hosts pause, nothing else."""

from __future__ import annotations

import pytest

from tests.battery.scene import LIMIT, Scene, while_away
from tests.support.etcd_server import EtcdServer, wait_for

pytestmark = pytest.mark.timeout(180)


def leader(etcds: list[EtcdServer]) -> EtcdServer:
    """Wait for a leader; return it."""
    found: list[EtcdServer] = []

    def led() -> bool:
        found[:] = [etcd for etcd in etcds if etcd.leads()]
        return len(found) == 1

    wait_for(led, "etcd has a leader", LIMIT)
    return found[0]


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_the_leader_goes(scene: Scene, how: str) -> None:
    """etcd's leader is killed, or hangs: another one is elected; a pause at most, no error; it comes back, no pause."""
    gone = leader(scene.cluster.etcds)
    (gone.kill if how == "killed" else gone.pause)()
    leader([etcd for etcd in scene.cluster.etcds if etcd is not gone])
    scene.go_on()
    (gone.start if how == "killed" else gone.resume)()
    gone.wait_ready()
    scene.go_on()
    assert scene.observer.fenced == {}
    scene.end()


def test_quorum_lost_and_back(scene: Scene) -> None:
    """Two of three members hang for longer than the TTL: every host stalls, then goes on; nobody is fenced."""
    first, second, _ = scene.cluster.etcds
    first.pause()
    second.pause()
    scene.wait_stalled()
    still = [scene.answered(host) for host in scene.cluster]
    while_away(scene.cluster.volume.lease_ttl + 1)
    assert [scene.answered(host) for host in scene.cluster] == still
    first.resume()
    second.resume()
    scene.wait_active()
    scene.go_on()
    scene.paused_only(1)
    scene.end()
