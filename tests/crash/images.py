"""What a device may hold after a power failure: its durable bytes, and any of the sectors that were on their way.

A sector arrives whole or not at all; of a write any of its sectors may have arrived (a tear); a flush or fua ends the
doubt about what it covers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from snapd.units import SECTOR
from tests.crash.recorder import NEVER, Write


@dataclass(frozen=True, slots=True)
class Unit:
    """A sector that may be there or not. write: of which write, so that tears can be told from whole writes."""

    sector: int
    data: bytes
    write: int


class Medium:
    """One device, moment after moment: ``base`` is what is durable, ``units`` what may have come on top, in order."""

    def __init__(self, initial: bytes, writes: Sequence[Write]) -> None:
        self.base = bytearray(initial)
        self._order: dict[int, int] = {}  # of a sector: when the write that it durably holds was completed
        self._to_settle = sorted((write for write in writes if write.settled < NEVER), key=lambda write: write.settled)
        self._to_hand = list(writes)
        self._outstanding: list[Write] = []
        self.units: list[Unit] = []

    def advance(self, moment: int) -> bool:
        """Go on to ``moment``; whether anything changed."""
        changed = False
        while self._to_hand and self._to_hand[0].handed <= moment:
            self._outstanding.append(self._to_hand.pop(0))
            changed = True
        while self._to_settle and self._to_settle[0].settled <= moment:
            self._settle(self._to_settle.pop(0))
            changed = True
        if changed:
            self.units = list(self._doubtful(moment))
        return changed

    def _settle(self, write: Write) -> None:
        self._outstanding.remove(write)
        for sector, data in sectors(write):
            if self._order.get(sector, -1) < write.completed:
                self._order[sector] = write.completed
                self.base[sector * SECTOR : (sector + 1) * SECTOR] = data

    def _doubtful(self, moment: int) -> Iterator[Unit]:
        for write in sorted(self._outstanding, key=lambda write: (write.completed, write.handed)):
            for sector, data in sectors(write):
                if self._order.get(sector, -1) < write.completed and self.sector(sector) != data:
                    yield Unit(sector, data, id(write))

    def sector(self, number: int) -> bytes:
        """A sector's durable bytes."""
        return bytes(self.base[number * SECTOR : (number + 1) * SECTOR])


def sectors(write: Write) -> Iterator[tuple[int, bytes]]:
    """The sectors of a write: (number, bytes)."""
    first = write.offset // SECTOR
    for index in range(len(write.data) // SECTOR):
        yield first + index, write.data[index * SECTOR : (index + 1) * SECTOR]


def subsets(units: Sequence[Unit], limit: int, samples: int, rng: random.Random) -> Iterator[Sequence[Unit]]:
    """Every subset if there are at most ``limit`` sectors.

    Above: every subset of whole writes if those are at most ``limit`` and few enough, ``samples`` random ones if not;
    and ``samples`` random subsets of sectors.
    """
    if len(units) <= limit:
        for size in range(len(units) + 1):
            yield from combinations(units, size)
        return
    writes = list(dict.fromkeys(unit.write for unit in units))
    yield units
    if 1 << len(writes) <= 4 * samples:
        for mask in range((1 << len(writes)) - 1):
            chosen = {write for index, write in enumerate(writes) if mask >> index & 1}
            yield [unit for unit in units if unit.write in chosen]
    else:
        for _ in range(samples):
            chosen = {write for write in writes if rng.random() < 0.5}
            yield [unit for unit in units if unit.write in chosen]
    for _ in range(samples):
        share = rng.random()
        yield [unit for unit in units if rng.random() < share]


class Key:
    """A number for each content of one device, whatever way it came about: the sum of its sectors' hashes."""

    def __init__(self) -> None:
        self._hashes: dict[tuple[int, bytes], int] = {}

    def difference(self, sector: int, before: bytes, after: bytes) -> int:
        """By how much the key changes with this sector."""
        return self._hash(sector, before) ^ self._hash(sector, after)

    def _hash(self, sector: int, data: bytes) -> int:
        found = self._hashes.get((sector, data))
        if found is None:
            digest = hashlib.blake2b(data + sector.to_bytes(8, "little"), digest_size=12).digest()
            found = self._hashes[sector, data] = int.from_bytes(digest, "little")
        return found
