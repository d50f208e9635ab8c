"""The kernel as oracle: it opens what csnap wrote, csnap reads what it wrote, and each continues the other's list.

Two boots. The first opens images of ours, lets the kernel append to one and merge another, and lets it write some of
its own. The second opens what csnap then appended to those.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snapd.errors import StoreFull
from snapd.exstore.base import StatusKind
from snapd.exstore.check import check
from snapd.exstore.content import Content
from snapd.exstore.image import Image
from snapd.messages import Invalidate
from snapd.units import KIB, SECTOR
from tests.kernel.support.bundle import Bundle
from tests.kernel.support.copier import Copier
from tests.kernel.support.vm import Result, run_vm
from tests.support.golden import pattern
from tests.support.mem_engine import MemoryDevice
from tests.support.store_rig import EPA, StoreRig, cow_device, data_chunks
from tests.support.worker_rig import Rig

pytestmark = pytest.mark.timeout(240)

CHUNK_SIZES = [4 * KIB, 16 * KIB, 64 * KIB]
KERNELS_OWN = [f"kernel{size // KIB}" for size in CHUNK_SIZES]


def image_of(cow: bytes) -> Image:
    return Image.load(lambda offset, length: cow[offset : offset + length], len(cow))


def reader(data: bytes) -> tuple[object, int]:
    return (lambda offset, length: data[offset : offset + length]), len(data)


def md5_by_us(cow: bytes, origin: bytes) -> str:
    content = Content([reader(cow)], reader(origin))  # type: ignore[list-item, arg-type]
    return hashlib.md5(b"".join(content.chunks())).hexdigest()


def problems(cow: bytes, origin: bytes) -> list[str]:
    read, size = reader(cow)
    return [str(problem) for problem in check(read, size, len(origin)).problems]  # type: ignore[arg-type]


@dataclass
class Written:
    """An image that csnap wrote. content: what the snapshot must read, "" if it is invalid."""

    cow: bytes
    origin: bytes
    chunk: int
    content: bytes = b""
    status: str = ""  # of our own store, while it was open
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def sectors(self) -> int:
        return self.chunk // SECTOR


# ---- images of ours


def by_aio(folder: Path, chunk: int) -> Written:
    """The persistent store over real files and Linux AIO; more than one area for the smallest chunks."""
    rng = random.Random(chunk)
    chunks = {4 * KIB: 600, 16 * KIB: 150, 64 * KIB: 40}[chunk]
    origin = pattern(b"ORIG", 0, chunks * chunk // SECTOR)
    with Copier(folder / f"aio{chunk}", origin, 1000 * chunk if chunk == 4 * KIB else 400 * chunk, chunk) as copier:
        for old in rng.sample(range(chunks), chunks * 2 // 3):
            copier.write(old, pattern(b"NEW1", old * chunk // SECTOR, chunk // SECTOR))
        copier.write(0, pattern(b"NEW2", 0, chunk // SECTOR))
        now, cow = copier.images()
        return Written(cow, now, chunk, origin, copier.status)


def by_two_hosts() -> Written:
    """Two whole workers in turn: extents interleave, and what is left of each is a hole (trap 4)."""
    rig = Rig(hosts=2, origin_chunks=96, region_chunks=8, seed=5)
    truth = bytes(rig.origin.data)
    rig.snapshot("s1", cow_chunks=400)
    rng = random.Random(5)
    for old in rng.sample(range(96), 60):
        rig.write(rng.choice(rig.hosts), "origin", old * rig.chunk, rng.randbytes(rig.chunk))
    cow = bytes(rig.devices["cow-s1"].data)
    return Written(cow, bytes(rig.origin.data), rig.chunk, truth)


def overflown() -> Written:
    """A COW device that was too small: the snapshot is lost, the origin went on."""
    rig = Rig(hosts=2, origin_chunks=32, region_chunks=8, seed=6)
    rig.snapshot("s1", cow_chunks=12)
    mark = rig.locks._mark_invalid

    def invalidate(store: str) -> None:
        """What the control process asks of its worker while it holds the table's EX."""
        rig.hosts[0].receive(Invalidate(1, store))
        mark(store)

    rig.locks._mark_invalid = invalidate  # type: ignore[method-assign]
    for old in range(32):
        assert rig.write(rig.hosts[old % 2], "origin", old * rig.chunk, bytes(rig.chunk)) == 0
    return Written(bytes(rig.devices["cow-s1"].data), bytes(rig.origin.data), rig.chunk)


