"""How long a store takes to load and what its map weighs: a COW device with a million exceptions, by Linux AIO.

    python bench/load_store.py [exceptions [chunk KiB]]

The device is a sparse file in the current directory's file system, its list written in a shuffled order; what is
timed is a store's first load: as far as a counter says, which is known before, and to the end of the list, as after a
recovery. Memory is what the process grew by, and what the worst moment took (a map that grows holds two tables).
"""

from __future__ import annotations

import os
import random
import resource
import sys
import tempfile
import time
from array import array

from snapd.blockdev.aio import AioEngine
from snapd.blockdev.arena import Arena
from snapd.blockdev.device import open_device
from snapd.errors import CsnapError
from snapd.exstore.base import StoreConfig
from snapd.exstore.persistent import Persistent
from snapd.format.header import Header
from snapd.format.layout import Layout
from snapd.units import KIB, SECTOR

TARGET_SECONDS, TARGET_BYTES = 2.0, 64


def write_list(path: str, layout: Layout, count: int) -> None:
    """Lay out a device with ``count`` exceptions, the old chunks shuffled, the new ones in order."""
    olds = array("Q", range(count))
    random.Random(1).shuffle(olds)
    new = layout.first_data_chunk
    with open(path, "r+b") as file:
        file.truncate(layout.device_bytes)
        file.write(Header(True, layout.chunk_sectors).to_bytes())
        for area in range(-(-(count + 1) // layout.epa)):
            words = array("Q")
            for old in olds[area * layout.epa : (area + 1) * layout.epa]:
                words.extend((old, new))
                new = layout.next_data_chunk(new)
            file.seek(layout.area_chunk(area) * layout.chunk_bytes)
            file.write(words.tobytes().ljust(layout.chunk_bytes, b"\0"))
        file.flush()
        os.fsync(file.fileno())  # or every O_DIRECT read would have to write out a dirty page first


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def load(path: str, layout: Layout, count: int, limit: int | None) -> tuple[float, float, float]:
    """Return seconds, seconds of CPU and bytes an exception of a first load."""
    device = open_device(path, exclusive=False, read_only=True)
    chunk = layout.chunk_bytes
    arena = Arena(2 * chunk)
    engine = AioEngine(arena, depth=8)
    image, zeros = arena.allocate(chunk), arena.allocate(chunk)
    errors: list[CsnapError | None] = []
    before, began, cpu = resident(), time.perf_counter(), time.process_time()
    store = Persistent(StoreConfig(engine, device, layout.chunk_sectors, 2 * count, image, zeros))
    store.reread(limit, errors.append)
    engine.drain()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    grown = (resident() - before) / count
    assert errors == [None] and len(store.map) == store.count == count
    engine.close()
    store.destroy()
    return seconds, cpu, grown


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    chunk = (int(sys.argv[2]) if len(sys.argv) > 2 else 16) * KIB
    missed = False
    with tempfile.NamedTemporaryFile(dir=".", prefix="csnap-bench-") as file:
        layout = Layout(chunk // SECTOR, (count + count // 100 + 1000) * chunk)
        write_list(file.name, layout, count)
        before = resident()
        print(f"{count} exceptions, chunks of {chunk // KIB} KiB; targets {TARGET_SECONDS:.0f} s, {TARGET_BYTES} bytes")
        for way, limit in (("as far as the counter says", count), ("to the end of the list", None)):
            seconds, cpu, grown = load(file.name, layout, count, limit)
            print(f"{way:27} {seconds:.2f} s ({cpu:.2f} s of CPU), {grown:.0f} bytes an exception")
            missed = missed or seconds >= TARGET_SECONDS or grown > TARGET_BYTES
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB - before) / count
    print(f"worst moment of both: {peak:.0f} bytes an exception")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
