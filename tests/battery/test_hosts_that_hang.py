"""Hosts that hang, are fenced by killing, and what goes wrong meanwhile."""

from __future__ import annotations

import signal
import time

import pytest

from tests.battery.scene import LIMIT, Scene
from tests.support.etcd_server import wait_for

pytestmark = pytest.mark.timeout(180)


def test_a_host_hangs_and_a_member_of_etcd_dies(scene: Scene) -> None:
    """Two faults at once: a host that hangs is fenced by killing it although a member of etcd is killed meanwhile."""
    hung, *others = scene.cluster
    begun = time.monotonic()
    hung.pause()
    scene.cluster.etcds[0].kill()
    fenced = scene.observer.wait_fenced(hung.name, begun)
    assert scene.answered(hung) < scene.observer.died[hung.name]
    assert hung.wait_exit() == -signal.SIGKILL
    scene.lost(hung, fenced)
    scene.go_on(others)
    scene.cluster.etcds[0].start()
    scene.back(hung)
    scene.end()


def test_the_coordinator_dies_while_it_fences(slowly_fenced: Scene) -> None:
    """A host hangs; whoever fences it is killed in the middle of that; the third one fences both, and goes on alone."""
    scene, observer = slowly_fenced, slowly_fenced.observer
    hung = scene.cluster[0]
    begun = time.monotonic()
    hung.pause()
    wait_for(lambda: observer.members[hung.name] == "fencing", "it is being fenced", LIMIT)
    (coordinator,) = [host for host in scene.cluster if host.name == observer.coordinators[hung.name]]
    (last,) = [host for host in scene.cluster if host not in (hung, coordinator)]
    coordinator.kill()
    assert hung.name not in observer.fenced
    fenced = observer.wait_fenced(hung.name, begun)
    observer.wait_gone(hung.name)
    observer.wait_gone(coordinator.name)
    scene.lost(coordinator)
    assert hung.wait_exit() == -signal.SIGKILL
    scene.lost(hung, fenced)
    scene.go_on([last])
    scene.back(hung, coordinator)
    scene.end()
