"""The wheelhouse is whole, is the same for the same sources, and installs on a host without a way out."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools/wheelhouse"
LOCAL = "next"

pytestmark = pytest.mark.timeout(300)  # the first one on a machine builds what csnap needs


def build(output: Path) -> Path:
    command = [str(TOOL), "--output", str(output), "--local", LOCAL, "--python", sys.executable]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return Path(built.stdout.strip())


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("first"))


def sums(house: Path) -> dict[str, str]:
    lines = (house / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def test_every_file_is_named_with_its_hash(house: Path) -> None:
    """SHA256SUMS names each file but itself, with the hash that it has."""
    files = [file for file in house.rglob("*") if file.is_file() and file.name != "SHA256SUMS"]
    found = {str(file.relative_to(house)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert sums(house) == found


def test_the_same_sources_give_the_same_bytes(house: Path, tmp_path: Path) -> None:
    """A second build has the same hashes, and so has the archive."""
    again = build(tmp_path)
    assert sums(again) == sums(house)
    archives = [one.with_name(f"{one.name}.tar").read_bytes() for one in (house, again)]
    assert archives[0] == archives[1]


def test_it_carries_every_unit_rule_and_document(house: Path) -> None:
    """What the systemd, grafana and docs directories have is under share/."""
    for source, place in (
        ("systemd", "csnap/systemd"),
        ("grafana/rules", "csnap/grafana/rules"),
        ("docs", "doc/csnap"),
    ):
        wanted = [file for file in (ROOT / source).rglob("*") if file.is_file()]
        assert wanted
        for file in wanted:
            copied = house / "share" / place / file.relative_to(ROOT / source)
            assert copied.read_bytes() == file.read_bytes()


def test_it_installs_offline_with_hashes(house: Path, tmp_path: Path) -> None:
    """Its files alone make an environment whose csnap has the wheelhouse's version."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    pip = [str(tmp_path / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    source = ["--no-index", "--find-links", str(house / "wheels"), "--require-hashes"]
    nothing_else = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull}
    subprocess.run([*pip, *source, "-r", str(house / "requirements.txt")], check=True, env=nothing_else)
    said = subprocess.run([tmp_path / "bin/csnap", "version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"csnap {(house / 'VERSION').read_text()}"
    assert said.stdout.endswith(f"+{LOCAL}\n")


def test_a_local_version_that_pip_would_rewrite_is_refused() -> None:
    """``--local Next-1`` would be another version in the wheel's name than in the directory's."""
    refused = subprocess.run([TOOL, "--local", "Next-1"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "Next-1" in refused.stderr
