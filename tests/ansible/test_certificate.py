"""The module certificate, with the real openssl: made once, kept while it holds, made anew when it does not."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.ansible.runner import Runner


class Pki:
    def __init__(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "pki"
        self._module = Runner("certificate", tmp_path / "module", asks_csnap=False)

    def authority(self, **more: Any) -> dict[str, Any]:
        return self._module(directory=str(self.directory), name="ca", common_name="a site", renew_before=0, **more)

    def host(self, **more: Any) -> dict[str, Any]:
        given = {"name": "host", "common_name": "host-a", "authority": "ca", "usages": ["clientAuth"]}
        return self._module(directory=str(self.directory), **{**given, **more})

    def openssl(self, *arguments: str) -> str:
        return subprocess.run(["openssl", *arguments], cwd=self.directory, capture_output=True, text=True).stdout


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


def test_a_certificate_is_made_once(pki: Pki) -> None:
    """Signed by the authority, for its name and use; keys are for their owner alone."""
    assert pki.authority()["changed"]
    made = pki.host(alternative_names=["IP:10.0.0.1", "DNS:host-a"])
    assert (made["changed"], made["reason"]) == (True, "it is missing")
    assert pki.openssl("verify", "-CAfile", "ca.crt", "-purpose", "sslclient", "host.crt") == "host.crt: OK\n"
    assert pki.openssl("verify", "-CAfile", "ca.crt", "-purpose", "sslserver", "host.crt") == ""
    assert pki.openssl("x509", "-in", "host.crt", "-noout", "-subject").strip() == "subject=CN = host-a"
    assert {path.name: path.stat().st_mode & 0o777 for path in pki.directory.iterdir()} == {
        "ca.crt": 0o644, "ca.key": 0o600, "host.crt": 0o644, "host.key": 0o600,
    }  # fmt: skip
    assert pki.directory.stat().st_mode & 0o777 == 0o700
    before = (pki.directory / "host.crt").read_bytes()
    assert not pki.authority()["changed"]
    assert not pki.host(alternative_names=["IP:10.0.0.1", "DNS:host-a"])["changed"]
    assert (pki.directory / "host.crt").read_bytes() == before


def test_check_mode_makes_nothing(pki: Pki) -> None:
    """It says what it would make, also where the authority is not made yet."""
    assert pki.authority(check=True)["changed"]
    assert pki.host(check=True)["diff"]["after"] == "a new one for host-a\n"
    assert not pki.directory.exists()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"renew_before": 1000}, "it ends within 1000 days"),
        ({"common_name": "host-b"}, "its common name is host-a"),
        ({"alternative_names": ["IP:10.0.0.2"]}, "it does not name IP Address:10.0.0.2"),
    ],
)
def test_what_does_not_hold_is_made_anew(pki: Pki, changed: dict[str, Any], reason: str) -> None:
    pki.authority()
    pki.host()
    assert pki.host(**changed)["reason"] == reason
    assert not pki.host(**{**changed, "renew_before": 30})["changed"]


def test_a_certificate_of_another_authority_is_made_anew(pki: Pki) -> None:
    pki.authority()
    pki.host()
    for path in pki.directory.glob("ca.*"):
        path.unlink()
    pki.authority()
    assert pki.host()["reason"] == "ca.crt has not signed it"


def test_a_site_s_own_authority_keeps_its_key_to_itself(pki: Pki) -> None:
    """What it has signed is used without its key; what it would have to sign anew is refused, by name."""
    pki.authority()
    pki.host()
    (pki.directory / "ca.key").rename(pki.directory.parent / "elsewhere")
    (pki.directory / "ca.key").symlink_to("/nowhere")
    assert not pki.host()["changed"]
    assert "there is no" in pki.host(renew_before=1000)["msg"]