def in_memory(device: MemoryDevice, count: int, first: int = 0) -> Written:
    """The persistent store over memory appends ``count`` copies of chunks from ``first`` on."""
    rig = StoreRig(device)
    store = rig.loaded()
    store.take_over(lambda error: None)
    rig.run()
    chunk = rig.config.chunk_sectors * SECTOR
    truth = pattern(b"ORIG", 0, 320 * rig.config.chunk_sectors)
    now = bytearray(truth)
    for old in range(first, first + count):
        new = store.prepare(old)
        device.poke(new * chunk, truth[old * chunk : (old + 1) * chunk])
        store.commit(old, new, lambda durable: None)
        now[old * chunk : (old + 1) * chunk] = b"new!" * (chunk // 4)
    rig.run()
    with_full = False
    try:
        store.prepare(319)
    except StoreFull:
        with_full = True
    return Written(bytes(device.data), bytes(now), chunk, truth, store.status(StatusKind.INFO), {"full": with_full})


def to_the_last_chunk() -> Written:
    """Trap 1: the device ends exactly at an area's boundary, and every chunk that may be used is."""
    made = in_memory(cow_device(1 + 1 + EPA), EPA - 1)
    assert made.notes["full"]
    return made


def area_exactly_full() -> Written:
    """256 entries fill the area; the next one has been zeroed over stale bytes."""
    return in_memory(cow_device(600), EPA)


def stale_tail_zeroed() -> Written:
    """Trap 2: a torn batch left entries behind a gap, here and in the next area; two more are then appended."""
    device = cow_device(600, [(0, 2)])
    chunk = 4 * KIB
    device.poke(2 * chunk, pattern(b"ORIG", 0, 8))
    stale = (77).to_bytes(8, "little") + (3).to_bytes(8, "little")
    device.poke(chunk + 2 * 16, stale * 4)
    device.poke((1 + EPA + 1) * chunk, stale)
    made = in_memory(device, 2, first=1)
    return Written(made.cow, b"new!" * (chunk // 4) + made.origin[chunk:], chunk, made.content, made.status)


def stack_of_two() -> tuple[Written, Written]:
    """An older and a newer snapshot of one origin, written between and after: (older, newer)."""
    rig = Rig(hosts=2, origin_chunks=64, region_chunks=8, seed=7)
    rng = random.Random(7)
    truths = {}
    for name in ("older", "newer"):
        truths[name] = bytes(rig.origin.data)
        rig.snapshot(name, cow_chunks=200)
        for old in rng.sample(range(64), 25):
            rig.write(rng.choice(rig.hosts), "origin", old * rig.chunk, rng.randbytes(rig.chunk))
    now = bytes(rig.origin.data)
    older, newer = (
        Written(bytes(rig.devices[f"cow-{name}"].data), now, rig.chunk, truths[name]) for name in ("older", "newer")
    )
    return older, newer


# ---- the first boot


def kernels_writes(name: str, chunk: int) -> str:
    """A seeded script: whole chunks to the origin, whole chunks and single sectors to the snapshot."""
    rng = random.Random(chunk + 1)
    sectors = chunk // SECTOR
    lines = [f"snapshot {name} {name}_o {name}_c {sectors}", f"origin {name}_top {name}_o"]
    for _ in range(40):
        kind = rng.random()
        if kind < 0.6:
            lines.append(f"write {name}_top new {sectors} {rng.randrange(50)} {rng.randrange(1, 8)}")
        elif kind < 0.8:
            lines.append(f"write {name} other {sectors} {rng.randrange(50)} {rng.randrange(1, 3)}")
        else:
            lines.append(f"write {name} other 1 {rng.randrange(50 * sectors)} {rng.randrange(1, 5)}")
    lines += [f"status {name}", f"sum {name}", f"dmsetup remove {name}", f"dmsetup remove {name}_top"]
    return "\n".join(lines)


@dataclass
class First:
    """Everything the first boot was given and what it left."""

    ours: dict[str, Written]
    bundle: Bundle
    result: Result


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> First:
    folder = tmp_path_factory.mktemp("first")
    older, newer = stack_of_two()
    ours = {f"aio{size // KIB}": by_aio(folder, size) for size in CHUNK_SIZES}
    ours |= {
        "hosts": by_two_hosts(),
        "overflow": overflown(),
        "last": to_the_last_chunk(),
        "area": area_exactly_full(),
        "stale": stale_tail_zeroed(),
        "newer": newer,
    }
    bundle = Bundle(folder / "bundle")
    script = []
    for name, written in ours.items():
        bundle.add(f"{name}_o", written.origin)
        bundle.add(f"{name}_c", written.cow)
        script += [f"snapshot {name} {name}_o {name}_c {written.sectors}", f"status {name}", f"sum {name}"]
        if name != "newer":
            script.append(f"dmsetup remove {name}")
    bundle.add("older_c", older.cow)
    script += ["snapshot older newer older_c 8", "status older", "sum older", "dmsetup remove older newer"]
    ours["older"] = older

    # The same bytes again, read-only all the way down.
    aio = ours["aio16"]
    for part, data in (("ro_o", aio.origin), ("ro_c", aio.cow)):
        bundle.add(part, data)
    script += ["for part in ro_o ro_c; do dmsetup table $part | dmsetup create ${part}_ro --readonly; done"]
    script += ["snapshot readonly ro_o_ro ro_c_ro 32 --readonly", "status readonly", "sum readonly"]

    # The kernel goes on with one of ours, and merges another into the origin.
    hosts = ours["hosts"]
    for part in ("more", "merge"):
        bundle.add(f"{part}_o", hosts.origin)
        bundle.add(f"{part}_c", hosts.cow)
    bundle.add("new", pattern(b"NEWo", 0, 64 * 128))
    bundle.add("other", pattern(b"SNAP", 0, 64 * 128))
    script += ["snapshot more more_o more_c 8", "origin more_top more_o"]
    script += [f"write more_top new 8 {old} 5" for old in (0, 30, 70, 90)]
    script += ["status more", "sum more", "dmsetup remove more", "dmsetup remove more_top"]
    script += [
        'dmsetup create merge --table "0 $(size merge_o) snapshot-merge /dev/mapper/merge_o /dev/mapper/merge_c P 8"'
    ]
    script += ["until dmsetup status merge | awk '{ split($4, s, \"/\"); exit s[1] != $5 }'; do :; done"]
    script += ["status merge", "dmsetup remove merge", "sum merge_o"]

    # And it writes some of its own, on devices full of 0xAA but for the first sector.
    for name, size in zip(KERNELS_OWN, CHUNK_SIZES, strict=True):
        bundle.add(f"{name}_o", pattern(b"ORIG", 0, 60 * size // SECTOR))
        bundle.add(f"{name}_c", bytes(SECTOR) + b"\xaa" * (100 * size - SECTOR))
        script.append(kernels_writes(name, size))
    result = run_vm(bundle.prelude() + "\n".join(script), [bundle.path])
    assert not [rest for kind, rest in result.notes if kind == "WRITE"], result.console
    return First(ours, bundle, result)


OPENED = ["aio4", "aio16", "aio64", "hosts", "last", "area", "stale", "newer", "older"]


@pytest.mark.parametrize("name", OPENED)
def test_the_kernel_reads_what_csnap_wrote(first: First, name: str) -> None:
    """The same status words and the same content, byte for byte: three chunk sizes over AIO, two hosts with holes, a
    device used to its last chunk, an exactly full area, a zeroed stale tail, a stack of two."""
    written = first.ours[name]
    image = image_of(written.cow)
    assert first.result.named("STATUS")[name] == image.status
    assert written.status in ("", image.status)
    assert first.result.named("MD5")[name] == hashlib.md5(written.content).hexdigest()
    assert len(image.exceptions) >= 3


def test_the_images_are_what_they_claim_to_be(first: First) -> None:
    """Holes between the extents of two hosts, more than one area, a full area, a full device: or this shows nothing."""
    news = [new for _, new in image_of(first.ours["hosts"].cow).exceptions]
    assert max(news) - 1 > len(news) and news != sorted(news)
    assert len(image_of(first.ours["aio4"].cow).exceptions) > EPA
    assert [new for _, new in image_of(first.ours["area"].cow).exceptions] == data_chunks(EPA)
    assert len(image_of(first.ours["last"].cow).exceptions) == EPA - 1
    assert [old for old, _ in image_of(first.ours["stale"].cow).exceptions] == [0, 1, 2]


def test_an_overflow_is_invalid_for_the_kernel_too(first: First) -> None:
    """valid=0 as csnap writes it: the kernel says Invalid and gives no byte."""
    assert first.result.named("STATUS")["overflow"] == "Invalid" == image_of(first.ours["overflow"].cow).status
    assert first.result.named("MD5")["overflow"] == ""


def test_a_read_only_device_is_opened_read_only(first: First) -> None:
    """An emergency on a write-protected copy: nothing needs to be written to read a snapshot, and nothing is."""
    aio = first.ours["aio16"]
    assert first.result.named("STATUS")["readonly"] == image_of(aio.cow).status
    assert first.result.named("MD5")["readonly"] == hashlib.md5(aio.content).hexdigest()
    assert first.bundle.read("ro_c") == aio.cow and first.bundle.read("ro_o") == aio.origin


def test_opening_changes_nothing(first: First) -> None:
    """The kernel opened and read them, writable: not a byte of the COW devices differs, sidecar included."""
    for name in OPENED:
        assert first.bundle.read(f"{name}_c") == first.ours[name].cow, name


def test_the_kernel_continues_what_csnap_wrote(first: First) -> None:
    """It appends behind our entries, over our holes; csnap then reads the old and the new ones."""
    before = first.ours["hosts"]
    cow, origin = first.bundle.read("more_c"), first.bundle.read("more_o")
    image = image_of(cow)
    known = image_of(before.cow).exceptions
    assert image.exceptions[: len(known)] == known and len(image.exceptions) > len(known)
    assert problems(cow, origin) == []
    assert first.result.named("STATUS")["more"] == image.status
    assert md5_by_us(cow, origin) == first.result.named("MD5")["more"] == hashlib.md5(before.content).hexdigest()


def test_the_kernel_merges_what_csnap_wrote(first: First) -> None:
    """A merge of two hosts' interleaved extents makes the origin what the snapshot was, and empties the list."""
    before = first.ours["hosts"]
    assert first.bundle.read("merge_o") == before.content
    assert first.result.named("MD5")["merge_o"] == hashlib.md5(before.content).hexdigest()
    assert image_of(first.bundle.read("merge_c")).exceptions == []


@pytest.mark.parametrize("name", KERNELS_OWN)
def test_csnap_reads_what_the_kernel_wrote(first: First, name: str) -> None:
    """Random writes to origin and snapshot, whole chunks and parts: status words and content are the kernel's."""
    cow, origin = first.bundle.read(f"{name}_c"), first.bundle.read(f"{name}_o")
    image = image_of(cow)
    assert problems(cow, origin) == [] and len(image.exceptions) > 20
    assert image.status == first.result.named("STATUS")[name]
    assert md5_by_us(cow, origin) == first.result.named("MD5")[name]


# ---- the second boot


@pytest.fixture(scope="module")
def second(first: First, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Written], Result]]:
    """csnap appends to images that the kernel wrote or continued; then the kernel opens them again."""
    folder = tmp_path_factory.mktemp("second")
    bundle = Bundle(folder / "bundle")
    sizes = dict(zip(KERNELS_OWN, CHUNK_SIZES, strict=True)) | {"more": 4 * KIB}
    ours: dict[str, Written] = {}
    script = []
    for name, chunk in sizes.items():
        before = first.bundle.read(f"{name}_o"), first.bundle.read(f"{name}_c")
        with Copier(folder / name, *before, chunk) as copier:
            for old in range(60):
                copier.write(old, pattern(b"OURS", old * chunk // SECTOR, chunk // SECTOR))
            origin, cow = copier.images()
            ours[name] = Written(cow, origin, chunk, b"", copier.status)
        bundle.add(f"{name}_o", origin)
        bundle.add(f"{name}_c", cow)
        script += [f"snapshot {name} {name}_o {name}_c {chunk // SECTOR}", f"status {name}", f"sum {name}"]
    yield ours, run_vm(bundle.prelude() + "\n".join(script), [bundle.path])


@pytest.mark.parametrize("name", [*KERNELS_OWN, "more"])
def test_csnap_continues_what_the_kernel_wrote(
    first: First, second: tuple[dict[str, Written], Result], name: str
) -> None:
    """Our entries behind the kernel's: it reads the very content it read before, and counts as we do."""
    ours, result = second
    assert result.named("STATUS")[name] == ours[name].status == image_of(ours[name].cow).status
    assert result.named("MD5")[name] == first.result.named("MD5")[name]
    assert len(image_of(ours[name].cow).exceptions) > len(image_of(first.bundle.read(f"{name}_c")).exceptions)
