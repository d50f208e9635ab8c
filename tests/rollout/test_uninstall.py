"""uninstall.yml: not under a client; then nothing of csnap and etcd is left. The last file of this directory."""

from __future__ import annotations

import os

import pytest

from tests.hosts.testbed import Testbed
from tests.rollout.conftest import Rollout, diff, files
from tests.rollout.controller import UUID, VOLUME, Controller
from tests.rollout.load import Load

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="boots systemds: needs root"),
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("rollout"),
]

KEYS = "ETCDCTL_API=3 etcdctl --endpoints=https://127.0.0.1:2379 --cacert=/etc/etcd/pki/ca.crt"
KEYS += f" --cert=/etc/etcd/pki/root.crt --key=/etc/etcd/pki/root.key get --prefix --keys-only /csnap/{UUID}/"


def test_it_is_refused_while_a_client_is_connected(bed: Testbed, controller: Controller) -> None:
    """On whichever host; then nothing is removed from any, and the client goes on."""
    before = files(bed)
    with Load(bed.hosts["host2"], 0) as load:
        run = controller.play("uninstall", fails=True)
    assert "1 clients are connected: nothing was removed" in run.output
    assert load.result.errors == []
    assert diff(before, files(bed)) == ""
    assert all(host.show(f"csnapd@{VOLUME}", "ActiveState") == "active" for host in bed.hosts.values())


def test_nothing_of_csnap_is_left(bed: Testbed, controller: Controller, rollout: Rollout) -> None:
    """The volume's keys in etcd go if that is asked, and etcd itself does."""
    host = bed.hosts["host1"]
    assert f"/csnap/{UUID}/format" in host.run("sh", "-c", KEYS)
    controller.play("uninstall", csnap_uninstall_keys=True)
    assert host.run("sh", "-c", KEYS).strip() == ""
    left = [line for line in diff(rollout.bare, files(bed)).splitlines() if "csnap" in line]
    assert [line for line in left if "etcd.service" not in line] == []  # whose description names csnap
    controller.play("uninstall", csnap_uninstall_etcd=True)
    assert diff(rollout.bare, files(bed)) == ""
