"""The on-disk format against arbitrary values and arbitrary bytes."""

from __future__ import annotations

import random
import struct
from uuid import UUID

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from snapd.errors import FormatError
from snapd.exstore.check import check
from snapd.exstore.image import Image
from snapd.format.header import Header
from snapd.format.layout import ENTRY_BYTES, Layout
from snapd.format.sidecar import NAME, Sidecar
from snapd.units import SECTOR, is_power_of_two
from tests.support import examples as _examples  # noqa: F401

headers = st.builds(Header, st.booleans(), st.integers(0, 22).map(lambda bits: 1 << bits))
uuids = st.uuids().map(str)
sidecars = st.builds(
    Sidecar,
    uuids,
    uuids,
    st.from_regex(NAME, fullmatch=True),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
)
layouts = st.builds(
    lambda bits, chunks, rest: Layout(1 << bits, ((3 + chunks) * SECTOR << bits) + rest % (SECTOR << bits)),
    st.integers(0, 4),
    st.integers(0, 1000),
    st.integers(0, 1 << 13),
)


def first_sector(header: Header, sidecar: Sidecar) -> bytes:
    return header.to_bytes() + sidecar.to_bytes(header.chunk_size)


def parse(sector: bytes) -> tuple[Header, Sidecar | None]:
    header = Header.from_bytes(sector)
    return header, Sidecar.from_bytes(sector, header.chunk_size)


@given(headers, sidecars)
def test_what_is_written_is_read_back(header: Header, sidecar: Sidecar) -> None:
    """Header and sidecar together are one sector, and that sector is them."""
    sector = first_sector(header, sidecar)
    assert len(sector) == SECTOR and parse(sector) == (header, sidecar)


@given(headers, sidecars, st.integers(0, SECTOR - 1), st.integers(1, 255))
@example(Header(True, 8), Sidecar(str(UUID(int=0)), str(UUID(int=0)), "s", 0, 0), 4, 1)
def test_every_changed_byte_is_told(header: Header, sidecar: Sidecar, at: int, flip: int) -> None:
    """Any byte of the first sector changed is refused by name; the valid flag alone may go from 1 to 0 or back."""
    sector = bytearray(first_sector(header, sidecar))
    sector[at] ^= flip
    if at == 4 and flip == 1:
        assert parse(bytes(sector)) == (Header(not header.valid, header.chunk_size), sidecar)
    else:
        with pytest.raises(FormatError, match=r"header: |sidecar: "):
            parse(bytes(sector))


@given(headers, st.integers(0, Header.SIZE - 1), st.integers(1, 255))
def test_a_header_alone_is_refused_or_a_different_one(header: Header, at: int, flip: int) -> None:
    """Without a sidecar only another legal value of the valid flag or chunk size can pass, and is seen as that."""
    data = bytearray(header.to_bytes())
    data[at] ^= flip
    try:
        found = Header.from_bytes(bytes(data))
    except FormatError:
        return
    assert found != header and found.to_bytes() == bytes(data)
    assert (at == 4) != (found.chunk_size != header.chunk_size and is_power_of_two(found.chunk_size))


@given(st.binary(max_size=600))
def test_arbitrary_bytes_are_refused_by_name_or_make_sense(data: bytes) -> None:
    """No other exception than FormatError, whatever the bytes."""
    try:
        header, sidecar = parse(data)
    except FormatError as error:
        assert str(error).split(":")[0] in ("header", "sidecar")
        return
    assert header.to_bytes() == data[: Header.SIZE]
    assert sidecar is None or sidecar.to_bytes(header.chunk_size) == data[Header.SIZE : SECTOR]


@given(sidecars, st.integers(0, 22).map(lambda bits: 1 << bits), st.text(max_size=70))
def test_a_sidecar_is_written_only_with_a_name_that_can_be_read(sidecar: Sidecar, chunk: int, name: str) -> None:
    """Names that would not come back as they are make no sidecar."""
    assume(not NAME.fullmatch(name))
    with pytest.raises(FormatError, match="snapshot name"):
        Sidecar(sidecar.volume_uuid, sidecar.store_uuid, name, 0, 0).to_bytes(chunk)


# ---- the layout


@given(layouts)
def test_capacity_is_the_most_that_leaves_room_for_the_terminator(layout: Layout) -> None:
    """n data chunks need 1 + n + (n + epa) // epa chunks: the capacity fits, one more does not (trap 1)."""

    def needed(count: int) -> int:
        return 1 + count + (count + layout.epa) // layout.epa

    assert needed(layout.capacity) <= layout.total_chunks < needed(layout.capacity + 1)


