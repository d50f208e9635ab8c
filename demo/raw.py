"""A snapshot put together from the raw origin and COW device by hand, from what ``csnap dump --json`` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SECTOR = 512


def rebuild(origin: Path, cow: Path, dump: dict[str, Any]) -> bytes:
    """Return the snapshot's content: the origin, but each old chunk from where the COW device keeps it."""
    image = bytearray(origin.read_bytes())
    size = dump["chunk_size"] * SECTOR
    with open(cow, "rb") as file:
        for old, new in dump["exceptions"]:
            file.seek(new * size)
            kept = len(image[old * size : (old + 1) * size])  # the origin's last chunk may be a part of one
            image[old * size : (old + 1) * size] = file.read(size)[:kept]
    return bytes(image)
