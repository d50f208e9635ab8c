"""``csnap doctor [CONFIG]``: prints what the doctor found, or packs it for support."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snapd import __version__
from snapd import config as configuration
from snapd.cli.client import ask
from snapd.config import Config
from snapd.doctor.bundle import without_secrets, write
from snapd.doctor.finding import Finding, Level, Subject, exit_code
from snapd.errors import ConfigError, CsnapError
from snapd.printable import one_line

MARKS = {
    Level.OK: "ok",
    Level.NOTE: "note",
    Level.WARNING: "WARNING",
    Level.FAILED: "FAILED",
    Level.UNCHECKED: "not checked",
}
SUMS = {
    Level.OK: "ok",
    Level.NOTE: "notes",
    Level.WARNING: "warnings",
    Level.FAILED: "failed",
    Level.UNCHECKED: "not checked",
}
JOURNAL_LINES = 5000
JOURNAL_LIMIT = 30.0  # seconds
COMMANDS = ("status", "locks", "observe")
"""What a bundle has of the daemon's answers."""

Found = list[tuple[str, list[Finding]]]
"""Findings by volume; the host's have none."""


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="a configuration file, or a volume's name; without: all of /etc/csnap",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--bundle", metavar="FILE", help="also pack it for support, without secrets, into a new file like x.tar.gz"
    )


def doctor(arguments: argparse.Namespace) -> int:
    """Exit code 1: something failed. Warnings do not count, nor what could not be checked."""
    from snapd.doctor.examine import examine, examine_host

    paths = _paths(arguments.config)
    configs: list[Config] = []
    found: Found = []
    for path in paths:
        try:
            configs.append(configuration.load(path))
        except ConfigError as error:
            failed = Subject("configuration", str(path)).failed("file", str(error), "csnap config check")
            found.append(("", [failed]))
    for config in configs:
        asked = _asker(config)
        found.append((config.volume.name, examine(config, asked, _progress(config.volume.name))))
    host = examine_host(configs)
    if not paths:
        host.append(Subject("configuration").note("file", f"none in {configuration.DIRECTORY}", "csnap doctor CONFIG"))
    found.append(("", host))
    findings = [finding for _, rows in found for finding in rows]
    report = _json(found) if arguments.json else _text(found)
    print(report)
    if arguments.bundle:
        write(Path(arguments.bundle), _parts(found, paths, configs))
        print(f"csnap: {arguments.bundle}: written; look through it before you send it", file=sys.stderr)
    return exit_code(findings)


def _paths(argument: str | None) -> list[Path]:
    if argument is not None:
        return [configuration.find(argument)]
    return sorted(configuration.DIRECTORY.glob("*.toml"))


def _asker(config: Config) -> Any:
    return lambda command: ask(config.export.admin, {"command": command})


def _progress(volume: str) -> Any:
    """For a person who waits: an endpoint that hangs takes seconds."""
    if not sys.stderr.isatty() or not sys.stdout.isatty():
        return lambda text: None
    return lambda text: print(f"csnap: {volume}: {text}", file=sys.stderr)


def _json(found: Found) -> str:
    rows = [{"volume": volume, **finding.to_json()} for volume, findings in found for finding in findings]
    failed = any(row["level"] == Level.FAILED for row in rows)
    return json.dumps({"version": __version__, "failed": failed, "findings": rows})


def _text(found: Found) -> str:
    """A block for each area, a line for each check, what to do below it; the sum at the end."""
    lines: list[str] = []
    for volume, findings in found:
        area = None
        for finding in _by_area(findings):
            if finding.area != area:
                area = finding.area
                lines += ["", f"{volume}: {area}" if volume else area]
            about = f"{one_line(finding.about)}: " if finding.about else ""
            lines.append(f"  {MARKS[finding.level]:<12} {finding.check:<14} {about}{one_line(finding.text)}")
            if finding.todo:
                lines.append(f"  {'':<12} {'':<14} -> {one_line(finding.todo)}")
    counts = Counter(finding.level for _, findings in found for finding in findings)
    sums = ", ".join(f"{counts[level]} {word}" for level, word in SUMS.items() if counts[level])
    return "\n".join([*lines[1:], "", sums])


def _by_area(findings: Sequence[Finding]) -> list[Finding]:
    """Areas in the order in which they were first looked at."""
    places = {area: place for place, area in enumerate(dict.fromkeys(finding.area for finding in findings))}
    return sorted(findings, key=lambda finding: places[finding.area])


def _parts(found: Found, paths: Sequence[Path], configs: Sequence[Config]) -> dict[str, str]:
    parts = {
        "report.txt": _text(found) + "\n",
        "report.json": _json(found) + "\n",
        "about.txt": f"csnap {__version__}\nPython {sys.version}\n{' '.join(os.uname())}\n{time.ctime()}\n",
    }
    taken = {config.path for config in configs}
    for path in paths:
        parts[f"config/{path.name}"] = _attempt(lambda path=path: without_secrets(path.read_text(), path not in taken))
    for config in configs:
        name = config.volume.name
        for command in COMMANDS:
            parts[f"{name}/{command}.json"] = _attempt(
                lambda config=config, command=command: json.dumps(_asker(config)(command), indent=1)
            )
        parts[f"{name}/journal.txt"] = _journal(name)
    return parts


def _attempt(make: Any) -> str:
    try:
        return str(make())
    except (CsnapError, OSError, ValueError) as error:
        return f"not to be had: {error}\n"


def _journal(volume: str) -> str:
    units = [f"--unit=csnapd@{volume}.service", f"--unit=csnap-helper@{volume}.service"]
    command = ["journalctl", "--no-pager", f"--lines={JOURNAL_LINES}", "--output=short-iso-precise", *units]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=JOURNAL_LIMIT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not to be had: {error}\n"
    return ended.stdout or f"not to be had: {ended.stderr.strip() or 'nothing of these units is in it'}\n"
