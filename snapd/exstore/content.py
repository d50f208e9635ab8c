"""A snapshot's content from the raw devices: no daemon, no kernel, no etcd.

The volume is a stack, so a chunk is looked for in the snapshot's own store, then in each newer one, then on the
origin. Nobody may be writing meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from snapd.errors import Corrupt, FormatError, Refused, StoreInvalid
from snapd.exstore.check import entry_problems
from snapd.exstore.image import Image, Read


class Content:
    """What a snapshot reads.

    stores: ``(read, size)`` of the COW devices from the volume's newest snapshot down to the one to be read,
    which is the last. origin: ``(read, size)``.

    Raises StoreInvalid if one of them is lost, Corrupt if its exceptions contradict each other or the devices,
    Refused if chunk sizes differ. What is wrong with the end of a list does not matter here.
    """

    def __init__(self, stores: Sequence[tuple[Read, int]], origin: tuple[Read, int]) -> None:
        self._origin, self.size = origin
        self._levels: list[tuple[Read, dict[int, int]]] = []
        self.chunk_bytes = 0
        for level, (read, size) in enumerate(stores):
            image = _exceptions(f"store {level}", read, size, self.size)
            if self.chunk_bytes not in (0, image.layout.chunk_bytes):
                raise Refused(f"store {level}: chunks of {image.layout.chunk_bytes} bytes, others {self.chunk_bytes}")
            self.chunk_bytes = image.layout.chunk_bytes
            self._levels.insert(0, (read, dict(image.exceptions)))
        if not self._levels:
            raise Refused("content: no store, expected at least that of the snapshot")

    def chunks(self) -> Iterator[bytes]:
        """Every chunk from the first to the last; the last is cut off where the origin ends."""
        for chunk in range(-(-self.size // self.chunk_bytes)):
            yield self.chunk(chunk)

    def chunk(self, old: int) -> bytes:
        """The content of one chunk."""
        begin = old * self.chunk_bytes
        length = min(self.chunk_bytes, self.size - begin)
        for read, exceptions in self._levels:
            if old in exceptions:
                return read(exceptions[old] * self.chunk_bytes, length)
        return self._origin(begin, length)


def _exceptions(where: str, read: Read, size: int, origin_size: int) -> Image:
    try:
        image = Image.load(read, size)
    except FormatError as error:
        raise Corrupt(f"{where}: {error}") from None
    if not image.header.valid:
        raise StoreInvalid(f"{where}: the snapshot is invalid")
    for problem in entry_problems(image, origin_size):
        raise Corrupt(f"{where}: {problem}")
    return image
