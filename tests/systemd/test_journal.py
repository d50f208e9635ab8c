"""The journal of a booted host: fields that can be searched for, and the catalog that explains each event."""

from __future__ import annotations

import os

import pytest

from snapd.daemon.events import MESSAGE_IDS
from tests.systemd.booted import Host
from tests.systemd.conftest import CSNAP, Configure

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="boots a systemd: needs root"),
    pytest.mark.timeout(180),
]


def test_the_catalog_is_taken_without_a_word(host: Host) -> None:
    """systemd knows every id of the table, each once, by us; two texts of one id would be complained of."""
    result = host.call("journalctl", "--update-catalog")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    lines = [line for line in host.run("journalctl", "--list-catalog").splitlines() if " csnap: " in line]
    assert sorted(line.split()[0] for line in lines) == sorted(MESSAGE_IDS.values())


def test_events_are_found_and_explained(host: Host, configure: Configure) -> None:
    """By id and by volume; `journalctl --catalog` says what it means, with the volume's and the node's names in it."""
    unit = configure("demo")
    host.run(CSNAP, "volume", "init", "demo", user="csnap")
    host.run("systemctl", "start", unit)
    pid = host.show(unit, "MainPID")
    found = host.entries("VOLUME=demo", "NODE=host-a", f"MESSAGE_ID={MESSAGE_IDS['started']}", f"_PID={pid}")
    assert [entry["CSNAP_EVENT"] for entry in found] == ["started"]
    text = host.run("journalctl", "--no-pager", "--catalog", f"_PID={pid}")
    assert "Subject: The daemon of volume demo has started" in text
    assert "Subject: Node host-a of volume demo is now active" in text


def test_a_unit_that_a_text_names_can_be_copied(host: Host) -> None:
    """An at sign beside a field comes out as one: csnap-helper@demo.service."""
    host.write(
        "/tmp/entry", f"MESSAGE=watchdog_failed\nMESSAGE_ID={MESSAGE_IDS['watchdog_failed']}\nVOLUME=demo\nNODE=n\n"
    )
    host.run("logger", "--journald=/tmp/entry")
    host.run("journalctl", "--sync")
    said = host.run("journalctl", "--no-pager", "--catalog", f"MESSAGE_ID={MESSAGE_IDS['watchdog_failed']}")
    assert "csnap-helper@demo.service" in said
