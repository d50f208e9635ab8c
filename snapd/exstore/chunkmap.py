"""The exceptions of one store in memory: old chunk -> new chunk.

An open-addressing hash table over two typed arrays, because a Python dictionary of a million exceptions takes
106 MB and this takes 12 to 24 bytes an exception, twice that where chunk numbers need 64 bits; a look-up costs
some 0.3 us (bench/load_store.py measures both). Every entry that goes in is checked, whoever wrote it: a chunk
number outside the device, on a metadata area, or used twice is Corrupt.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from snapd.errors import Corrupt
from snapd.format.layout import Layout

OUT_OF_RANGE = "entry_out_of_range"
_FIRST_BITS = 10
_HASH = 0x9E3779B97F4A7C15
"""2**64 / golden ratio (Knuth, TAOCP 6.4): spreads runs and strides alike."""
_WORD = (1 << 64) - 1
_EXPECTED_AT_MOST = 1 << 21
"""32 MiB of table: a counter that is nonsense must not take all memory before it is found out."""
_PAGE_BITS = 15
"""The set of used COW chunks is a bit map in pages of 2**15 chunks: COW chunks are handed out densely."""


class ChunkMap:
    """Old chunks are below ``origin_chunks``, new chunks are data chunks of ``layout``."""

    def __init__(self, origin_chunks: int, layout: Layout) -> None:
        self._origin_chunks = origin_chunks
        self._layout = layout
        self._type = "I" if max(origin_chunks, layout.total_chunks) < 1 << 32 else "Q"
        self._used: dict[int, bytearray] = {}
        self._count = 0
        self._resize(_FIRST_BITS)

    def __len__(self) -> int:
        return self._count

    def _resize(self, bits: int) -> None:
        self._shift, self._mask = 64 - bits, (1 << bits) - 1
        zeros = bytes(array(self._type).itemsize << bits)
        self._olds, self._news = array(self._type, zeros), array(self._type, zeros)
        self._limit = (2 << bits) // 3

    def get(self, old: int) -> int:
        """Return the new chunk of ``old``, or 0."""
        news, olds, mask = self._news, self._olds, self._mask
        slot = (old * _HASH & _WORD) >> self._shift
        while news[slot]:
            if olds[slot] == old:
                return news[slot]
            slot = slot + 1 & mask
        return 0

    def items(self) -> Iterator[tuple[int, int]]:
        """Every (old, new), in no order."""
        return ((old, new) for old, new in zip(self._olds, self._news, strict=True) if new)

    def expect(self, count: int) -> None:
        """Make room for ``count`` entries in all, as far as that is no great loss if they never come.

        Growing by doubling costs half as much again as filling.
        """
        count = min(count, _EXPECTED_AT_MOST)
        if count > self._limit:
            self._grow(count)

    def update(self, olds: Sequence[int], news: Sequence[int]) -> None:
        """Add entries. Raises Corrupt, naming the first bad one; some of those before it may be in."""
        if not olds:
            return
        needed = self._count + len(olds)
        if needed > self._limit:
            self._grow(needed)
        total, stride = self._layout.total_chunks, self._layout.stride
        # The common case is checked in C; the loop below finds out which one it was.
        if max(olds) >= self._origin_chunks or min(news) < 2 or max(news) >= total:
            self._name_out_of_range(olds, news)
        keys, values, shift, mask, used = self._olds, self._news, self._shift, self._mask, self._used
        count = self._count
        number, page = -1, bytearray()
        for old, new in zip(olds, news, strict=True):
            if new >> _PAGE_BITS != number:
                number = new >> _PAGE_BITS
                page = used.setdefault(number, bytearray(1 << _PAGE_BITS - 3))
            at, bit = new >> 3 & 4095, 1 << (new & 7)
            if page[at] & bit or new % stride == 1:
                self._count = count
                metadata = new % stride == 1
                what = "is a metadata area" if metadata else "is used twice"
                kind = "entry_on_metadata" if metadata else "entry_used_twice"
                raise Corrupt(f"entry {count}: COW chunk {new} (of chunk {old}) {what}", kind)
            slot = (old * _HASH & _WORD) >> shift
            while values[slot]:
                if keys[slot] == old:
                    self._count = count
                    what = f"entry {count}: chunk {old} has an exception already, to COW chunk {values[slot]}"
                    raise Corrupt(what, "entry_used_twice")
                slot = slot + 1 & mask
            page[at] |= bit
            keys[slot], values[slot] = old, new
            count += 1
        self._count = count

    def _name_out_of_range(self, olds: Sequence[int], news: Sequence[int]) -> None:
        for index, (old, new) in enumerate(zip(olds, news, strict=True), self._count):
            if old >= self._origin_chunks:
                raise Corrupt(f"entry {index}: chunk {old}, the origin has {self._origin_chunks}", OUT_OF_RANGE)
            if not 2 <= new < self._layout.total_chunks:
                last = self._layout.total_chunks - 1
                raise Corrupt(f"entry {index}: COW chunk {new}, the device has 2 to {last}", OUT_OF_RANGE)

    def _grow(self, needed: int) -> None:
        bits = max(_FIRST_BITS, (needed * 3 // 2).bit_length())
        olds, news = self._olds, self._news
        self._resize(bits)
        keys, values, shift, mask = self._olds, self._news, self._shift, self._mask
        for old, new in zip(olds, news, strict=True):
            if new:
                slot = (old * _HASH & _WORD) >> shift
                while values[slot]:
                    slot = slot + 1 & mask
                keys[slot], values[slot] = old, new
