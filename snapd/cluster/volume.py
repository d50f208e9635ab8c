"""The volume's format record: written once by ``csnap volume init``, read by everybody before anything else."""

from __future__ import annotations

from collections.abc import Callable

from snapd.errors import CsnapError, FormatError, LockspaceError, Refused
from snapd.lockspace import keys
from snapd.lockspace.kv import Compare, Failure, Kv, Put, Range, RangeResult, Target, Txn, TxnResult
from snapd.lockspace.records import FormatRecord
from snapd.units import SECOND

TIMEOUT = 5 * SECOND


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


def init_volume(kv: Kv, cluster_uuid: str, record: FormatRecord, done: Callable[[CsnapError | None], None]) -> None:
    """Write the record. Refused if another one is there; repeating the same one is fine."""
    key = keys.Keys(cluster_uuid).format
    txn = Txn((Compare(key, Target.CREATE, 0),), (Put(key, record.to_bytes()),), (Range(key),))

    def written(result: TxnResult | Failure) -> None:
        if isinstance(result, Failure):
            done(LockspaceError(f"etcd: {result.message}"))
            return
        found = result.results[0]
        if result.succeeded or (isinstance(found, RangeResult) and found.kvs[0].value == record.to_bytes()):
            done(None)
        else:
            done(Refused(f"volume {cluster_uuid}: is initialized already, with another size, identity or geometry"))

    kv.txn(txn, TIMEOUT, written)
