"""Between the plain values of ``kv`` and etcd's messages. Keys are UTF-8; what is not comes through unharmed."""

from __future__ import annotations

from typing import Any

from snapd.lockspace.etcd_descriptors import rpc
from snapd.lockspace.kv import (
    Compare,
    Delete,
    Event,
    KeyValue,
    Operation,
    Put,
    Range,
    RangeResult,
    Target,
    Txn,
    TxnResult,
)

_TARGETS = {Target.CREATE: rpc.Compare.CREATE, Target.MOD: rpc.Compare.MOD}
_DELETED = 1  # mvccpb.Event.DELETE


def key_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def key_str(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def range_request(request: Range) -> Any:
    return rpc.RangeRequest(
        key=key_bytes(request.key),
        range_end=key_bytes(request.range_end),
        revision=request.revision,
        limit=request.limit,
        keys_only=request.keys_only,
    )


def txn_request(txn: Txn) -> Any:
    return rpc.TxnRequest(
        compare=[_compare(compare) for compare in txn.compare],
        success=[_operation(operation) for operation in txn.success],
        failure=[_operation(operation) for operation in txn.failure],
    )


def _compare(compare: Compare) -> Any:
    message = rpc.Compare(
        key=key_bytes(compare.key),
        range_end=key_bytes(compare.range_end),
        target=_TARGETS[compare.target],
        result=rpc.Compare.LESS if compare.less else rpc.Compare.EQUAL,
    )
    setattr(message, compare.target.value, compare.revision)
    return message


def _operation(operation: Operation) -> Any:
    if isinstance(operation, Put):
        put = rpc.PutRequest(key=key_bytes(operation.key), value=operation.value, lease=operation.lease)
        return rpc.RequestOp(request_put=put)
    if isinstance(operation, Delete):
        delete = rpc.DeleteRangeRequest(key=key_bytes(operation.key), range_end=key_bytes(operation.range_end))
        return rpc.RequestOp(request_delete_range=delete)
    if isinstance(operation, Range):
        return rpc.RequestOp(request_range=range_request(operation))
    return rpc.RequestOp(request_txn=txn_request(operation))


def range_result(response: Any) -> RangeResult:
    return RangeResult(tuple(_key_value(kv) for kv in response.kvs), response.more)


def txn_result(response: Any) -> TxnResult:
    return TxnResult(
        response.succeeded, response.header.revision, tuple(_result(result) for result in response.responses)
    )


def _result(response: Any) -> RangeResult | TxnResult | None:
    kind = response.WhichOneof("response")
    if kind == "response_range":
        return range_result(response.response_range)
    if kind == "response_txn":
        return txn_result(response.response_txn)
    return None


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(key_str(kv.key), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def event(message: Any) -> Event:
    if message.type == _DELETED:
        return Event(KeyValue(key_str(message.kv.key), b"", 0, message.kv.mod_revision), deleted=True)
    return Event(_key_value(message.kv), deleted=False)
