"""Two real daemons under load: what each tells, by every way it can be asked, is what Prometheus' own tool accepts."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from demo.ports import free_ports
from snapd.daemon.families import FAMILIES, PREFIX
from tests.support.daemons import Hosts
from tests.support.etcd_server import make_certificates, wait_for
from tests.support.nbd_client import NbdClient
from tests.support.traffic import Traffic


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki")
    make_certificates(directory)
    return directory


def context(pki: Path, name: str) -> ssl.SSLContext:
    found = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    if name:
        found.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
    return found


def over_tls(address: str, pki: Path, name: str = "csnap") -> str:
    handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context(pki, name))
    with urllib.request.build_opener(*handlers).open(f"{address}/metrics", timeout=20) as answer:
        return str(answer.read().decode())


def over_unix(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(path)
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: csnap\r\n\r\n")
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        return answer.read().decode()


def complaints(text: str) -> str:
    """What promtool has against an exposition."""
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr + (f"exit {done.returncode}" if done.returncode else "")


def names(text: str) -> set[str]:
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}


@pytest.fixture
def cluster(pki: Path, tmp_path: Path) -> Iterator[Hosts]:
    """The first host speaks mutual TLS and writes a text file, the second a unix socket."""
    with Hosts(2) as made:
        (port,) = free_ports(1)
        paths = {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}
        lines = [f"{key} = {json.dumps(str(pki / name))}" for key, name in paths.items()]
        lines.append(f"textfile = {json.dumps(str(tmp_path / 'csnap-vol.prom'))}")
        first = made[0].config
        made[0].configure("listen", json.dumps(f"127.0.0.1:{port}"))
        first.write_text(first.read_text().replace("[metrics]\n", "[metrics]\n" + "\n".join(lines) + "\n"))
        made[1].configure("listen", json.dumps(f"unix:{made[1].directory / 'metrics.sock'}"))
        made.start()
        yield made


@pytest.mark.timeout(120)
def test_every_way_to_ask_gives_every_family_and_promtool_has_nothing_against_it(
    cluster: Hosts, pki: Path, tmp_path: Path
) -> None:
    """With a snapshot, copies, lock waits and errors in them; who has no certificate gets none of it."""
    cluster[0].csnap("snapshot", "create", "CONFIG", "s1", "--cow", cluster.cow("c1"))
    with Traffic(cluster) as traffic:
        traffic.write_everywhere()
    with NbdClient(cluster[0].socket) as client:
        assert client.do(0, offset=1 << 40, length=4096)
    status = [host.status() for host in cluster]
    assert status[0] is not None and status[1] is not None
    file = tmp_path / "csnap-vol.prom"
    wait_for(lambda: file.exists() and "csnap_cow_copies_total" in file.read_text(), "the text file is there", 20)
    wanted = {PREFIX + family.name + {"counter": "_total", "info": "_info"}.get(family.kind, "") for family in FAMILIES}
    for text in (
        over_tls(status[0]["metrics"], pki),
        over_unix(status[1]["metrics"].removeprefix("unix:")),
        file.read_text(),
    ):
        assert complaints(text) == "" and names(text) == wanted
    samples = [one for family in text_string_to_metric_families(file.read_text()) for one in family.samples]
    assert {one.labels["volume"] for one in samples} == {"vol"}
    for name in ("", "stranger"):
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            over_tls(status[0]["metrics"], pki, name)
    cluster[0].terminate()
    assert not file.exists()
