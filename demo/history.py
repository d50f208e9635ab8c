"""Stamped blocks, and the judgement whether a snapshot of them is one of a moment.

A writer fills a block with one stamp repeated: host, block, sequence. It notes, on the machine's monotonic
clock, when each write was issued and when it was acknowledged. A snapshot that was asked for at ``began`` and
reported at ``returned`` must show, in every block, a write that

- was issued before ``returned``  (nothing issued after the command returned is in the snapshot), and
- was not overwritten before ``began`` (everything acknowledged before the command began is in it): no other
  write of the block was issued after this one was acknowledged and itself acknowledged before ``began``.

And there must be one moment for all blocks together: no write in it was issued after another one, that it lacks,
was acknowledged; whichever hosts made the two.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

STAMP = struct.Struct("<4sIQQ8x")
"""Magic, host, block, sequence; 32 bytes, so that a sector holds 16 of them."""

MAGIC = b"STMP"
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Write:
    """One write. ``acknowledged`` is NEVER if no answer came: it may have happened, but not after ``latest``."""

    host: int
    block: int
    sequence: int
    issued: float
    acknowledged: float
    latest: float = NEVER


def stamp(host: int, block: int, sequence: int, size: int) -> bytes:
    """Return ``size`` bytes of this stamp."""
    return STAMP.pack(MAGIC, host, block, sequence) * (size // STAMP.size)


def read_stamp(data: bytes) -> tuple[int, int, int] | None:
    """Return (host, block, sequence) of a block; None for zeros. Raises ValueError if its sectors disagree."""
    if not any(data):
        return None
    if data != data[: STAMP.size] * (len(data) // STAMP.size):
        raise ValueError("torn: not one stamp throughout")
    magic, host, block, sequence = STAMP.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"no stamp: {data[:16]!r}")
    return host, block, sequence


def judge(image: bytes, block_size: int, writes: Iterable[Write], began: float, returned: float) -> list[str]:
    """Return what is wrong with a snapshot's image; empty if it is one of a moment between the two times."""
    by_block: dict[int, list[Write]] = defaultdict(list)
    for write in writes:
        by_block[write.block].append(write)
    problems = []
    newest: Write | None = None  # of the writes in the image, the one issued last
    oldest: Write | None = None  # of the writes it lacks, the one acknowledged first
    for block in range(len(image) // block_size):
        known = by_block.get(block, [])
        try:
            shown = _shown(block, image[block * block_size : (block + 1) * block_size], known)
        except ValueError as error:
            problems.append(f"block {block}: {error}")
            continue
        if shown is not None and (newest is None or shown.issued > newest.issued):
            newest = shown
        shown_at = -NEVER if shown is None else min(shown.acknowledged, shown.latest)
        for lacking in (write for write in known if write.issued > shown_at):
            if oldest is None or lacking.acknowledged < oldest.acknowledged:
                oldest = lacking
    if newest is not None and newest.issued > returned:
        problems.append(
            f"block {newest.block}: a write issued {newest.issued - returned:.4f} s after the command returned"
        )
    if oldest is not None and oldest.acknowledged < began:
        ago = began - oldest.acknowledged
        problems.append(f"block {oldest.block}: lacks a write acknowledged {ago:.4f} s before the command began")
    if newest is not None and oldest is not None and newest.issued > oldest.acknowledged:
        problems.append(f"not one moment: has {newest}, lacks {oldest}")
    return problems


def _shown(block: int, data: bytes, known: list[Write]) -> Write | None:
    """Return the write that a block shows; None for zeros. Raises ValueError if it shows none that was made."""
    found = read_stamp(data)
    if found is None:
        return None
    host, stamped, sequence = found
    if stamped != block:
        raise ValueError(f"shows the content of block {stamped}")
    for write in known:
        if (write.host, write.sequence) == (host, sequence):
            return write
    raise ValueError(f"shows a write that nobody made: host {host}, sequence {sequence}")
