"""Stamped blocks, and the judgement whether a snapshot of them is one of a moment.

A writer fills a block with one stamp repeated: host, block, sequence. It notes, on the machine's monotonic
clock, when each write was issued and when it was acknowledged. A snapshot that was asked for at ``began`` and
reported at ``returned`` must show, in every block, a write that

- was issued before ``returned``  (nothing issued after the command returned is in the snapshot), and
- was not overwritten before ``began`` (everything acknowledged before the command began is in it): no other
  write of the block was issued after this one was acknowledged and itself acknowledged before ``began``.
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
    """One write; ``acknowledged`` is NEVER if no answer came (it may or may not have happened)."""

    host: int
    block: int
    sequence: int
    issued: float
    acknowledged: float


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
    for block in range(len(image) // block_size):
        known = by_block.get(block, [])
        try:
            found = read_stamp(image[block * block_size : (block + 1) * block_size])
        except ValueError as error:
            problems.append(f"block {block}: {error}")
            continue
        problem = _judge_block(block, found, known, began, returned)
        if problem:
            problems.append(f"block {block}: {problem}")
    return problems


def _judge_block(
    block: int, found: tuple[int, int, int] | None, known: list[Write], began: float, returned: float
) -> str:
    shown_at = -NEVER
    if found is not None:
        host, stamped, sequence = found
        if stamped != block:
            return f"shows the content of block {stamped}"
        shown = next((write for write in known if (write.host, write.sequence) == (host, sequence)), None)
        if shown is None:
            return f"shows a write that nobody made: host {host}, sequence {sequence}"
        if shown.issued > returned:
            return f"shows a write issued {shown.issued - returned:.3f} s after the command returned"
        shown_at = shown.acknowledged
    lost = [write for write in known if write.issued > shown_at and write.acknowledged < began]
    if lost:
        return f"lacks a write acknowledged {began - lost[-1].acknowledged:.3f} s before the command began"
    return ""
