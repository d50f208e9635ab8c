"""Three real daemons, a real Prometheus, and what happens to hosts and to etcd."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from demo.host import run_csnap
from snapd.nbd.wire import CMD_WRITE
from snapd.units import KIB, MIB
from tests.media.faulty import faulty_disk
from tests.monitoring.live import SLOW_MACHINE, Agent, fence_by, watched
from tests.monitoring.prometheus import LIMIT, WINDOW
from tests.monitoring.test_dashboards import NAMES, expressions
from tests.monitoring.test_live_fleet import OF_FAULTS
from tests.support.daemons import Hosts
from tests.support.etcd_server import wait_for
from tests.support.nbd_client import NbdClient

CHUNK = 16 * KIB


@pytest.mark.timeout(400)
def test_a_disk_that_hangs_a_fencing_that_fails_and_an_etcd_that_stops(tmp_path: Path) -> None:
    """A host cannot give a region back since its COW disk hangs: others wait for it, longer than a lease lives, it
    is fenced, which fails at first. Then etcd hangs; then it refuses writes. Each is its alert."""
    with faulty_disk(16 * MIB) as disk, Hosts(3) as hosts, ExitStack() as stack:
        agent = Agent(tmp_path)
        fence_by(hosts, agent)
        with watched(hosts, tmp_path) as prometheus:
            hosts[0].csnap("snapshot", "create", "CONFIG", "s1", "--cow", disk.path)
            first = stack.enter_context(NbdClient(hosts[0].socket))
            second = stack.enter_context(NbdClient(hosts[1].socket))
            agent.fail()
            with disk.hanging():
                first.send(CMD_WRITE, 0, data=bytes(CHUNK))
                hangs = 'csnap_backend_oldest_inflight_seconds{host="host-a",backend="cow"} > 0'
                wait_for(lambda: bool(prometheus.query(hangs)), "host-a's copy hangs, under its lock", LIMIT)
                waiting = second.send(CMD_WRITE, CHUNK, data=bytes(CHUNK))
                prometheus.wait_fired("CsnapLockWaitOverTtl", "CsnapFencingFailed", "CsnapIoStuck", "CsnapSelfFenced")
                agent.succeed()
                prometheus.wait_fired("CsnapHostFenced")
            assert hosts[0].wait_exit(LIMIT) == 4
            assert second.answer(waiting).error == 0

            hosts.etcd.pause()
            prometheus.wait_fired("CsnapLeaseRenewFailing", "CsnapLeaseRunningOut", "CsnapStalled")
            hosts.etcd.resume()
            prometheus.wait_over("CsnapStalled")
            for host in (hosts[1], hosts[2]):
                host.wait_active()

            hosts.etcd.refuse_writes()
            refused = run_csnap("snapshot", "create", hosts[1].config, "s2", "--cow", hosts.cow("c2"))
            assert refused.returncode != 0
            prometheus.wait_fired("CsnapEtcdNoSpace")
            hosts.etcd.etcdctl("alarm", "disarm")

            texts = {text for name in NAMES for text in expressions(name, WINDOW)}
            of_faults = {text for text in texts if any(word in text for word in OF_FAULTS)}
            wait_for(lambda: all(prometheus.query(text) for text in of_faults), "panels of faults have data", LIMIT)
            expected = {
                "CsnapLockWaitOverTtl",
                "CsnapFencingFailed",
                "CsnapIoStuck",
                "CsnapSelfFenced",
                "CsnapIoErrors",
            }
            expected |= {"CsnapHostFenced", "CsnapStalled", "CsnapEtcdNoSpace", "CsnapDown"}
            assert prometheus.fired() <= SLOW_MACHINE | expected
