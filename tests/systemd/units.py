"""The units as systemd's own tools read them: in a root of their own, in which what they start exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

UNITS = Path(__file__).parents[2] / "systemd"
TOOLS = ("install", "kill", "sleep", "systemctl")
PROGRAMS = ("opt/csnap/current/bin/csnap", "opt/csnap/current/bin/python", *(f"usr/bin/{tool}" for tool in TOOLS))


def make_root(root: Path) -> None:
    """Install the units, this machine's systemd units that they refer to, and programs that do nothing."""
    target = root / "etc/systemd/system"
    target.mkdir(parents=True)
    for unit in UNITS.glob("*.service"):
        shutil.copy(unit, target)
    for program in PROGRAMS:
        path = root / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    (root / "lib").symlink_to("usr/lib")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


def settings(unit: str) -> dict[str, list[str]]:
    """Return what each key of the unit is set to, in order."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([A-Za-z]+)=(.*)$", (UNITS / unit).read_text(), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def seconds(unit: str, key: str) -> float:
    """Of a time span that is written as plain seconds."""
    return float(settings(unit)[key][-1])