@given(layouts)
def test_every_chunk_is_header_area_or_data(layout: Layout) -> None:
    """Going from data chunk to data chunk visits exactly what is neither, in order, and the ordinal counts it."""
    areas = {layout.area_chunk(area) for area in range(layout.total_chunks // layout.stride + 1)}
    expected = [chunk for chunk in range(1, layout.total_chunks) if chunk not in areas]
    chunk, found = layout.first_data_chunk, []
    while chunk < layout.total_chunks:
        assert layout.ordinal(chunk) == len(found) and not layout.is_metadata(chunk)
        found.append(chunk)
        chunk = layout.next_data_chunk(chunk)
    assert found == expected


@given(layouts, st.integers(0, 2000))
def test_a_run_of_data_chunks_ends_at_an_area_or_the_capacity(layout: Layout, start: int) -> None:
    """All of a run is data within the capacity, and the chunk behind it is not."""
    chunk = layout.data_chunk_from(start)
    run = layout.run_of_data_chunks(chunk)
    for one in range(chunk, chunk + run):
        assert not layout.is_metadata(one) and layout.ordinal(one) < layout.capacity
    behind = chunk + run
    assert layout.is_metadata(behind) or layout.ordinal(behind) >= layout.capacity


# ---- whole devices

CHUNK = 2 * SECTOR
EPA = CHUNK // ENTRY_BYTES


@st.composite
def stores(draw: st.DrawFn) -> tuple[Layout, list[tuple[int, int]], bytes]:
    """A sound device with some exceptions, in any order, over any garbage."""
    layout = Layout(CHUNK // SECTOR, draw(st.integers(3, 3 * (EPA + 1))) * CHUNK)
    count = draw(st.integers(0, layout.capacity))
    data_chunks, chunk = [], layout.first_data_chunk
    while len(data_chunks) < layout.capacity:
        data_chunks.append(chunk)
        chunk = layout.next_data_chunk(chunk)
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    entries = list(zip(rng.sample(range(1000), count), rng.sample(data_chunks, count), strict=True))
    device = bytearray(draw(st.sampled_from([b"\0", b"\xaa", b"\x01"])) * layout.device_bytes)
    device[:CHUNK] = Header(True, layout.chunk_sectors).to_bytes().ljust(CHUNK, b"\0")
    for area in range(count // EPA + 1):
        packed = b"".join(struct.pack("<QQ", *entry) for entry in entries[area * EPA : (area + 1) * EPA])
        begin = layout.area_chunk(area) * CHUNK
        device[begin : begin + CHUNK] = packed.ljust(CHUNK, b"\0")
    return layout, entries, bytes(device)


@given(stores())
def test_a_store_is_read_back_entry_by_entry(store: tuple[Layout, list[tuple[int, int]], bytes]) -> None:
    """Whatever the order of chunks and the bytes around: the list comes back as it was, and is sound."""
    layout, entries, device = store
    report = check(lambda at, length: device[at : at + length], len(device), 1000 * CHUNK)
    assert report.problems == [] and report.image is not None and report.image.exceptions == entries
    newest = max((new for _, new in entries), default=1)
    assert report.image.next_free == layout.next_data_chunk(newest)


@given(stores(), st.integers(0, 1 << 16), st.integers(1, 255))
def test_a_changed_byte_in_an_area_is_a_problem_or_another_list(
    store: tuple[Layout, list[tuple[int, int]], bytes], place: int, flip: int
) -> None:
    """Areas have no checksum: what check cannot call a problem must at least show as other exceptions."""
    layout, entries, device = store
    area, at = divmod(place % ((len(entries) // EPA + 1) * CHUNK), CHUNK)
    changed = bytearray(device)
    changed[layout.area_chunk(area) * CHUNK + at] ^= flip
    report = check(lambda at, length: bytes(changed[at : at + length]), len(changed), 1000 * CHUNK)
    assert report.image is not None
    assert report.problems or report.image.exceptions != entries


@given(stores(), st.integers(0, 200), st.binary(min_size=16, max_size=64))
def test_whatever_is_on_a_device_check_says_something(
    store: tuple[Layout, list[tuple[int, int]], bytes], chunk: int, garbage: bytes
) -> None:
    """Garbage anywhere: a report or problems, never another exception."""
    _, _, device = store
    changed = bytearray(device)
    at = chunk * CHUNK % len(changed)
    changed[at : at + len(garbage)] = garbage
    changed = changed[: len(device)]
    report = check(lambda at, length: bytes(changed[at : at + length]), len(changed))
    assert report.image is not None or report.problems
    try:
        image = Image.load(lambda at, length: bytes(changed[at : at + length]), len(changed))
    except FormatError:
        return
    assert image.to_json()["exceptions"] == [list(exception) for exception in image.exceptions]
