"""The store ``transient``: exceptions in memory only, gone with the process (the kernel's dm-snap-transient)."""

from __future__ import annotations

from collections.abc import Callable

from snapd.errors import StoreFull, StoreInvalid
from snapd.exstore.base import Action, Finished, StatusKind, StoreConfig
from snapd.units import SECTOR


class Transient:
    """Chunks are handed out from 0 upward; a commit is done at once."""

    name = "transient"
    rereadable = False
    shared = False

    def __init__(self, config: StoreConfig) -> None:
        self._chunk_sectors = config.chunk_sectors
        self._device = config.device
        self._chunks = 0 if config.device is None else config.device.size // (config.chunk_sectors * SECTOR)
        self._next = 1  # 0 means "no exception", so the first chunk stays unused
        self._map: dict[int, int] = {}
        self._invalid = False

    def resume(self, done: Finished) -> None:
        done(None)

    def presuspend(self) -> None:
        pass

    def postsuspend(self) -> None:
        pass

    def prepare(self, old: int) -> int:
        if self._invalid:
            raise StoreInvalid("the snapshot is invalid")
        if self._next >= self._chunks:
            raise StoreFull(f"chunk {old}: all {self._chunks} chunks of the COW device are used")
        self._next += 1
        return self._next - 1

    def commit(self, old: int, new: int, callback: Callable[[bool], None]) -> None:
        self._map[old] = new
        callback(True)

    def lookup(self, old: int, can_block: bool = False) -> int:
        return self._map.get(old, 0)

    def modify(self, action: Action, done: Finished) -> None:
        self._invalid = True
        done(None)

    def fraction_full(self) -> tuple[int, int]:
        return self._next * self._chunk_sectors, self._chunks * self._chunk_sectors

    def status(self, kind: StatusKind) -> str:
        if kind is StatusKind.TABLE:
            return f"N {self._chunk_sectors}"
        allocated, total = self.fraction_full()
        return "Invalid" if self._invalid else f"{allocated}/{total} 0"

    def destroy(self) -> None:
        if self._device is not None:
            self._device.close()
