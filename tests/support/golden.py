"""The kernel's images of tests/golden, unpacked, and the pattern their data is made of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import zstandard

from snapd.units import SECTOR

FOLDER = Path(__file__).parent.parent / "golden"
CASES = sorted(path.parent.name for path in FOLDER.glob("*/meta.json"))


@dataclass(frozen=True, slots=True)
class Golden:
    """One image and what the kernel said of it.

    status: the words behind ``snapshot``. md5: of the snapshot as the kernel read it, "" if it could not.
    """

    name: str
    chunk_sectors: int
    cow: bytes
    origin: bytes  # as it is beside this COW device
    status: str
    md5: str
    exceptions: list[tuple[int, int]] | None  # None: not noted


def load(name: str) -> list[Golden]:
    """Return the images of a case, checked against their SHA-256: one, or before and after a merge."""
    folder = FOLDER / name
    meta = json.loads((folder / "meta.json").read_text())

    def unpack(file: str) -> bytes:
        with zstandard.open(folder / f"{file}.raw.zst", "rb") as packed:
            data: bytes = packed.read()
        assert hashlib.sha256(data).hexdigest() == meta["sha256"][file], f"{folder / file} is damaged"
        return data

    exceptions = [(old, new) for old, new in meta["exceptions"]]
    before, after = unpack("origin_before"), unpack("origin_after")
    size = meta["chunk_sectors"]
    md5 = meta["md5"].get("snap", "")
    images = [Golden(name, size, unpack("cow"), after, meta["status"], md5, exceptions)]
    if "cow_premerge" in meta["sha256"]:
        # Where there is an exception the origin does not matter, elsewhere it never changed.
        premerge = Golden(name + "-before", size, unpack("cow_premerge"), before, meta["status_premerge"], md5, None)
        images.append(premerge)
    return images


def pattern(tag: bytes, begin: int, sectors: int) -> bytes:
    """Return what ``sectors`` sectors from sector ``begin`` on hold if written as ``tag``."""
    end = hashlib.md5(tag).digest()[:8]
    unit = SECTOR // 16
    return b"".join((tag + sector.to_bytes(4, "little") + end) * unit for sector in range(begin, begin + sectors))
