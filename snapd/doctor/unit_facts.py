"""Asks systemd what it has loaded."""

from __future__ import annotations

import subprocess
from pathlib import Path

from snapd.doctor.unit import SHOWN, UnitFacts

LIMIT = 10.0  # seconds


def gather(name: str, lease_ttl: int) -> UnitFacts:
    if not Path("/run/systemd/system").is_dir():
        return UnitFacts(name, "systemd does not run here", {}, lease_ttl)
    try:
        ended = subprocess.run(
            ["systemctl", "show", name, f"--property={','.join(SHOWN)}"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return UnitFacts(name, f"systemctl: {error}", {}, lease_ttl)
    if ended.returncode:
        return UnitFacts(name, f"systemctl: {ended.stderr.strip()}", {}, lease_ttl)
    return UnitFacts(name, "", parse(ended.stdout), lease_ttl)


def parse(text: str) -> dict[str, str]:
    """Lines of Name=value."""
    return {name: value for name, _, value in (line.partition("=") for line in text.splitlines())}
