"""Who this host is: the identities that a member record carries."""

from __future__ import annotations

import re
from pathlib import Path

from snapd.errors import Refused

MACHINE_ID = Path("/etc/machine-id")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def machine_id(configured: str) -> str:
    """Return what tells this machine from every other. Raises Refused."""
    if configured:
        return configured
    found = _read(MACHINE_ID)
    if not re.fullmatch(r"[0-9a-f]{32}", found):
        raise Refused(
            f"{MACHINE_ID}: {found[:40]!r}: expected 32 hexadecimal digits (systemd-machine-id-setup makes them,"
            " or set machine_id in [node])"
        )
    return found


def boot_id() -> str:
    """Return what tells this boot from every other. Raises Refused."""
    found = _read(BOOT_ID)
    if not found:
        raise Refused(f"{BOOT_ID}: empty or absent")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
