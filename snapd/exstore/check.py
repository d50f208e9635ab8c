"""Is a COW device sound? Every problem by where it is, what was found and what was expected.

Sound means: the kernel and csnap both open it, read the same from it, and may append to it. A store with
valid=0 can be sound: it says of itself that the snapshot is lost.

Checked while a daemon appends to it, a device can show entries behind a gap for the moment of one write;
what is still there a second later is a problem.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from snapd.errors import FormatError
from snapd.exstore.image import KEPT_MOST, Image, Read
from snapd.units import SECTOR

PROBLEMS_MOST = 1000
"""Problems of exceptions that are named one by one: garbage makes three of every entry."""

SOUND, PROBLEMS, UNREADABLE = 0, 1, 2
"""Exit codes of ``csnap check``; UNREADABLE when the device cannot be opened or read (Refused, DeviceError)."""


@dataclass(frozen=True, slots=True)
class Problem:
    where: str
    what: str
    expected: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}, expected {self.expected}"


@dataclass(frozen=True, slots=True)
class Report:
    """image: None if the device holds no store at all, then there is one problem that says why."""

    image: Image | None
    problems: list[Problem] = field(default_factory=list)

    @property
    def verdict(self) -> int:
        """SOUND or PROBLEMS."""
        return PROBLEMS if self.problems else SOUND

    def to_json(self) -> dict[str, object]:
        """The value that ``csnap check --json`` prints."""
        image = self.image
        sidecar = image.sidecar if image is not None and not isinstance(image.sidecar, FormatError) else None
        return {
            "sound": not self.problems,
            "status": image.status if image is not None else None,
            "exceptions": len(image.exceptions) if image is not None else None,
            "snapshot": sidecar.snapshot if sidecar is not None else None,
            "cluster_uuid": sidecar.volume_uuid if sidecar is not None else None,
            "problems": [
                {"where": problem.where, "what": problem.what, "expected": problem.expected}
                for problem in self.problems
            ],
        }


def check(read: Read, size: int, origin_size: int | None = None) -> Report:
    """Check the COW device of ``size`` bytes that ``read`` reads.

    origin_size: bytes of the origin if the caller knows it; else the sidecar's is taken, if there is one.
    Raises DeviceError from ``read``.
    """
    try:
        image = Image.load(read, size)
    except FormatError as error:
        where, _, what = str(error).partition(": ")
        found, _, expected = what.partition(", expected ")
        return Report(None, [Problem(where, found, expected or "a COW device")])
    problems = []
    if isinstance(image.sidecar, FormatError):
        what, _, expected = str(image.sidecar).removeprefix("sidecar: ").partition(", expected ")
        problems.append(Problem("sidecar", what, expected))
    elif image.sidecar is not None:
        origin_size = origin_size or image.sidecar.origin_size
    problems += entry_problems(image, origin_size)
    problems += end_problems(image)
    return Report(image, problems)


def entry_problems(image: Image, origin_size: int | None) -> list[Problem]:
    """What is wrong with the exceptions themselves."""
    layout = image.layout
    origin_chunks = None if origin_size is None else -(-origin_size // layout.chunk_bytes)
    problems: list[Problem] = []
    olds: dict[int, int] = {}
    news: dict[int, int] = {}
    for index, (old, new) in enumerate(image.exceptions):
        where = f"area {index // layout.epa}, entry {index % layout.epa} ({old} -> {new})"
        if origin_chunks is not None and old >= origin_chunks:
            problems.append(Problem(where, f"old chunk {old} is out of range", f"less than {origin_chunks}"))
        if new >= layout.total_chunks:
            last = layout.total_chunks - 1
            problems.append(Problem(where, f"new chunk {new} lies behind the device's end", f"{last} at most"))
        elif layout.is_metadata(new):
            problems.append(Problem(where, f"new chunk {new} is a metadata area", "a data chunk"))
        if old in olds:
            problems.append(Problem(where, f"old chunk {old} has entry {olds[old]} already", "one entry a chunk"))
        if new in news:
            problems.append(Problem(where, f"new chunk {new} is used by entry {news[new]}", "each used once"))
        if len(problems) >= PROBLEMS_MOST:
            return [*problems, Problem(where, "the rest of the list was not looked at", "a list with fewer problems")]
        olds.setdefault(old, index)
        news.setdefault(new, index)
    return problems


def end_problems(image: Image) -> list[Problem]:
    """What is wrong with the end of the list: no exception is, but the next one would be."""
    layout, count = image.layout, len(image.exceptions)
    if not image.terminated:
        sectors = layout.device_bytes // SECTOR
        what = f"the last area is full and has no terminator: area {count // layout.epa} would lie behind the end"
        return [Problem("end of list", what, f"a device of more than {sectors} sectors: the kernel cannot open this")]
    if not image.stale:
        return []
    index, old, new = image.stale[0]
    where = f"area {index // layout.epa}, entry {index % layout.epa}"
    many = f"{len(image.stale)}{' or more' if len(image.stale) >= KEPT_MOST else ''}"
    what = f"{many} stale entries behind the list's end (entry {count % layout.epa}), first {old} -> {new}"
    return [Problem(where, what, "zero: they would come alive when the gap is filled; csnap zeroes them on take-over")]
