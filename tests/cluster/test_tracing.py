"""``csnap trace`` and ``csnap locks`` on real daemons: what was slow, where, and because of whom."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from demo.nbd import NbdClient
from snapd.cli.client import ask
from snapd.units import KIB, MIB
from tests.media.faulty import faulty_disk
from tests.support.daemons import Daemon, Hosts
from tests.support.etcd_server import wait_for

pytestmark = pytest.mark.timeout(180)

CHUNK = 16 * KIB
LIMIT = 30.0


def slow_requests(host: Daemon, threshold: str = "100ms") -> list[dict[str, Any]]:
    """What ``csnap trace --once --json`` prints, without its summary."""
    lines = host.csnap("trace", "CONFIG", "--once", "--json", "--threshold", threshold).splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[-1]["event"] == "summary"
    return rows[:-1]


def one(host: Daemon, **wanted: object) -> dict[str, Any]:
    """Return the slowest request that is answered."""
    rows = [row for row in slow_requests(host) if row["event"] == "request"]
    assert rows, "nothing was slow"
    row = max(rows, key=lambda row: float(row["took_ms"]))
    assert {key: row[key] for key in wanted} == wanted, row
    assert sum(row["stages_ms"].values()) == pytest.approx(row["took_ms"], abs=0.1)
    return row


@contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """``action`` runs in a thread; it has ended when this has."""
    thread = threading.Thread(target=action)
    thread.start()
    try:
        yield
    finally:
        thread.join(LIMIT)
        assert not thread.is_alive()


def write(host: Daemon, chunk: int) -> None:
    with NbdClient(host.socket, "origin") as client:
        client.write(chunk * CHUNK, b"n" * CHUNK)


def waits(host: Daemon) -> list[dict[str, Any]]:
    rows = json.loads(host.csnap("locks", "CONFIG", "--json"))
    return [row for row in rows if row["state"] == "waiting"]


def test_a_region_that_another_host_does_not_give_back(patient: Hosts) -> None:
    """Host b holds the region and hangs; a's write waits. ``locks`` says on both for whom, ``trace`` shows the request
    while it waits and, when it is over, that the time went into the lock of b."""
    first, second = patient
    first.csnap("snapshot", "create", "CONFIG", "s1", "--cow", patient.cow("cow"))
    write(second, 0)
    second.pause(control=False)
    began = time.monotonic()
    with meanwhile(lambda: write(first, 1)):
        wait_for(lambda: waits(first), "host-a waits", LIMIT)
        wait_for(lambda: slow_requests(first), "the request is slow by now", LIMIT)
        (row,) = slow_requests(first)
        assert (row["event"], row["stage"], row["region"], row["waited_for"]) == ("under_way", "region", 0, ["host-b"])
        (ticket,) = waits(first)
        assert (ticket["kind"], ticket["region"], ticket["node"], ticket["mode"]) == ("region", 0, "host-a", "EX")
        assert (ticket["position"], ticket["waits_for"], ticket["bytes"][0]) == (1, ["host-b"], 0)
        assert ask(str(first.directory / "admin.sock"), {"command": "locks"})[0]["resource"]
        shown = second.csnap("locks", "CONFIG")
        assert "region 0 (bytes 0B to" in shown and "wanted by others" in shown and "asked back" in shown
        assert "host-a  EX  waits" in shown and "1. in the queue, for host-b" in shown
        assert max(map(len, shown.splitlines())) <= 80
        second.resume()
    waited = (time.monotonic() - began) * 1000
    row = one(first, op="write", export="origin", offset=CHUNK, longest="region", region=0, waited_for=["host-b"])
    assert 0.5 * row["took_ms"] < row["stages_ms"]["region"] < waited
    text = first.csnap("trace", "CONFIG", "--once")
    assert "region 0: host-b" in text and "csnap locks" in text
    assert max(map(len, text.splitlines())) <= 80
    assert not waits(first)


def test_a_slow_cow_device_and_a_hanging_one() -> None:
    """Every request of the COW device takes 150 ms: the copy and the commit took the time, not the origin. One that
    hangs shows the stage that its request is in."""
    with faulty_disk(16 * MIB, delay=150) as disk, Hosts(1, lease_ttl=20) as hosts:
        hosts.start()
        (host,) = hosts
        host.csnap("snapshot", "create", "CONFIG", "s1", "--cow", disk.path)
        write(host, 0)
        row = one(host, op="write", snapshot="s1", waited_for=[])
        assert row["stages_ms"]["write_cow"] >= 100 and row["stages_ms"]["commit"] >= 100, row
        assert row["stages_ms"]["io"] + row["stages_ms"]["region"] < 100, row
        assert row["longest"] in ("write_cow", "commit")
        go = threading.Event()
        with meanwhile(lambda: (go.wait(LIMIT), write(host, 1))), disk.hanging():

            def hangs() -> bool:
                rows = [row for row in slow_requests(host) if row["event"] == "under_way"]
                return bool(rows) and rows[0]["stage"] == "write_cow" and rows[0]["offset"] == CHUNK

            go.set()
            wait_for(hangs, "the write is shown while it hangs", LIMIT)


def test_a_slow_origin() -> None:
    """Every request of the origin takes 150 ms: a read, and a write that needs no copy, spent it in their own I/O; one
    that copies spent it reading the old content too."""
    with faulty_disk(8 * MIB, delay=150) as disk, Hosts(1, lease_ttl=20, origin=disk.path) as hosts:
        hosts.start()
        (host,) = hosts
        with NbdClient(host.socket, "origin") as client:
            client.read(0, CHUNK)
        row = one(host, op="read", longest="io", export="origin", length=CHUNK)
        assert row["stages_ms"]["io"] >= 150
        host.csnap("snapshot", "create", "CONFIG", "s1", "--cow", hosts.cow("cow"))
        write(host, 5)
        row = one(host, op="write", offset=5 * CHUNK)
        assert row["stages_ms"]["read_old"] >= 100 and row["stages_ms"]["io"] >= 100, row
        assert row["stages_ms"]["write_cow"] + row["stages_ms"]["commit"] < 100, row


def test_a_lower_threshold_is_in_force_while_somebody_asks(two: Hosts) -> None:
    """Nothing of normal traffic is noted by itself; with ``--threshold 0ms`` it is, and 5 s after the last question no
    more. A restart of the daemon in between is survived."""
    host = two[0]
    admin = str(host.directory / "admin.sock")
    write(host, 0)
    assert slow_requests(host) == []
    asked = {"command": "trace", "threshold_ns": 0, "after": {}}
    assert ask(admin, asked)["threshold_ms"] == 0

    def noted() -> bool:
        write(host, 0)
        return any(row["op"] == "write" for row in ask(admin, asked)["requests"])

    wait_for(noted, "a write of a millisecond is noted", LIMIT)
    wait_for(
        lambda: ask(admin, {"command": "trace", "after": {}})["threshold_ms"] == 100, "nobody asks any more", LIMIT
    )
