"""A sample of what power failures left goes to the real kernel, read-only, beside the origin of that moment.

Raw, as the failure left it: the kernel reads an image by itself, without our take-over. What it shows is what csnap
computes, and that is the snapshot.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace

import pytest

from snapd.exstore.content import Content
from snapd.exstore.image import Image as CowImage
from snapd.format.header import Header
from snapd.units import SECTOR
from tests.crash.battery import HISTORIES_OF_A_SAMPLE, LIMIT, SAMPLES, battery
from tests.crash.history import Image, Shape, first_truth, fresh, record
from tests.crash.oracle import INVALID, Trial
from tests.kernel.support.bundle import Bundle
from tests.kernel.support.vm import Result, run_vm

pytestmark = pytest.mark.timeout(240)

IMAGES = 40
READ_ONLY_PARTS = """
part() { dmsetup create $1 --readonly --table "0 $3 linear /dev/vda $2" || die part $1; }
"""


@dataclass(frozen=True, slots=True)
class Given:
    """One image and what the kernel is expected to say of it. md5: "" where it must give no byte."""

    shape: Shape
    image: Image
    md5: str
    status: str


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def expected(shape: Shape, image: Image) -> Given:
    """What csnap reads from the raw devices; asserts that it is the snapshot."""

    def cow(offset: int, length: int) -> bytes:
        return image.cow[offset : offset + length]

    status = CowImage.load(cow, len(image.cow)).status
    if image.count == INVALID:
        assert status == "Invalid"
        return Given(shape, image, "", status)
    size = len(image.origin)
    content = Content([(cow, len(image.cow))], (lambda offset, length: image.origin[offset : offset + length], size))
    found = md5(b"".join(content.chunks()))
    assert found == md5(first_truth(shape))
    return Given(shape, image, found, status)


def invalidated() -> list[tuple[Shape, Image]]:
    """Images of a device that overflowed: one with valid=0, and any."""
    shape = Shape(cow=30)
    history = record(shape, fresh(shape, random.Random(3)), 1, 3, 40)
    trial = Trial(history, 3, LIMIT, SAMPLES, 1)
    trial.run()
    return [(shape, image) for image in (*trial.invalid, *trial.kept)]


@dataclass
class Boot:
    given: dict[str, Given]
    refused: dict[str, Image]
    bundle: Bundle
    result: Result


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    sample = invalidated()
    for seed in (3, 5):
        sample += battery(seed, HISTORIES_OF_A_SAMPLE, 40, IMAGES // 4)[1]
    rng = random.Random(7)
    chosen = sample[:2] + rng.sample(sample[2:], IMAGES - 2)
    given = {f"i{number}": expected(*each) for number, each in enumerate(chosen)}
    shape, whole = next(each for each in chosen if each[1].count > 3)
    refused = {
        "version": replace(whole, cow=whole.cow[:8] + b"\2" + whole.cow[9:]),
        "magic": replace(whole, cow=b"\xff" + whole.cow[1:]),
        "unterminated": replace(whole, cow=unterminated(shape)),
    }
    bundle = Bundle(tmp_path_factory.mktemp("crash") / "bundle")
    script = []
    for name, image, size in [
        *((name, each.image, each.shape.chunk) for name, each in given.items()),
        *((name, image, shape.chunk) for name, image in refused.items()),
    ]:
        bundle.add(f"{name}_o", image.origin)
        bundle.add(f"{name}_c", image.cow)
        script += [
            f"snapshot {name} {name}_o {name}_c {size // SECTOR} --readonly",
            f"[ ! -e /dev/mapper/{name} ] || {{ status {name}; sum {name}; dmsetup remove {name}; }}",
        ]
    prelude = bundle.prelude().replace("\n", READ_ONLY_PARTS, 1)
    return Boot(given, refused, bundle, run_vm(prelude + "\n".join(script), [bundle.path], deadline=200))


def unterminated(shape: Shape) -> bytes:
    """Trap 1: a device that ends where its full first area would go on."""
    layout = shape.layout
    entries = b"".join(old.to_bytes(8, "little") + (2 + old).to_bytes(8, "little") for old in range(layout.epa))
    header = Header(True, shape.chunk // SECTOR).to_bytes().ljust(shape.chunk, b"\0")
    return header + entries + bytes(layout.epa * shape.chunk)


def test_the_kernel_reads_the_snapshot_from_what_a_power_failure_left(boot: Boot) -> None:
    """Torn, half-committed, half-taken-over: the same status words and the snapshot, byte for byte."""
    status, sums = boot.result.named("STATUS"), boot.result.named("MD5")
    for name, given in boot.given.items():
        assert status[name] == given.status, name
        if given.md5:
            assert sums[name] == given.md5, f"{name}: {given.image.count} entries"
    torn = sum(bool(CowImage.load(_reader(each.image.cow), len(each.image.cow)).stale) for each in boot.given.values())
    print(f"\nthe kernel opened {len(boot.given)} images, {torn} of them torn, {len({*sums.values()})} contents")
    assert torn >= 3 and len(boot.given) == IMAGES


def _reader(data: bytes):  # type: ignore[no-untyped-def]
    return lambda offset, length: data[offset : offset + length]


def test_the_kernel_gives_no_byte_of_an_invalid_snapshot(boot: Boot) -> None:
    """valid=0 had arrived: the kernel says Invalid, as csnap does, and reads fail."""
    invalid = [name for name, given in boot.given.items() if given.image.count == INVALID]
    assert invalid
    for name in invalid:
        assert boot.result.named("STATUS")[name] == "Invalid" and boot.result.named("MD5").get(name, "") == ""


def test_opening_read_only_changes_nothing(boot: Boot) -> None:
    """Not a byte of what was given."""
    for name, given in boot.given.items():
        assert boot.bundle.read(f"{name}_c") == given.image.cow and boot.bundle.read(f"{name}_o") == given.image.origin


def test_what_the_kernel_refuses(boot: Boot) -> None:
    """Another magic, another version, and a full last area without a terminator (trap 1): no device, as documented.
    csnap leaves none of them: its layout reserves the terminator."""
    assert {rest for kind, rest in boot.result.notes if kind == "REFUSED"} == set(boot.refused)
