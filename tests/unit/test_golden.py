"""Every image of tests/golden is read exactly as the kernel read it: status words, exceptions, content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from snapd.errors import CsnapError, StoreInvalid
from snapd.exstore.base import StatusKind
from snapd.exstore.check import SOUND, check
from snapd.exstore.content import Content
from snapd.exstore.image import Image
from snapd.units import SECTOR
from tests.support import golden
from tests.support.golden import Golden
from tests.support.mem_engine import MemoryDevice
from tests.support.store_rig import StoreRig

IMAGES = [image for name in golden.CASES for image in golden.load(name)]


@pytest.fixture(params=IMAGES, ids=[image.name for image in IMAGES])
def image(request: pytest.FixtureRequest) -> Golden:
    chosen: Golden = request.param
    return chosen


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: data[offset : offset + length]


def device(data: bytes) -> MemoryDevice:
    made = MemoryDevice(len(data))
    made.poke(0, data)
    return made


def test_there_are_all_kinds() -> None:
    """Three chunk sizes, valid and invalid ones, an exactly full area, a merge: nothing was lost from the folder."""
    assert len(IMAGES) == 12 and {image.chunk_sectors for image in IMAGES} == {8, 16, 64}
    assert sum(image.status == "Invalid" for image in IMAGES) == 4


def test_check_finds_them_sound(image: Golden) -> None:
    """The kernel wrote them, so nothing may be wrong with them: bytes it never touched are not looked at."""
    report = check(reader(image.cow), len(image.cow), len(image.origin))
    assert report.problems == [] and report.verdict == SOUND


def test_dump_says_what_the_kernel_said(image: Golden) -> None:
    """Status words and exceptions, also of an invalid store."""
    dump = Image.load(reader(image.cow), len(image.cow)).to_json()
    assert dump["status"] == image.status
    assert dump["valid"] is (image.status != "Invalid") and dump["chunk_size"] == image.chunk_sectors
    if image.exceptions is not None:
        assert dump["exceptions"] == [list(exception) for exception in image.exceptions]


def test_the_content_is_what_the_kernel_read(image: Golden) -> None:
    """The MD5 of the whole snapshot, from the raw devices; an invalid one is refused."""
    stores = [(reader(image.cow), len(image.cow))]
    origin = (reader(image.origin), len(image.origin))
    if image.status == "Invalid":
        with pytest.raises(StoreInvalid):
            Content(stores, origin)
    elif image.md5:
        assert hashlib.md5(b"".join(Content(stores, origin).chunks())).hexdigest() == image.md5


def test_the_persistent_store_loads_them(image: Golden) -> None:
    """The same words, the same exceptions, the same content by way of the store's look-ups."""
    chunk = image.chunk_sectors * SECTOR
    cow = device(image.cow)
    rig = StoreRig(cow, chunk)
    store = rig.persistent()
    errors: list[CsnapError | None] = []
    store.resume(errors.append)
    rig.run()
    assert store.status(StatusKind.INFO) == image.status
    if image.status == "Invalid":
        assert isinstance(errors[0], StoreInvalid)
        return
    assert errors == [None]
    if image.exceptions is not None:
        assert sorted(store.map.items()) == sorted(image.exceptions)
    if image.md5:
        digest = hashlib.md5()
        for old in range(len(image.origin) // chunk):
            new = store.lookup(old)
            source, at = (image.cow, new) if new else (image.origin, old)
            digest.update(source[at * chunk : (at + 1) * chunk])
        assert digest.hexdigest() == image.md5


def test_an_overflow_by_the_snapshot_keeps_what_was_written() -> None:
    """Table word PO: no MD5 was taken after the overflow, but every sector's pattern tells whose it is."""
    (image,) = golden.load("c8-full-O-snapside")
    assert image.exceptions is not None and len(image.exceptions) == 38
    written = {old for old, _ in image.exceptions}
    for old, data in enumerate(
        Content([(reader(image.cow), len(image.cow))], (reader(image.origin), len(image.origin))).chunks()
    ):
        assert data == golden.pattern(b"SNAP" if old in written else b"ORIG", old * 8, 8)
