"""[attach]: optional: device, dead_timeout."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from snapd.config.checks import whole
from snapd.config.table import Table

DEAD_LEAST, DEAD_MOST = 10, 7 * 24 * 3600
"""Seconds. Less than a restart may take would turn one into failed I/O."""


@dataclass(frozen=True, slots=True)
class AttachConfig:
    """``device`` empty: the origin is not attached by this host's kernel. ``dead_timeout`` in seconds."""

    device: str
    dead_timeout: int

    @property
    def index(self) -> int:
        """The N of /dev/nbdN."""
        return int(self.device.removeprefix("/dev/nbd"))


def nbd_device(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"/dev/nbd(0|[1-9]\d{0,3})", value, re.ASCII):
        raise ValueError("expected a device of the kernel's NBD client, like /dev/nbd0")
    return value


def read(table: Table) -> AttachConfig:
    device = table.get("device", nbd_device, "")
    dead_timeout = table.get("dead_timeout", whole(DEAD_LEAST, DEAD_MOST, "seconds"), 600)
    table.finish()
    return AttachConfig(device, dead_timeout)
