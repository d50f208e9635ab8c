"""Snapshots under writing hosts: of one moment, the same everywhere, unchanged by anything."""

from __future__ import annotations

import json
import time

from demo.host import checked_csnap, run_csnap
from demo.nbd import NbdClient
from demo.raw import rebuild
from snapd.units import KIB
from tests.support.daemons import Daemon, Hosts
from tests.support.etcd_server import wait_for
from tests.support.traffic import Traffic, fails, read_export, take


def test_snapshot_under_writers(two: Hosts) -> None:
    """A snapshot taken while both hosts write is one moment's; it stays so on both hosts and on the raw devices."""
    cow = two.cow("cow")
    with Traffic(two) as traffic:
        writers = traffic.write_everywhere()
        traffic.go_on(*writers, count=300)
        began, returned = take(two[0], "s1", cow)
        image = read_export(two[1], "snapshot/s1")
        readers = traffic.read_everywhere("s1", image)
        traffic.go_on(*writers, *readers, count=300)
        traffic.stop()
        traffic.judge(image, began, returned)
        traffic.judge_origin()
    assert [host.terminate() for host in two] == [0, 0]
    two.check(cow)
    assert rebuild(two.volume.origin, cow, json.loads(checked_csnap("dump", cow, "--json"))) == image


def test_three_hosts_delete_and_take_again(three: Hosts) -> None:
    """Three hosts: one snapshot is deleted and another taken on the same device by another host, all under writers."""
    cow = three.cow("cow")
    with Traffic(three) as traffic:
        writers = traffic.write_everywhere()
        traffic.go_on(*writers)
        for number, host in enumerate(three):
            name = f"s{number}"
            began, returned = take(host, name, cow)
            image = read_export(three[number - 1], f"snapshot/{name}")
            readers = [traffic.read(other, name, image) for other in three]
            traffic.go_on(*writers, *readers, count=40)
            for reader in readers:
                traffic.end(reader)
            three[number - 2].csnap("snapshot", "delete", "CONFIG", name)
            traffic.go_on(*writers, count=10)
            traffic.check_later(image, began, returned)
        traffic.stop()
        traffic.judge_origin()
    for host in three:
        assert json.loads(host.csnap("snapshot", "list", "CONFIG", "--json")) == []
        assert fails(lambda host=host: NbdClient(host.socket, "snapshot/s0"))  # type: ignore[misc]


def test_a_writable_snapshot(two: Hosts) -> None:
    """Both hosts write a snapshot and the origin at once: each has its own writes and nothing of the other's."""
    two[0].csnap("snapshot", "create", "CONFIG", "w", "--cow", two.cow("cow"), "--writable")
    with Traffic(two) as traffic:
        writers = [*traffic.write_everywhere(), *traffic.write_everywhere("snapshot/w")]
        traffic.go_on(*writers, count=150)
        traffic.stop()
        traffic.judge_origin()
        traffic.judge_now("snapshot/w")
    assert [host.terminate() for host in two] == [0, 0]
    two.check(two.cow("cow"))


def test_a_full_cow_device(two: Hosts) -> None:
    """A COW device too small: the snapshot becomes invalid on every host, and no writer sees an error."""
    cow = two.cow("small", 512 * KIB)
    with Traffic(two) as traffic:
        writers = traffic.write_everywhere()
        traffic.go_on(*writers, count=20)
        take(two[0], "s1", cow)

        def invalid() -> bool:
            states = [host.status() for host in two]
            return all(state is not None and state["snapshots"][0]["state"] == "invalid" for state in states)

        wait_for(invalid, "the snapshot is invalid on both hosts", 30)
        for host in two:
            assert fails(lambda host=host: read_export(host, "snapshot/s1"))  # type: ignore[misc]
            status = host.status()
            assert status is not None
            assert status["snapshots"][0]["dm_status"] == "Invalid"
        traffic.go_on(*writers, count=300)
        two[1].csnap("snapshot", "delete", "CONFIG", "s1")
        take(two[1], "s2", two.cow("large"))
        traffic.go_on(*writers, count=20)
        traffic.stop()
        traffic.judge_origin()


def test_a_host_that_hangs_refuses_the_snapshot(patient: Hosts) -> None:
    """A stopped host: after freeze_limit the command fails, naming it; everybody goes on; later it works."""
    cow = patient.cow("cow")
    with Traffic(patient) as traffic:
        writer, hung = (traffic.write(host, 0, 1000) for host in patient)
        traffic.go_on(writer, hung)
        patient[1].pause()
        try:
            begun = time.monotonic()
            refused = run_csnap("snapshot", "create", patient[0].config, "s1", "--cow", cow)
            assert refused.returncode == 1
            assert "host-b" in refused.stderr
            assert len(refused.stderr.splitlines()) == 1
            assert time.monotonic() - begun < 15
            traffic.go_on(writer)
            assert json.loads(patient[0].csnap("snapshot", "list", "CONFIG", "--json")) == []
        finally:
            patient[1].resume()
        traffic.go_on(writer, hung)
        take(patient[1], "s1", cow)
        traffic.go_on(writer, hung)
        traffic.stop()
        traffic.judge_origin()


def test_foreign_content_is_not_overwritten(two: Hosts) -> None:
    """A COW device with foreign content is refused by every host that is asked, and taken with --force."""
    cow = two.cow("cow")
    with open(cow, "r+b") as file:
        file.seek(64 * KIB)
        file.write(b"somebody's data")
    before = cow.read_bytes()
    refused = run_csnap("snapshot", "create", two[0].config, "s1", "--cow", cow)
    assert refused.returncode == 1
    assert cow.read_bytes() == before
    two[1].csnap("snapshot", "create", "CONFIG", "s1", "--cow", cow, "--force")
    assert not any(read_export(two[0], "snapshot/s1"))


def why(host: Daemon) -> str:
    """What keeps the host from serving."""
    found = host.status()
    return str(found["member"]["why"]) if found is not None else ""


def test_a_cow_device_that_is_gone_for_good(two: Hosts) -> None:
    """All hosts restart without the COW device: they say so and serve nothing until its snapshot is deleted."""
    cow = two.cow("cow")
    two[0].csnap("snapshot", "create", "CONFIG", "s1", "--cow", cow)
    assert [host.terminate() for host in two] == [0, 0]
    cow.unlink()
    for host in two:
        host.start()
    for host in two:
        wait_for(lambda host=host: "s1" in why(host), f"{host.name} names the snapshot")  # type: ignore[misc]
        assert host.state() == "joining"
    two[1].csnap("snapshot", "delete", "CONFIG", "s1")
    for host in two:
        host.wait_active()
    with Traffic(two) as traffic:
        traffic.go_on(*traffic.write_everywhere(), count=20)
        traffic.stop()
        traffic.judge_origin()
