"""One origin and one COW device in files, written through the persistent store over Linux AIO, chunk by chunk."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from snapd.blockdev.aio import AioEngine
from snapd.blockdev.arena import Arena
from snapd.blockdev.device import open_device
from snapd.blockdev.sync import pread, pwrite
from snapd.errors import CsnapError
from snapd.exstore.base import StatusKind, StoreConfig
from snapd.exstore.create import create
from snapd.exstore.persistent import Persistent
from snapd.format.sidecar import Sidecar
from snapd.units import SECTOR

VOLUME_UUID = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"
STORE_UUID = "3a0e8a70-6d8a-4c8f-a3a5-0f2f4f0f6a10"


class Copier:
    """``cow``: how many bytes a new COW device has, or an existing one's content, to be continued."""

    def __init__(self, folder: Path, origin: bytes, cow: int | bytes, chunk: int) -> None:
        self.chunk = chunk
        folder.mkdir()
        (folder / "origin").write_bytes(origin)
        (folder / "cow").write_bytes(bytes(cow) if isinstance(cow, int) else cow)
        self._origin = open_device(str(folder / "origin"), exclusive=False)
        self._cow = open_device(str(folder / "cow"), exclusive=False)
        if isinstance(cow, int):
            create(self._cow, chunk, Sidecar(VOLUME_UUID, STORE_UUID, "s1", len(origin), 1))
        arena = Arena(2 * chunk)
        self._engine = AioEngine(arena, depth=8)
        image, zeros = arena.allocate(chunk), arena.allocate(chunk)
        chunks = -(-len(origin) // chunk)
        self.store = Persistent(StoreConfig(self._engine, self._cow, chunk // SECTOR, chunks, image, zeros))
        errors: list[CsnapError | None] = []
        self.store.resume(errors.append)
        self._engine.drain()
        self.store.take_over(errors.append)
        self._engine.drain()
        assert errors == [None, None]

    def write(self, old: int, data: bytes) -> None:
        """Write one chunk of the origin; its old content is copied out first if it is not yet."""
        if not self.store.lookup(old):
            new = self.store.prepare(old)
            pwrite(self._cow, new * self.chunk, pread(self._origin, old * self.chunk, self.chunk))
            told: list[bool] = []
            self.store.commit(old, new, told.append)
            self._engine.drain()
            assert told == [True]
        pwrite(self._origin, old * self.chunk, data)

    @property
    def status(self) -> str:
        return self.store.status(StatusKind.INFO)

    def images(self) -> tuple[bytes, bytes]:
        """Origin and COW device as they lie in the files."""
        origin, cow = (pread(device, 0, device.size) for device in (self._origin, self._cow))
        return origin, cow

    def __enter__(self) -> Copier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()
        self.store.destroy()
        self._origin.close()
