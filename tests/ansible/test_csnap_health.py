"""The module csnap_health, against real daemons and a real etcd: it names what is not well, and waits until all is."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapd import __version__
from tests.ansible.runner import Runner
from tests.support.daemons import Hosts
from tests.support.etcd_server import EtcdServer, free_ports, make_certificates, wait_for

FILL = """\
import nbd, sys
handle = nbd.NBD()
handle.set_export_name("origin")
handle.connect_unix(sys.argv[1])
for chunk in range(32):
    handle.pwrite(b"x" * 512, chunk * 16384)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Hosts]:
    with Hosts(2) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def health(cluster: Hosts, tmp_path: Path) -> Runner:
    return Runner("csnap_health", tmp_path / "run")


def problems(result: dict[str, Any]) -> str:
    """It has failed; return the problems, which stand in the message too."""
    assert result.get("failed"), result
    assert all(problem in result["msg"] for problem in result["problems"])
    return "; ".join(result["problems"])


def configuration(cluster: Hosts, path: Path, **lines: str) -> Path:
    """Write host-a's configuration with other [lockspace] lines."""
    text = cluster[0].config.read_text()
    for key, value in lines.items():
        text = re.sub(rf"^{key} = .*\n", "", text, flags=re.MULTILINE)
        text = text.replace("[lockspace]\n", f"[lockspace]\n{key} = {value}\n")
    path.write_text(text)
    return path


def test_all_is_well(cluster: Hosts, health: Runner) -> None:
    """Both members, the version, etcd; check mode is the same."""
    for check in (False, True):
        result = health(check, volume=cluster[0].config, members=["host-a", "host-b"], version=__version__)
        assert result["changed"] is False
        assert result["problems"] == []
        assert result["version"] == __version__
        assert result["status"]["node"] == "host-a"


def test_another_version_and_an_unknown_member(cluster: Hosts, health: Runner) -> None:
    """Everything that is wrong is named at once."""
    said = problems(health(volume=cluster[0].config, members=["host-c"], version="0.0.9"))
    assert f"host-a: runs {__version__}, expected 0.0.9" in said
    assert "host-c: is not a member" in said


def test_a_member_that_is_gone_and_one_that_comes_back(cluster: Hosts, health: Runner) -> None:
    """A killed peer is a problem; with a timeout, its return is waited for."""
    cluster[1].kill()
    wait_for(lambda: health(volume=cluster[0].config, members=["host-b"]).get("failed", False), "it is missed")
    returning = threading.Timer(1.0, cluster[1].start)
    returning.start()
    result = health(volume=cluster[0].config, members=["host-b"], timeout=30)
    returning.join()
    cluster[1].wait_active()
    assert result["problems"] == []


def test_snapshots(cluster: Hosts, health: Runner) -> None:
    """One that is as full as the limit, one that is invalid; unless snapshots do not count."""
    cluster[0].csnap("snapshot", "create", "CONFIG", "s1", "--cow", cluster.cow("s1", 128 * 1024))
    wait_for(lambda: cluster[0].metrics().sum("csnap_cow_used_bytes") > 0, "the store is loaded")
    assert "snapshot s1: is" in problems(health(volume=cluster[0].config, full=1))
    assert "problems" in health(volume=cluster[0].config)
    subprocess.run(["/usr/bin/python3", "-c", FILL, cluster[0].socket], check=True)
    assert problems(health(volume=cluster[0].config)) == "snapshot s1: is invalid"
    assert health(volume=cluster[0].config, snapshots=False)["problems"] == []
    cluster[0].csnap("snapshot", "delete", "CONFIG", "s1")


def test_each_endpoint_of_etcd_is_asked(cluster: Hosts, health: Runner, tmp_path: Path) -> None:
    """One that does not answer is a problem although the others serve; it is not asked if etcd does not count."""
    dead = f"http://127.0.0.1:{free_ports(1)[0]}"
    config = configuration(cluster, tmp_path / "vol.toml", endpoints=f'["{cluster.etcd.url}", "{dead}"]')
    said = problems(health(volume=config))
    assert dead in said
    assert cluster.etcd.url not in said
    assert health(volume=config, etcd=False)["problems"] == []


def test_etcd_is_asked_with_the_volume_s_keys(cluster: Hosts, health: Runner, tmp_path: Path) -> None:
    """With the client's certificate it is healthy; without, and with a file that is missing, that is the problem."""
    certificates = make_certificates(tmp_path)
    tls = certificates.client
    lines = {name: f'"{path}"' for name, path in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key))}
    with EtcdServer(certificates=certificates) as etcd:
        endpoints = f'["{etcd.url}"]'
        config = configuration(cluster, tmp_path / "tls.toml", endpoints=endpoints, **lines)
        assert health(volume=config)["problems"] == []
        config = configuration(cluster, tmp_path / "ca.toml", endpoints=endpoints, ca=lines["ca"])
        assert f"etcd {etcd.url}" in problems(health(volume=config))
        config = configuration(cluster, tmp_path / "none.toml", endpoints=endpoints, **{**lines, "key": '"/none"'})
        assert "keys cannot be used" in problems(health(volume=config))
        config = configuration(cluster, tmp_path / "store.toml", endpoints=endpoints, ca='"credential:etcd.ca"')
        assert "(/etc/credstore/csnap.vol.ca)" in problems(health(volume=config))


def test_no_daemon_and_no_configuration(cluster: Hosts, health: Runner, tmp_path: Path) -> None:
    """Each has its own words."""
    config = tmp_path / "vol.toml"
    config.write_text(cluster[0].config.read_text().replace(str(cluster[0].directory), str(tmp_path / "none")))
    assert "none/admin.sock" in problems(health(volume=config))
    assert "nowhere" in problems(health(volume="nowhere"))
