"""Many small devices in one disk: a microvm takes only a few, and dm-linear cuts one into as many as a test likes."""

from __future__ import annotations

from pathlib import Path

from snapd.units import MIB, SECTOR


class Bundle:
    """The guest's /dev/vda. Each part becomes /dev/mapper/<name> by ``prelude``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts: dict[str, tuple[int, int]] = {}  # offset, length
        self._end = 0
        path.write_bytes(b"")

    def add(self, name: str, data: bytes) -> None:
        """Append a part that holds ``data``, a multiple of a sector."""
        assert len(data) % SECTOR == 0 and name not in self._parts
        self._parts[name] = (self._end, len(data))
        with self.path.open("r+b") as file:
            file.seek(self._end)
            file.write(data)
            self._end += -(-len(data) // MIB) * MIB
            file.truncate(self._end)

    def read(self, name: str) -> bytes:
        """What the part holds now."""
        offset, length = self._parts[name]
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def prelude(self) -> str:
        """The beginning of the guest's script."""
        lines = [f"part {name} {offset // SECTOR} {length // SECTOR}" for name, (offset, length) in self._parts.items()]
        return "\n".join([". /lib/guest.sh", *lines, ""])
