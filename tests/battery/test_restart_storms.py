"""Everything dies at once, and starts again."""

from __future__ import annotations

import pytest

from tests.battery.scene import Scene

pytestmark = pytest.mark.timeout(180)


def test_all_hosts_are_killed_three_times(patient: Scene) -> None:
    """kill -9 of every process of every host at once, under load, and all started at once: three times over."""
    for _ in range(3):
        for host in patient.cluster:
            assert host.process is not None
            host.kill_worker()
            host.process.kill()
        for host in patient.cluster:
            host.wait_exit()
            patient.lost(host)
        patient.back(*patient.cluster)
        patient.go_on()
    assert patient.observer.fenced == {}
    patient.end()
