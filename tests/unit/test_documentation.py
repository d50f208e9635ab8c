"""The documentation of the configuration and of the log names what exists."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from snapd import config
from snapd.lockspace import ports

ROOT = Path(__file__).parents[2]
SECTIONS = {
    "volume": config.VolumeConfig,
    "node": config.NodeConfig,
    "lockspace": config.LockspaceConfig,
    "export": config.ExportConfig,
    "fencing": config.FencingConfig,
}


def test_every_key_is_documented_and_no_other() -> None:
    """docs/configuration.md has a row for each key of each section."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    for section, kind in SECTIONS.items():
        body = text.partition(f"## [{section}]")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \|", body, re.MULTILINE)
        listed = {key for row in rows for key in re.findall(r"`([a-z_]+)`", row)}
        tables = {"options", "hosts"} if section == "fencing" else set()
        assert listed == {field.name for field in dataclasses.fields(kind)} - tables, section
        for name in tables:
            assert f"[fencing.{name}" in body


def test_events_that_people_look_for_are_logged() -> None:
    """Each event in the table of docs/operations.md stands in the source."""
    text = (ROOT / "docs" / "operations.md").read_text().partition("## The log")[2].partition("\n## ")[0]
    source = "".join(path.read_text() for path in (ROOT / "snapd").rglob("*.py"))
    events = [
        event for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for event in re.findall(r"`([a-z_]+)`", row)
    ]
    assert len(events) > 8
    for event in events:
        assert f'"{event}"' in source, event


def test_every_state_is_explained() -> None:
    """The table of states is the member's."""
    text = (ROOT / "docs" / "operations.md").read_text().partition("## What status says")[2]
    for state in (ports.JOINING, ports.ACTIVE, ports.STALLED, ports.FENCED, ports.LEAVING):
        assert f"\n| {state} |" in text


def test_every_test_that_the_documents_name_is_there() -> None:
    """A path under tests/ or model/ in a document leads somewhere; a bare test file's name belongs to one of ours."""
    names = {path.name for path in (ROOT / "tests").rglob("*.py")}
    missing = []
    folders = ("*.md", "docs/*.md", "model/*.md", "tests/**/*.md")
    for document in (path for folder in folders for path in ROOT.glob(folder)):
        for word in re.findall(r"`([^`\n]+)`", document.read_text()):
            if re.fullmatch(r"(tests|model)/[\w./-]+", word) and not (ROOT / word).exists():
                missing.append(f"{document.name}: {word}")
            if re.fullmatch(r"test_\w+\.py", word) and word not in names:
                missing.append(f"{document.name}: {word}")
    assert missing == []
