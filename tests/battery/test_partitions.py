"""Hosts that are cut off from etcd, in one direction, in both, from one member or from all."""

from __future__ import annotations

import time

import pytest

from tests.battery.far import Far
from tests.battery.network import BOTH, RECEIVING, SENDING
from tests.battery.scene import LIMIT, Scene, while_away

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("directions", [(SENDING,), (RECEIVING,), BOTH], ids="+".join)
def test_one_host_is_cut_off(far: Far, far_scene: Scene, directions: tuple[str, ...]) -> None:
    """The host that is cut off answers nothing any more before its lease can have ended; the others fence it and go on.

    Its writes are refused by its own devices. When the network is back it finds itself fenced and exits with 4.
    """
    scene, observer = far_scene, far_scene.observer
    cut, *others = scene.cluster
    begun = time.monotonic()
    far.network.cut(cut.name, *directions)
    fenced = observer.wait_fenced(cut.name, begun)
    assert scene.answered(cut) < observer.died[cut.name]
    assert cut.state() == "stalled"
    far.assert_fenced(cut)
    observer.wait_gone(cut.name)
    scene.go_on(others)
    assert scene.answered(cut) < observer.died[cut.name]  # nor later
    far.network.mend(cut.name)
    assert cut.wait_exit(LIMIT) == 4
    scene.lost(cut, fenced)
    scene.go_on(others)
    far.unfence(cut)
    scene.back(cut)
    scene.end()


def test_a_host_is_cut_off_from_one_member(far: Far, far_scene: Scene) -> None:
    """Whichever one member of etcd a host cannot reach, it goes on by another one, in time: nobody is fenced."""
    scene = far_scene
    for member in range(len(scene.cluster.etcds)):
        far.network.cut(scene.cluster[0].name, *BOTH, members=[member])
        scene.go_on()
        far.network.mend(scene.cluster[0].name)
    assert scene.observer.fenced == {}
    scene.end()


def test_all_hosts_are_cut_off(far: Far, far_scene: Scene) -> None:
    """No host can reach etcd for longer than the TTL: nobody can recover anybody; all go on when they can."""
    scene = far_scene
    for host in scene.cluster:
        far.network.cut(host.name, *BOTH)
    scene.wait_stalled()
    still = [scene.answered(host) for host in scene.cluster]
    while_away(scene.cluster.volume.lease_ttl + 1)
    assert [scene.answered(host) for host in scene.cluster] == still
    for host in scene.cluster:
        far.network.mend(host.name)
    scene.wait_active()
    scene.go_on()
    scene.paused_only(1)
    scene.end()


def test_a_host_that_hangs_is_fenced_at_its_devices(far: Far, far_scene: Scene) -> None:
    """Control and worker are stopped beyond the TTL, and fenced: the late write of the worker's own descriptor fails.

    When they run again, no client gets another answer, and the daemon exits with 4.
    """
    scene, observer = far_scene, far_scene.observer
    hung, *others = scene.cluster
    begun = time.monotonic()
    hung.pause()
    fenced = observer.wait_fenced(hung.name, begun)
    far.assert_fenced(hung)
    observer.wait_gone(hung.name)
    scene.go_on(others)
    hung.resume()
    assert hung.wait_exit(LIMIT) == 4
    assert scene.answered(hung) < observer.died[hung.name]
    scene.lost(hung, fenced)
    scene.go_on(others)
    far.unfence(hung)
    scene.back(hung)
    scene.end()
