"""[volume]: name, cluster_uuid, origin, chunk_size; optional: region_size, type, exclusive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from snapd.config.checks import absolute, boolean, name, string
from snapd.config.table import Table
from snapd.units import KIB, MIB, format_size, is_power_of_two, parse_size

CHUNK_LEAST, CHUNK_MOST = 4 * KIB, MIB
REGION_MOST = 1 << 50
"""1 PiB: one region for any origin; the volume's record in etcd holds numbers below 2**63."""


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """Sizes in bytes. ``region_size`` 0: chosen from the origin's size when the volume is initialized."""

    name: str
    cluster_uuid: str
    origin: str
    chunk_size: int
    region_size: int
    type: str
    exclusive: bool


def uuid(value: Any) -> str:
    """A whole canonical UUID: one that is cut short or padded would name another cluster."""
    try:
        good = isinstance(value, str) and str(UUID(value)) == value.lower() and UUID(value).int != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError("expected a UUID like 5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11 (uuidgen makes one)")
    return str(value).lower()


def chunk_size(value: Any) -> int:
    size = parse_size(string(value)) if not isinstance(value, int) or isinstance(value, bool) else value
    if not is_power_of_two(size) or not CHUNK_LEAST <= size <= CHUNK_MOST:
        raise ValueError(f"expected a power of two from {format_size(CHUNK_LEAST)} to {format_size(CHUNK_MOST)}")
    return size


def region_size(chunk: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        size = parse_size(string(value)) if not isinstance(value, int) or isinstance(value, bool) else value
        if not is_power_of_two(size) or not chunk <= size <= REGION_MOST:
            least, most = format_size(chunk), format_size(REGION_MOST)
            raise ValueError(f"expected a power of two, at least chunk_size ({least}), at most {most}")
        return size

    return check


def read(table: Table) -> VolumeConfig:
    chunk = table.get("chunk_size", chunk_size)
    volume = VolumeConfig(
        name=table.get("name", name),
        cluster_uuid=table.get("cluster_uuid", uuid),
        origin=table.get("origin", absolute),
        chunk_size=chunk,
        region_size=table.get("region_size", region_size(chunk), 0),
        type=table.get("type", string, "clusterized_persistent"),
        exclusive=table.get("exclusive", boolean, True),
    )
    table.finish()
    return volume
