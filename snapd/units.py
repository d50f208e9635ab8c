"""Sizes: bytes everywhere inside csnap; sectors only where the kernel's format or words use them."""

from __future__ import annotations

import re

from snapd.errors import Refused

SECTOR = 512
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
SECOND = 1_000_000_000
"""Nanoseconds: every time in csnap is an integer of nanoseconds on CLOCK_BOOTTIME."""

_FACTORS = {"": 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` (``4096``, ``"16KiB"``, ``"1 GiB"``) names.

    Raises Refused for anything else; decimal units (KB) are refused rather than guessed at.
    """
    match = re.fullmatch(r"\s*(\d{1,18})\s*([A-Za-z]*)\s*", text, re.ASCII)
    if match is None or match[2] not in _FACTORS:
        raise Refused(f"size {text[:40]!r}: expected a whole number and one of B, KiB, MiB, GiB, TiB")
    return int(match[1]) * _FACTORS[match[2]]


def format_size(count: int) -> str:
    """Return ``count`` bytes with the largest binary unit that divides it exactly."""
    for name in ("TiB", "GiB", "MiB", "KiB"):
        if count and count % _FACTORS[name] == 0:
            return f"{count // _FACTORS[name]}{name}"
    return f"{count}B"


def is_power_of_two(count: int) -> bool:
    """Return whether ``count`` is 1, 2, 4, ..."""
    return count > 0 and count & (count - 1) == 0
