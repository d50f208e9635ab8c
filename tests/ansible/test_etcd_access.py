"""The module etcd_access, against a real etcd with TLS; and csnap as a user that may use its volume's keys only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from demo.host import CONFIG, Volume
from snapd.cli.main import main
from tests.ansible.runner import Runner
from tests.support.etcd_server import Certificates, EtcdServer, make_certificates


class Site:
    """An etcd, ``csnap`` being the user that csnap's certificate names."""

    def __init__(self, server: EtcdServer, certificates: Certificates, directory: Path) -> None:
        self.server = server
        self.client = certificates.client
        self._module = Runner("etcd_access", directory / "module", asks_csnap=False)
        self._root = {"ca": certificates.ca, "cert": f"{directory}/root.pem", "key": f"{directory}/root.key"}

    def access(self, prefixes: list[str], check: bool = False, roles: tuple[str, ...] = ("volume",)) -> dict[str, Any]:
        """Let csnap read and write these; return what the module says."""
        wanted = {
            "roles": [{"name": "volume", "prefixes": prefixes}],
            "users": [{"name": "csnap", "roles": list(roles)}],
        }
        return self._module(check=check, endpoint=self.server.url, **wanted, **self._root)

    def ask(self, *words: str) -> str:
        """Return what etcd tells csnap's user."""
        files = [f"--cacert={self.client.ca}", f"--cert={self.client.cert}", f"--key={self.client.key}"]
        command = ["etcdctl", f"--endpoints={self.server.url}", *files, *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "ETCDCTL_API": "3"})
        return done.stdout + done.stderr


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    certificates = make_certificates(tmp_path)
    request = ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=root", "-keyout", "root.key"]
    sign = ["x509", "-req", "-in", "root.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "99", "-days", "2"]
    for command in ([*request, "-out", "root.csr"], [*sign, "-out", "root.pem"]):
        subprocess.run(["openssl", *command], cwd=tmp_path, check=True, capture_output=True)
    with EtcdServer(certificates=certificates) as server:
        yield Site(server, certificates, tmp_path)


def test_a_user_may_use_its_prefix_and_nothing_else(site: Site) -> None:
    """Then a second run changes nothing, and a check before it had changed nothing."""
    checked = site.access(["/csnap/a/"], check=True)
    assert site.ask("put", "/elsewhere", "x").strip() == "OK"  # nobody is asked yet
    made = site.access(["/csnap/a/"])
    assert made["changed"]
    assert made["commands"] == checked["commands"]
    assert made["commands"][-1] == "auth enable"
    assert site.ask("put", "/csnap/a/x", "1").strip() == "OK"
    for words in (("put", "/csnap/b/x", "1"), ("get", "/elsewhere"), ("get", "--prefix", "/csnap"), ("user", "list")):
        assert "permission denied" in site.ask(*words)
    assert not site.access(["/csnap/a/"])["changed"]


def test_what_is_taken_out_of_the_list_is_taken_away(site: Site) -> None:
    site.access(["/csnap/a/", "/csnap/b/"])
    assert site.access(["/csnap/b/"])["commands"] == ["role revoke-permission volume /csnap/a/ /csnap/a0"]
    assert "permission denied" in site.ask("get", "/csnap/a/x")
    assert site.access(["/csnap/b/"], roles=())["commands"] == ["user revoke-role csnap volume"]
    assert "permission denied" in site.ask("get", "/csnap/b/x")


def test_an_etcd_that_is_not_there_is_said(site: Site) -> None:
    """In check mode everything is taken for absent, since it is about to be installed."""
    site.server.kill()
    assert "does not answer" in site.access(["/csnap/a/"])["msg"]
    assert len(site.access(["/csnap/a/"], check=True)["commands"]) == 8


def test_volume_init_asks_for_no_key_but_its_own(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says whether the volume was new."""
    volume = Volume("vmstore", str(uuid4()), tmp_path / "origin", site.server.url)
    with open(volume.origin, "wb") as file:
        file.truncate(1 << 20)
    site.access([f"/csnap/{volume.uuid}/"])
    text = CONFIG.format(volume=volume, name="host-a", directory=tmp_path / "run", port=0)
    keys = "".join(f'{kind} = "{getattr(site.client, kind)}"\n' for kind in ("ca", "cert", "key"))
    (tmp_path / "vmstore.toml").write_text(text.replace("[export]", f"{keys}[export]"))
    for expected in ("vmstore: initialized:", "vmstore: already initialized:"):
        assert main(["volume", "init", str(tmp_path / "vmstore.toml")]) == 0
        assert capsys.readouterr().out.startswith(expected)
