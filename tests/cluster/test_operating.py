"""Operating real daemons: fencing by an agent, systemd's readiness, TLS, a stop while etcd is gone, the metrics."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from demo.host import run_csnap
from tests.support.daemons import Daemon, Hosts
from tests.support.etcd_server import EtcdServer, make_certificates, wait_for


@pytest.fixture
def one() -> Iterator[Hosts]:
    with Hosts(1) as cluster:
        cluster[0].csnap("volume", "init", "CONFIG")
        yield cluster


def metric(daemon: Daemon, name: str, **labels: str) -> float:
    """Return one sample; 0 if it is not there."""
    status = daemon.status()
    assert status is not None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{status['metrics']}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return 0.0


def test_a_dead_host_is_fenced_by_the_agent() -> None:
    """The agent fails once and is tried again; it is told which node; only then are the dead host's locks released."""
    with Hosts(2) as cluster:
        agent = cluster.directory / "fence_test"
        agent.write_text(
            f"#!/bin/sh\ncat >> {agent}.input\necho x >> {agent}.tries\n[ $(wc -l < {agent}.tries) -ge 2 ]\n"
        )
        agent.chmod(agent.stat().st_mode | stat.S_IXUSR)
        for host in cluster:
            text = host.config.read_text().replace(
                'method = "unsafe"',
                f'method = "agent"\nagent = "{agent}"\n[fencing.options]\npassword = "hunter2"\n'
                '[fencing.hosts.host-b]\nplug = "7"\n',
            )
            host.config.write_text(text)
        cluster.start()
        cluster[1].kill()
        failed = {"target": "host-b", "method": "agent", "result": "failed"}
        wait_for(lambda: metric(cluster[0], "csnap_fence_events_total", **failed) == 1, "an attempt has failed", 30)

        def members() -> list[str]:
            status = cluster[0].status()
            assert status is not None
            assert status["member"]["fencing"] == "agent"
            return [row["node"] for row in status["members"]]

        wait_for(lambda: members() == ["host-a"], "host-b is recovered", 30)
        assert "host-b" not in run_csnap("locks", cluster[0].config).stdout
        told = Path(f"{agent}.input").read_text().splitlines()
        assert sorted(told) == sorted(2 * ["action=off", "password=hunter2", "plug=7", "nodename=host-b"])
        assert "hunter2" not in cluster[0].log.read_text()


def test_systemd_is_told_when_it_serves(one: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY=1 not before the member is active; a status line; watchdog pings; STOPPING=1 at the end."""
    path = str(one.directory / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(path)
        notified.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        told: list[str] = []

        def until(text: str) -> None:
            while text not in told:
                told.append(notified.recv(4096).decode())

        one[0].start()
        until("READY=1")
        assert one[0].state() == "active"
        assert any(line.startswith("STATUS=joining") for line in told)
        assert "WATCHDOG=1" in told
        del told[:]
        until("WATCHDOG=1")
        assert one[0].terminate() == 0
        until("STOPPING=1")


def test_a_worker_that_hangs_stops_the_pings(one: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP of the worker: the daemon says what is stale, and feeds the watchdog no more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(one.directory / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(one.directory / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        notified.settimeout(30)
        one[0].start()
        while notified.recv(4096) != b"READY=1":
            pass
        os.kill(one[0].worker(), signal.SIGSTOP)
        wait_for(lambda: "watchdog_not_fed stale=worker" in one[0].log.read_text(), "it says what is stale", 30)
        notified.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                notified.recv(4096)  # what was sent before
        notified.settimeout(1)  # more than two intervals
        with pytest.raises(TimeoutError):
            while notified.recv(4096) != b"WATCHDOG=1":
                pass


def test_a_stop_with_etcd_gone_ends_with_0(one: Hosts) -> None:
    """Within ten seconds, whether the member has noticed or not; the next start cleans up and serves."""
    for wait in (False, True):
        one[0].start()
        one[0].wait_active()
        one.etcd.kill()
        if wait:
            wait_for(lambda: one[0].state() == "stalled", "the member has noticed", 20)
        begun = time.monotonic()
        assert one[0].terminate() == 0
        assert time.monotonic() - begun < 10
        assert "not_released" in one[0].tail()
        one.etcd.start()


def test_tls(tmp_path: Path) -> None:
    """``volume init`` and ``serve`` with ca, cert and key; without them etcd refuses."""
    certificates = make_certificates(tmp_path)
    with EtcdServer(certificates=certificates) as etcd, Hosts(1) as cluster:
        client = certificates.client
        host = cluster[0]
        plain = host.config.read_text().replace(cluster.etcd.url, etcd.url)
        host.config.write_text(
            plain.replace("allow_old", f'ca = "{client.ca}"\ncert = "{client.cert}"\nkey = "{client.key}"\nallow_old')
        )
        host.csnap("volume", "init", "CONFIG")
        host.start()
        host.wait_active()
        assert host.terminate() == 0
        other = host.config.with_name("other.toml")
        other.write_text(plain.replace("allow_old", f'ca = "{client.ca}"\nallow_old'))
        answer = run_csnap("volume", "init", other)
        assert answer.returncode == 1
        assert len(answer.stderr.splitlines()) == 1


def test_metrics_of_a_running_daemon(one: Hosts) -> None:
    """What an operator looks at first has values: lease, state, locks, etcd's latency, the worker's pulse."""
    one[0].start()
    one[0].wait_active()
    assert 0 < metric(one[0], "csnap_lease_remaining_seconds") <= 3
    assert metric(one[0], "csnap_lease_ttl_seconds") == 3
    assert metric(one[0], "csnap_member_state", state="active") == 1
    assert metric(one[0], "csnap_locks_held", mode="CR", resource="table") == 1
    assert metric(one[0], "csnap_etcd_request_seconds_count", op="txn", code="ok") > 0
    assert metric(one[0], "csnap_direct_io") in (0, 1)
    assert metric(one[0], "csnap_worker_heartbeat_age_seconds") < 5
