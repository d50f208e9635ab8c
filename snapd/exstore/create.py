"""Making a COW device ready for a new snapshot, and taking that back. Synchronous: for the control process.

A device is *free* if its first MiB is zero and libblkid sees nothing on it, or if it is what deleting a snapshot of
this volume leaves: a header with valid=0, this volume's sidecar, and zeros behind them to the end of chunk 0. (By the
kernel's own rule a fresh ext4 disk looks empty: its first sector is zero.) Anything else needs ``force``; the
origin is refused even then.

What other COW chunks hold is left as it is: a loader reads an area only after it has seen the one before full, and
an area is zeroed before the one before it fills.
"""

from __future__ import annotations

from snapd.blockdev.device import FileDevice
from snapd.blockdev.sync import fsync, pread, pwrite
from snapd.errors import FormatError, Refused
from snapd.exstore.signature import signature
from snapd.format.header import Header
from snapd.format.layout import Layout
from snapd.format.sidecar import Sidecar
from snapd.units import MIB, SECTOR

FOREIGN_BYTES = MIB
"""How far from the beginning any byte that is not zero counts as somebody's."""


def check_free(device: FileDevice, origin_identity: str, volume_uuid: str, force: bool) -> None:
    """Raise Refused, naming what was found, unless the device may be overwritten."""
    if device.identity == origin_identity:
        raise Refused(f"{device.path}: this is the origin itself ({origin_identity}), expected another device")
    if force or _left_by_delete(device, volume_uuid):
        return
    beginning = pread(device, 0, min(FOREIGN_BYTES, device.size))
    found = _owner(device)
    at = len(beginning) - len(beginning.lstrip(b"\0"))
    if found or at < len(beginning):
        what = found or f"byte {beginning[at]:#04x} at offset {at}"
        raise Refused(
            f"{device.path}: foreign content: {what}, expected zeros in the first {FOREIGN_BYTES} bytes and no"
            " signature (--force overwrites it)"
        )


def _left_by_delete(device: FileDevice, volume_uuid: str) -> bool:
    header, sidecar = _store(device)
    if header is None or header.valid or sidecar is None or sidecar.volume_uuid != volume_uuid:
        return False
    chunk = header.chunk_size * SECTOR
    if chunk > device.size:
        return False
    pieces = (pread(device, at, min(MIB, chunk - at)) for at in range(SECTOR, chunk, MIB))  # it may claim 2 GiB
    return all(piece == bytes(len(piece)) for piece in pieces)


def _store(device: FileDevice) -> tuple[Header | None, Sidecar | None]:
    sector = pread(device, 0, SECTOR)
    header = None
    try:
        header = Header.from_bytes(sector)
        return header, Sidecar.from_bytes(sector, header.chunk_size)
    except FormatError:
        return header, None


def _owner(device: FileDevice) -> str:
    """What to call the content of a device that is not free; "" if nothing but bytes tells that it has any."""
    _, sidecar = _store(device)
    if sidecar is not None:
        return f"the exceptions of snapshot {sidecar.snapshot!r} of volume {sidecar.volume_uuid}"
    found = signature(device)
    return f"signature {found!r}" if found else ""


def check_geometry(device: FileDevice, chunk_bytes: int, origin_block: int | None = None) -> Layout:
    """Return the layout. Raises Refused if the device is too small or its logical block too large.

    origin_block: the origin's logical block: the smallest request a client may send, for snapshots too.
    """
    block = device.logical_block
    if chunk_bytes % SECTOR or chunk_bytes % block:
        raise Refused(
            f"{device.path}: logical block of {block} bytes, expected one that divides a chunk, {chunk_bytes}"
        )
    if origin_block is not None and block > origin_block:
        raise Refused(f"{device.path}: logical block of {block} bytes, expected the origin's, {origin_block}, at most")
    try:
        return Layout(chunk_bytes // SECTOR, device.size)
    except FormatError as error:
        raise Refused(
            f"{device.path}: {error}; expected at least {3 * chunk_bytes}: header, first area, one chunk"
        ) from None


def create(device: FileDevice, chunk_bytes: int, sidecar: Sidecar) -> None:
    """Write an empty store. Raises Refused before anything is written, DeviceError after.

    1. zero area 0, flush      crash: no header of ours; what was there before, its first area perhaps zeroed
    2. write chunk 0, flush    crash: the same; or, since a sector cannot tear, an empty store and its sidecar,
                               that no table names
    """
    layout = check_geometry(device, chunk_bytes)
    header = Header(True, layout.chunk_sectors)
    first = (header.to_bytes() + sidecar.to_bytes(header.chunk_size)).ljust(chunk_bytes, b"\0")
    pwrite(device, layout.area_chunk(0) * chunk_bytes, bytes(chunk_bytes))
    fsync(device)
    pwrite(device, 0, first)
    fsync(device)


def undo(device: FileDevice, store_uuid: str) -> None:
    """Set valid=0 after a creation that was refused elsewhere: the device is free again, as after a delete.

    Only if the device still holds the store that was created: meanwhile another host may have made it another's.
    """
    header, sidecar = _store(device)
    if header is None or sidecar is None or sidecar.store_uuid != store_uuid:
        return
    block = pread(device, 0, device.logical_block)
    pwrite(device, 0, Header(False, header.chunk_size).to_bytes() + block[Header.SIZE :])
    fsync(device)
