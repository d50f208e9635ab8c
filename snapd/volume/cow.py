"""Opening a COW device: is it really this snapshot's? Recognized by its sidecar, never by its path alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from snapd.blockdev.base import Device
from snapd.errors import FormatError, Refused
from snapd.format.header import Header
from snapd.format.sidecar import Sidecar
from snapd.messages import SnapshotSpec
from snapd.units import SECTOR


@dataclass(frozen=True, slots=True)
class Expected:
    """What every COW device of the volume must agree with."""

    volume_uuid: str
    origin: Device
    chunk_bytes: int


def verify(expected: Expected, spec: SnapshotSpec, device: Device, block: bytes) -> None:
    """Raise Refused unless ``block``, the device's first bytes, says that it is the COW device of ``spec``.

    A device without a sidecar is refused here: the kernel may have written it, but nothing ties it to this volume.
    """
    where = f"{spec.path}: "
    if device.identity == expected.origin.identity:
        raise Refused(where + "this is the origin itself")
    if device.logical_block > expected.origin.logical_block:
        raise Refused(where + f"logical block {device.logical_block}, the origin has {expected.origin.logical_block}")
    try:
        header = Header.from_bytes(block)
        if header.chunk_size * SECTOR != expected.chunk_bytes:
            raise Refused(where + f"chunk size {header.chunk_size * SECTOR}, the volume has {expected.chunk_bytes}")
        sidecar = Sidecar.from_bytes(block, header.chunk_size)
    except FormatError as error:
        raise FormatError(where + str(error)) from None  # still one: such are counted
    if sidecar is None:
        raise Refused(where + "no sidecar: nothing ties this device to the volume")
    told = {
        "volume": (sidecar.volume_uuid, expected.volume_uuid),
        "store": (sidecar.store_uuid, spec.store),
        "snapshot": (sidecar.snapshot, spec.name),
        "origin size": (sidecar.origin_size, expected.origin.size),
    }
    for field, (found, wanted) in told.items():
        if found != wanted:
            raise Refused(where + f"sidecar: {field} is {found}, expected {wanted}: a wrong device")
    if sidecar.generation > spec.generation:
        raise Refused(
            where + f"sidecar: generation {sidecar.generation}, etcd says {spec.generation}: etcd was set back in time"
        )


def opener(
    expected: Expected, open_device: Callable[[str], Device], read: Callable[[Any, int, int], bytes]
) -> Callable[[SnapshotSpec], Device]:
    """Return the function that opens and verifies a COW device; ``read(device, offset, length)`` is synchronous."""

    def open_cow(spec: SnapshotSpec) -> Device:
        device = open_device(spec.path)
        try:
            verify(expected, spec, device, read(device, 0, max(device.logical_block, SECTOR)))
        except BaseException:
            device.close()
            raise
        return device

    return open_cow
