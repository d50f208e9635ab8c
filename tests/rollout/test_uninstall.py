"""uninstall.yml: not under a client; then nothing of csnap and etcd is left. And etcd from an archive, on what is bare
again. The last file of this directory."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

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


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """What the etcd project's archives look like, made of this machine's etcd."""
    folder = "etcd-v3.4.23-linux-amd64"
    (tmp_path / folder).mkdir()
    for name in ("etcd", "etcdctl"):
        (tmp_path / folder / name).symlink_to(f"/usr/bin/{name}")
    made = tmp_path / f"{folder}.tar.gz"
    subprocess.run(["tar", "-C", tmp_path, "--dereference", "-czf", made, folder], check=True)
    return made


def test_etcd_comes_from_an_archive(bed: Testbed, controller: Controller, rollout: Rollout, archive: Path) -> None:
    """Not with another checksum, and not an old one unless that is said; a second run changes nothing."""
    alone = ("--tags", "etcd", "--limit", "host1")
    given = {"etcd_members": ["host1"], "etcd_source": "archive", "etcd_archive": str(archive)}
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    run = controller.play("site", *alone, fails=True, **given, etcd_archive_checksum="0" * 64)
    assert f"SHA-256 is {digest}, expected 0000" in " ".join(run.output.split())
    run = controller.play("site", *alone, fails=True, **given, etcd_archive_checksum=digest, etcd_allow_old=False)
    assert "etcd 3.4.23: expected 3.5.13 or newer" in " ".join(run.output.split())
    assert diff(rollout.bare, files(bed)) == ""
    controller.play("site", *alone, **given, etcd_archive_checksum=digest)
    host = bed.hosts["host1"]
    assert "/opt/etcd/etcd" in host.show("etcd", "ExecStart")
    assert "is healthy" in host.run(
        "sh", "-c", f"PATH=/opt/etcd:$PATH; {KEYS.partition(' get ')[0]} endpoint health 2>&1"
    )
    assert controller.play("site", *alone, **given, etcd_archive_checksum=digest).changed == set()
    controller.play("uninstall", "--limit", "host1", csnap_uninstall_etcd=True, **given)
    assert diff(rollout.bare, files(bed)) == ""
