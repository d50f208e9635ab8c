"""What systemd and the log are told."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import pytest

from snapd.daemon.door import is_open
from snapd.daemon.events import MESSAGE_IDS
from snapd.daemon.log import connected, line, to_journal, to_stream
from snapd.daemon.loop import Loop
from snapd.daemon.notify import (
    LEASE_LIMIT,
    WORKER_LIMIT,
    Freshness,
    Notifier,
    find_notify,
    watchdog_interval,
    watchdog_warning,
)
from snapd.units import SECOND


def test_an_event_is_one_line_whatever_its_values_hold() -> None:
    """Plain values as they are, others quoted: no value can make a second line or a second key."""
    fields: dict[str, object] = {"node": "host-b", "attempt": 3, "error": 'no "power"\nfake event=1', "empty": ""}
    assert line("fence_failed", fields) == (
        'fence_failed node=host-b attempt=3 error="no \\"power\\"\\nfake event=1" empty=""'
    )
    assert len(line("x", {"long": "a" * 5000})) < 1100


def test_lines_go_to_standard_error_without_systemd() -> None:
    """Program, node, priority, event, fields; a stream that is gone stops nobody."""
    stream = io.StringIO()
    log = to_stream(stream, "host-a")
    log(4, "stalled", {"why": "etcd"})
    assert stream.getvalue() == "csnap[host-a] warning stalled why=etcd\n"
    stream.close()
    log(4, "stalled", {})


def test_the_journal_gets_structured_fields() -> None:
    """Each field of its own under CSNAP_*, so that journalctl can select by it; the event's id; and nothing else."""
    sent: list[tuple[str, dict[str, object]]] = []
    log = to_journal(lambda message, **fields: sent.append((message, fields)), "host-a", "v1")
    log(3, "fence_failed", {"target": "host-b"})
    assert sent == [
        (
            "fence_failed target=host-b",
            {
                "PRIORITY": 3,
                "MESSAGE_ID": MESSAGE_IDS["fence_failed"],
                "SYSLOG_IDENTIFIER": "csnap",
                "VOLUME": "v1",
                "NODE": "host-a",
                "CSNAP_EVENT": "fence_failed",
                "CSNAP_NODE": "host-a",
                "CSNAP_TARGET": "host-b",
            },
        )
    ]


def test_what_is_about_a_snapshot_says_so() -> None:
    """SNAPSHOT= beside VOLUME= and NODE=; an event that has no id is logged without one."""
    sent: list[dict[str, object]] = []
    log = to_journal(lambda message, **fields: sent.append(fields), "host-a", "v1")
    log(3, "snapshot_lost", {"snapshot": "s1"})
    log(3, "never_heard_of", {})
    assert (sent[0]["SNAPSHOT"], sent[0]["CSNAP_SNAPSHOT"]) == ("s1", "s1")
    assert not {"SNAPSHOT", "MESSAGE_ID"} & sent[1].keys()


def test_a_journal_that_does_not_read_gets_its_lines_later() -> None:
    """In order, with the next one that it takes: nothing is written to a full socket."""
    sent: list[str] = []
    room = False
    log = to_journal(lambda message, **fields: sent.append(message), "host-a", "v1", lambda: room)
    log(3, "one", {})
    log(3, "two", {})
    assert sent == []
    room = True
    log(3, "three", {})
    assert sent == ["one", "two", "three"]


