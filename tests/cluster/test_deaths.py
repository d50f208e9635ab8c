"""Processes and hosts that die, and an etcd that goes away: the others go on, nothing is lost, nothing changes."""

from __future__ import annotations

import time

import pytest

from tests.support.daemons import Daemon, Hosts
from tests.support.etcd_server import wait_for
from tests.support.traffic import Traffic, read_export, take


def test_killed_and_started_again(patient: Hosts) -> None:
    """kill -9 of the control process, then of the worker: the other follows; a new start recovers its holds at once."""
    killed, other = patient[0], patient[1]
    with Traffic(patient) as traffic:
        writers = traffic.write_everywhere()
        traffic.go_on(*writers)
        began, returned = take(killed, "s1", patient.cow("cow"))
        image = read_export(other, "snapshot/s1")
        reader = traffic.read(other, "s1", image)
        for kill in (Daemon.kill, Daemon.kill_worker):
            kill(killed)
            if killed.process is not None:
                assert killed.wait_exit() != 0
            traffic.forget(writers[0])
            begun = time.monotonic()
            killed.start()
            killed.wait_active()
            assert time.monotonic() - begun < patient.volume.lease_ttl / 2
            writers[0] = traffic.write(killed, 0, 2000)
            traffic.go_on(*writers, reader)
            assert read_export(killed, "snapshot/s1") == image
        traffic.stop()
        traffic.judge(image, began, returned)
        traffic.judge_origin()
    assert other.metrics().sum("csnap_fence_events_total") == 0


def test_a_host_killed_for_good(three: Hosts) -> None:
    """A host dies for good: the others fence it, take over what it held and go on; nothing in the snapshot changes."""
    dead, *living = three
    with Traffic(three) as traffic:
        writers = traffic.write_everywhere()
        traffic.go_on(*writers)
        began, returned = take(dead, "s1", three.cow("cow"))
        image = read_export(living[0], "snapshot/s1")
        readers = [traffic.read(host, "s1", image) for host in living]
        traffic.go_on(*writers, *readers, count=40)
        dead.kill()
        traffic.forget(writers[0])

        wait_fenced(dead, *living)
        for host in living:
            wait_for(lambda host=host: locks_of(host, dead.name) == 0, "its locks are gone")  # type: ignore[misc]
        traffic.go_on(*writers[1:], *readers, count=40)
        take(living[1], "s2", three.cow("second"))
        traffic.go_on(*writers[1:], *readers, count=40)
        dead.start()
        dead.wait_active()
        assert read_export(dead, "snapshot/s1") == image
        traffic.stop()
        traffic.judge(image, began, returned)
        traffic.judge_origin()


@pytest.mark.parametrize("what", ["host", "control", "worker"])
def test_a_host_that_hangs_is_fenced(two: Hosts, what: str) -> None:
    """A host, or one process of it, hangs past the TTL: the other goes on; the victim wakes up, is fenced, exits 4."""
    hung, living = two
    with Traffic(two) as traffic:
        writers = traffic.write_everywhere()
        traffic.go_on(*writers)
        began, returned = take(living, "s1", two.cow("cow"))
        image = read_export(living, "snapshot/s1")
        reader = traffic.read(living, "s1", image)
        traffic.go_on(*writers, reader)
        hung.pause(control=what != "worker", worker=what != "control")
        wait_fenced(hung, living)
        fenced = time.monotonic()
        traffic.go_on(writers[1], reader)
        hung.resume()
        assert hung.wait_exit() == 4
        traffic.forget(writers[0], fenced=fenced)
        traffic.go_on(writers[1], reader)
        traffic.stop()
        traffic.judge(image, began, returned)
        traffic.judge_origin()


def wait_fenced(dead: Daemon, *living: Daemon) -> None:
    """Wait until one of the living has fenced the dead one."""

    def fenced() -> bool:
        return any(host.metrics().sum("csnap_fence_events_total", target=dead.name) for host in living)

    wait_for(fenced, f"{dead.name} is fenced", 40)


def locks_of(host: Daemon, node: str) -> int:
    """Return how many holds and tickets of ``node`` this host sees."""
    return sum(node in line for line in host.csnap("locks", "CONFIG").splitlines())


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_etcd_is_away_for_longer_than_a_lease(two: Hosts, how: str) -> None:
    """Without etcd for more than the TTL the hosts stall; when it is back they go on. Nobody sees an error."""
    with Traffic(two) as traffic:
        writers = traffic.write_everywhere()
        traffic.go_on(*writers)
        began, returned = take(two[0], "s1", two.cow("cow"))
        image = read_export(two[1], "snapshot/s1")
        readers = traffic.read_everywhere("s1", image)
        traffic.go_on(*writers, *readers)
        leave, come = (two.etcd.pause, two.etcd.resume) if how == "stopped" else (two.etcd.kill, two.etcd.start)
        gone = time.monotonic()
        leave()
        for host in two:
            wait_for(lambda host=host: host.state() == "stalled", f"{host.name} stalls")  # type: ignore[misc]
        still = [len(writer.writes) for writer in writers]
        wait_for(lambda: time.monotonic() > gone + two.volume.lease_ttl + 2, "the leases have ended")
        assert [len(writer.writes) for writer in writers] == still
        come()
        for host in two:
            host.wait_active()
        traffic.go_on(*writers, *readers)
        traffic.stop()
        traffic.judge(image, began, returned)
        traffic.judge_origin()
        assert max(writer.longest for writer in writers) > 1  # it was a pause indeed


def test_stop_without_etcd(two: Hosts) -> None:
    """SIGTERM ends a daemon with 0 within ten seconds, with clients connected, also when etcd is gone."""
    with Traffic(two) as traffic:
        writers = traffic.write_everywhere()
        traffic.go_on(*writers)
        assert two[0].terminate() == 0
        two.etcd.kill()
        assert two[1].terminate() == 0
        traffic.forget(*writers)
