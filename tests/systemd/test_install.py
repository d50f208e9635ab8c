"""docs/install.md, walked as written on a booted host: units, a volume, keys as credentials, and removed again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.etcd_server import EtcdServer, make_certificates
from tests.systemd.booted import Host
from tests.systemd.conftest import Configure

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="boots a systemd: needs root"),
    pytest.mark.timeout(180),
]

UNIT = "csnapd@vmstore.service"


def test_a_volume_is_started_as_the_page_says(host: Host, configure: Configure) -> None:
    """The user, the directories and the unit are there; after `init` and `start` the host serves, also after a boot."""
    configure("vmstore")
    assert host.run("stat", "-c", "%U:%G %a", "/etc/csnap", "/run/csnap").splitlines() == [
        "root:csnap 750",
        "root:root 755",
    ]
    host.walk("init")
    assert "active (running)" in host.walk("start")
    assert host.show(UNIT, "UnitFileState") == "enabled"


def test_keys_of_etcd_come_as_credentials(host: Host, configure: Configure, tmp_path: Path) -> None:
    """What only root can read in /etc/credstore reaches the daemon, and nobody else."""
    certificates = make_certificates(tmp_path)
    store, there = "/etc/credstore", f"/run/credentials/{UNIT}"
    files = {"ca": certificates.client.ca, "cert": certificates.client.cert, "key": certificates.client.key}
    keys = "".join(f'{kind} = "credential:etcd.{kind}"\n' for kind in files)
    with EtcdServer(certificates=certificates) as secured:
        configure("vmstore", url=secured.url, edit=lambda text: text.replace("[export]", f"{keys}[export]"))
        for kind, path in files.items():
            host.write(f"{store}/csnap.vmstore.{kind}", Path(path).read_text(), 0o600)
        host.run("chmod", "0700", store)
        host.walk("init-credentials")
        host.walk("start")
        assert host.run("systemctl", "reload", UNIT) == ""
        assert host.call("/opt/csnap/current/bin/csnap", "status", "vmstore", user="csnap").returncode == 0
        assert host.call("cat", f"{store}/csnap.vmstore.key", user="csnap").returncode != 0
        assert host.call("cat", f"{there}/etcd.key", user="nobody").returncode != 0
        assert host.run("cat", f"{there}/etcd.key", user="csnap") == Path(files["key"]).read_text()
        host.run("systemctl", "stop", UNIT)
    host.run("rm", "-r", store)


def test_it_is_removed_as_the_page_says(host: Host, configure: Configure) -> None:
    """The service is stopped cleanly, and nothing of it is left but the user."""
    configure("vmstore")
    host.walk("init")
    host.walk("start")
    host.walk("remove")
    assert host.show(UNIT, "Result") == "success"
    assert host.run("find", "/etc", "/run/csnap", "-name", "*vmstore*") == ""
    try:
        host.walk("remove-units")
        names = ("csnapd@.service", "csnap-helper@.service", "csnap.conf", "csnap")
        found = [host.run("find", "/etc", "/run/csnap", "-name", name, check=False) for name in names]
        assert "".join(found) == ""
        assert host.call("systemctl", "cat", UNIT).returncode != 0
    finally:
        host.walk("units")
