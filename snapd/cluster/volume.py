"""The volume's format record: written once by ``csnap volume init``, read and compared before anything else."""

from __future__ import annotations

from collections.abc import Callable

from snapd.config import Config, VolumeConfig
from snapd.errors import CsnapError, FormatError, LockspaceError, Refused
from snapd.exstore.registry import Clusterized as ClusterizedType
from snapd.exstore.types import store_types
from snapd.lockspace import keys
from snapd.lockspace.kv import Compare, Failure, Kv, Put, Range, RangeResult, Target, Txn
from snapd.lockspace.protocol import NEWEST
from snapd.lockspace.records import FormatRecord
from snapd.lockspace.version import check_version
from snapd.units import SECOND
from snapd.volume.volume import default_region

TIMEOUT = 5 * SECOND

HOST_LOCAL = ("file", "dev", "loop")
"""Kinds of identities (blockdev.device) that are numbers of one host."""


def read_format(kv: Kv, cluster_uuid: str, done: Callable[[FormatRecord | CsnapError], None]) -> None:
    """Read the record. Refused if the volume is not initialized, LockspaceError if etcd does not answer."""
    key = keys.Keys(cluster_uuid).format

    def received(result: RangeResult | Failure, revision: int) -> None:
        if isinstance(result, Failure):
            done(LockspaceError(f"etcd: {result.message}"))
        elif not result.kvs:
            done(Refused(f"volume {cluster_uuid}: not initialized: run csnap volume init"))
        else:
            try:
                done(FormatRecord.from_bytes(key, result.kvs[0].value))
            except FormatError as error:
                done(error)

    kv.range(Range(key), TIMEOUT, received)


def init_volume(config: Config, record: FormatRecord) -> tuple[bool, list[str]]:
    """Write the record, waiting for etcd; return whether it was absent, and warnings. May be repeated, on any host.

    Raises Refused if the volume is initialized with another geometry or origin, or etcd is too old; LockspaceError.
    """
    from snapd.lockspace.etcd import Tls  # with gRPC, which nothing else of the command line needs
    from snapd.lockspace.etcd_sync import EtcdSync

    lockspace = config.lockspace
    tls = Tls(lockspace.ca, lockspace.cert, lockspace.key) if lockspace.ca or lockspace.cert else None
    key = keys.Keys(config.volume.cluster_uuid).format
    with EtcdSync(lockspace.endpoints, tls) as etcd:
        warning = check_version(etcd.status().version, lockspace.allow_old_etcd)
        absent = Compare(key, Target.CREATE, 0)
        result = etcd.txn(Txn((absent,), (Put(key, record.to_bytes()),), (Range(key),)))
    found = result.results[0]
    if not result.succeeded and isinstance(found, RangeResult):
        there = FormatRecord.from_bytes(key, found.kvs[0].value)
        check_origin(config.volume, there, record.origin_size, record.origin_identity)
    return result.succeeded, [warning] if warning else []


def check_type(name: str) -> None:
    """Raise Refused unless ``name`` is a store type that several hosts can share."""
    if not isinstance(store_types().find(name), ClusterizedType):
        raise Refused(f"store type {name!r}: one host only; expected clusterized_{name}")


def new_format(volume: VolumeConfig, origin_size: int, identity: str) -> FormatRecord:
    """What ``volume init`` fixes for this origin."""
    region = volume.region_size or default_region(origin_size, volume.chunk_size)
    return FormatRecord(NEWEST, origin_size, identity, volume.chunk_size, region)


def check_origin(volume: VolumeConfig, record: FormatRecord, origin_size: int, identity: str) -> None:
    """Raise Refused unless this host's origin and configuration are those that the volume was initialized with."""
    found = new_format(volume, origin_size, identity)
    for name, ours, theirs in (
        ("origin size", found.origin_size, record.origin_size),
        ("chunk_size", found.chunk_size, record.chunk_size),
        ("region_size", found.region_size, record.region_size),
    ):
        if ours != theirs:
            raise Refused(f"{volume.origin}: {name} {ours}, but the volume was initialized with {theirs}")
    if not same_hardware(identity, record.origin_identity):
        raise Refused(
            f"{volume.origin}: another device: is {identity}, the volume was initialized with {record.origin_identity}"
        )


def same_hardware(ours: str, theirs: str) -> bool:
    """Whether two identities can be one device.

    Files and devices without a serial number are named by numbers that differ between hosts; of these only the kind
    can be compared.
    """
    kinds = ours.partition(":")[0], theirs.partition(":")[0]
    return ours == theirs or (kinds[0] == kinds[1] and kinds[0] in HOST_LOCAL)
