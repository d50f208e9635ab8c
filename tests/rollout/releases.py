"""A wheelhouse whose csnap is broken, made of one that is whole."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

HANGS = b"""
def serve(arguments):
    import signal

    while True:
        signal.pause()
"""
"""Appended to the command line's module: a daemon that starts, ends when it is told, and never serves."""


def hang(name: str, content: bytes) -> bytes:
    """Change a file of csnap's wheel: the daemon is never active."""
    return content + HANGS if name == "snapd/cli/commands.py" else content


def tamper(house: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Change files of csnap's wheel, in the directory and in the archive; every hash is right again."""
    (wheel,) = (house / "wheels").glob("csnap-*.whl")
    before = _digest(wheel)
    changed = wheel.with_suffix(".new")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry, change(entry.filename, old.read(entry)))
    changed.rename(wheel)
    requirements = house / "requirements.txt"
    requirements.write_text(requirements.read_text().replace(before, _digest(wheel)))
    names = [line.split("  ")[1] for line in (house / "SHA256SUMS").read_text().splitlines()]
    (house / "SHA256SUMS").write_text("".join(f"{_digest(house / name)}  {name}\n" for name in names))
    archive = house.with_name(f"{house.name}.tar")
    subprocess.run(["tar", "-C", house.parent, "-cf", archive, house.name], check=True)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
