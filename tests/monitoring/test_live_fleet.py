"""Three real daemons and a real Prometheus: quiet, busy, then of two versions, restarting, down and gone."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from demo.host import environment
from snapd.units import KIB, MIB
from tests.monitoring.live import NOT_HERE, SLOW_MACHINE, Agent, fence_by, watched
from tests.monitoring.prometheus import LIMIT, WINDOW, Prometheus
from tests.monitoring.test_dashboards import NAMES, expressions
from tests.support.daemons import Hosts
from tests.support.etcd_server import wait_for
from tests.support.nbd_client import NbdClient
from tests.support.traffic import Traffic

OF_FAULTS = {"csnap_fence_events_total", "up", "ALERTS"}
"""What has no samples while all is well; ``up`` is compared with 0. See test_live_faults.py."""
ROUNDS = 10  # scrapes that a quiet cluster has to be quiet for
WRITERS = 2  # for each host
LEASE_TTL = 10  # seconds: no lease is lost for a busy machine


def silent(prometheus: Prometheus, among: set[str]) -> set[str]:
    return {text for text in among if not prometheus.query(text)}


def alerted(prometheus: Prometheus) -> list[str]:
    """Return the alerts that fire, or will when it goes on like this."""
    return [alert["labels"]["alertname"] for alert in prometheus.ask("alerts")["alerts"]]


@pytest.mark.timeout(400)
def test_a_quiet_cluster_has_no_alert_and_a_busy_one_shows_every_panel(tmp_path: Path) -> None:
    """Quiet: with a snapshot and a client that reads, no alert fires or waits for its time. Busy: three hosts write the
    same regions, and every expression of every panel has numbers, but for those of faults. They re-read what others
    append, if not as fast as a storm (NOT_HERE)."""
    everything = {text for name in NAMES for text in expressions(name, WINDOW)}
    with Hosts(3, lease_ttl=LEASE_TTL, origin_size=64 * MIB, chunk_size="4KiB") as hosts:
        fence_by(hosts, Agent(tmp_path))
        with watched(hosts, tmp_path) as prometheus:
            hosts[0].csnap("snapshot", "create", "CONFIG", "s1", "--cow", hosts.cow("c1", 128 * MIB))

            def well() -> bool:  # until the rules have seen the first scrape, all daemons are absent
                scraped = len(prometheus.query("up == 1")) == 3
                return scraped and set(alerted(prometheus)) <= {"CsnapLeaseRunningOut"}

            wait_for(well, "each has been scraped", LIMIT)

            def scraped_often() -> bool:
                with NbdClient(hosts[1].socket, "origin") as client:
                    client.read(0, 64 * KIB)
                assert set(alerted(prometheus)) <= {"CsnapLeaseRunningOut"}
                return all(float(one["value"][1]) >= ROUNDS for one in prometheus.query("count_over_time(up[1m])"))

            wait_for(scraped_often, "it was quiet for a while", LIMIT)
            assert prometheus.fired() <= {"CsnapLeaseRunningOut"}

            wanted = {text for text in everything if not set(re.findall(r"[a-zA-Z_]+", text)) & OF_FAULTS}
            with Traffic(hosts) as traffic:
                for _ in range(WRITERS):
                    traffic.write_everywhere()

                def all_speak() -> bool:
                    with NbdClient(hosts[1].socket, "snapshot/s1") as client:
                        client.read(0, 64 * KIB)
                    wanted.intersection_update(silent(prometheus, wanted))
                    return not wanted

                try:
                    wait_for(all_speak, "every panel has data, but for those of faults", LIMIT)
                finally:
                    print("silent:", *sorted(wanted), sep="\n")
                taking = "count(csnap:cow_metadata_reads:rate5m > 1) == 3"
                wait_for(lambda: bool(prometheus.query(taking)), "every host re-reads what others append", LIMIT)
            assert prometheus.fired() <= SLOW_MACHINE | set(NOT_HERE) | {"CsnapCowFullSoon"}
            rules = prometheus.rules()
            assert {rule["health"] for rule in rules} == {"ok"}, [rule for rule in rules if rule["health"] != "ok"]


def of_version(version: str, directory: Path) -> tuple[str, ...]:
    """Return a prefix of commands whose csnap says that it is of this version."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(f"import snapd\nsnapd.__version__ = {version!r}\n")
    path = os.pathsep.join((str(directory), environment()["PYTHONPATH"]))
    return ("env", f"PYTHONPATH={path}")


@pytest.mark.timeout(400)
def test_versions_restarts_and_daemons_that_are_not_there(tmp_path: Path) -> None:
    """One host is of another version, one restarts again and again, then is killed and fenced; at last the others
    hang, and nobody answers. All the while fencing is unsafe, which is an alert of its own."""
    with Hosts(3, lease_ttl=LEASE_TTL) as hosts:
        hosts[2].within = of_version("0.0.9", tmp_path / "older")
        with watched(hosts, tmp_path) as prometheus:
            looping = hosts[1]

            def restart() -> None:
                assert looping.terminate() == 0
                looping.start()
                looping.wait_active()
                renewed = 'csnap_lease_renew_seconds_count{host="host-b"} > 0'
                wait_for(lambda: bool(prometheus.query(renewed)), "it is seen", LIMIT)

            prometheus.wait_fired("CsnapRestartLoop", meanwhile=restart)
            looping.kill()
            prometheus.wait_fired("CsnapDown", "CsnapHostFenced", "CsnapVersionSkew", "CsnapUnsafeFencing")
            for host in (hosts[0], hosts[2]):
                host.pause()
            down = 'count(ALERTS{alertname="CsnapDown",alertstate="firing"}) == 3'
            wait_for(lambda: bool(prometheus.query(down)), "a host that hangs is down too", LIMIT)
            prometheus.wait_fired("CsnapAbsent")
            expected = {"CsnapDown", "CsnapAbsent", "CsnapRestartLoop", "CsnapVersionSkew", "CsnapUnsafeFencing"}
            expected |= {"CsnapHostFenced", "CsnapStalled", "CsnapSelfFenced"}
            assert prometheus.fired() <= SLOW_MACHINE | expected