def test_a_full_socket_is_seen_before_it_is_written_to(tmp_path: Path) -> None:
    """systemd-python would hold every thread up; absent, full and emptied again are told apart."""
    path = str(tmp_path / "socket")
    assert not is_open(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(path)
        assert is_open(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as writer:
            writer.connect(path)
            with pytest.raises(BlockingIOError):
                while True:
                    writer.send(b"x")
        assert not is_open(path)
        reader.recv(1)
        assert is_open(path)
    assert not is_open(path)


def test_readiness_is_told_again_until_systemd_listens() -> None:
    """READY=1 must not be lost: it comes with a later beat. A ping that is late is none."""
    told = Told(SECOND)
    told.deaf = True
    told.notifier.ready()
    assert told.later(SECOND) == []
    told.deaf = False
    assert told.later(SECOND) == ["WATCHDOG=1", "READY=1"]
    told.loop.close()


def test_a_watchdog_that_outlives_the_lease_is_named() -> None:
    """WatchdogSec= has to be below lease_ttl; what to write is said. Without a watchdog there is nothing to say."""
    assert watchdog_warning(4 * SECOND, 10, "v1") == watchdog_warning(0, 2, "v1") == ""
    assert "WatchdogSec= is 8 s, and lease_ttl 8 s" in watchdog_warning(4 * SECOND, 8, "v1")
    assert watchdog_warning(4 * SECOND, 5, "v1").endswith("systemctl edit csnapd@v1: [Service] WatchdogSec=4")


def test_the_journal_is_used_only_if_standard_error_is_it() -> None:
    """JOURNAL_STREAM is inherited by what a unit starts with another standard error."""
    status = os.fstat(2)
    assert connected(f"{status.st_dev}:{status.st_ino}")
    assert not connected("1:2")
    assert not connected("")


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """No NOTIFY_SOCKET: the daemon runs all the same, and has no watchdog."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert find_notify() is None
    assert watchdog_interval() == 0


def test_the_watchdog_is_fed_twice_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only by the process that systemd means."""
    monkeypatch.setenv("WATCHDOG_USEC", "8000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_interval() == 4 * SECOND
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval() == 0


def test_a_stuck_worker_is_stale() -> None:
    """Its heartbeat stands still for longer than a turn may take; one that has not begun is not stuck."""
    fresh = Freshness()
    now = 100 * SECOND
    assert fresh.stale(now, "active", SECOND, now) == ""
    assert fresh.stale(now, "active", SECOND, now - WORKER_LIMIT - 1) == "worker"
    assert fresh.stale(now, "joining", 0, 0) == ""


def test_an_active_member_past_its_deadline_is_stale() -> None:
    """For longer than a busy machine explains. A member that stalls, because etcd is gone, only waits."""
    fresh = Freshness()
    now = 100 * SECOND
    assert fresh.stale(now, "active", 0, now) == ""
    assert fresh.stale(now + LEASE_LIMIT + 1, "active", 0, now) == "lease"
    assert fresh.stale(now + 2 * LEASE_LIMIT, "stalled", 0, now + LEASE_LIMIT) == ""
    assert fresh.stale(now + 3 * LEASE_LIMIT, "active", 0, now + 2 * LEASE_LIMIT) == ""  # counted anew


class Told:
    """A notifier under a loop whose time the test moves."""

    def __init__(self, interval: int) -> None:
        self.now = SECOND
        self.loop = Loop(lambda: self.now)
        self.texts: list[str] = []
        self.stale = ""
        self.deaf = False
        self.status = "joining"

        def notify(text: str) -> bool:
            if not self.deaf:
                self.texts.append(text)
            return not self.deaf

        self.notifier = Notifier(self.loop, notify, interval, lambda: self.stale, lambda: self.status)

    def later(self, duration: int) -> list[str]:
        self.texts.clear()
        self.now += duration
        self.loop._run_due()
        return list(self.texts)


def test_the_notifier_pings_while_all_is_fresh() -> None:
    """And is silent when something is stale: systemd then ends the daemon, and its clients' I/O goes elsewhere."""
    told = Told(SECOND)
    assert told.texts == ["WATCHDOG=1", "STATUS=joining"]
    assert told.later(SECOND) == ["WATCHDOG=1"]
    told.stale = "worker"
    assert told.later(SECOND) == []
    told.stale = ""
    told.status = "active, lease 8 s"
    assert told.later(SECOND) == ["WATCHDOG=1", "STATUS=active, lease 8 s"]
    told.loop.close()


def test_readiness_is_told_with_the_state() -> None:
    """READY=1 once the member serves, STOPPING=1 when it is told to stop; no pings without a watchdog."""
    told = Told(0)
    told.texts.clear()
    told.status = "active"
    told.notifier.ready()
    told.notifier.stopping()
    assert told.texts == ["READY=1", "STATUS=active", "STOPPING=1"]
    told.loop.close()
