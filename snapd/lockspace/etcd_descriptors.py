"""etcd's messages and stubs for ``etcd3`` 0.12.0, under any protobuf from 4 to 7.

The package's generated code predates protobuf 4 and does not import; the serialized descriptors inside it are
good. They are read from its source (parsed, not run), completed with the fields that etcd has gained since, and
registered through protobuf's public descriptor pool and message factory. The result stands as ``etcd3.etcdrpc``
in ``sys.modules`` before ``etcd3`` is imported, and is what ``rpc`` names here.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FILES = ("kv", "auth", "rpc")  # in the order of their imports

_FIELD = descriptor_pb2.FieldDescriptorProto
_ONE, _MANY = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED

ADDED = (  # message, field, number, type, label: from etcd's rpc.proto
    ("WatchCreateRequest", "watch_id", 7, _FIELD.TYPE_INT64, _ONE),
    ("WatchCreateRequest", "fragment", 8, _FIELD.TYPE_BOOL, _ONE),
    ("WatchResponse", "cancel_reason", 6, _FIELD.TYPE_STRING, _ONE),
    ("WatchResponse", "fragment", 7, _FIELD.TYPE_BOOL, _ONE),
    ("StatusResponse", "errors", 8, _FIELD.TYPE_STRING, _MANY),
)


def _serialized(source: Path) -> bytes:
    """Return the ``serialized_pb=`` argument in a generated module."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
            value = node.value.args[0] if isinstance(node.value, ast.Call) else node.value
            if isinstance(value, ast.Constant):
                return value.value if isinstance(value.value, bytes) else str(value.value).encode("latin-1")
    raise ImportError(f"{source}: no serialized descriptor found, expected the one of etcd3 0.12.0")


def _complete(file: descriptor_pb2.FileDescriptorProto) -> None:
    """Add what etcd speaks since 3.4 and the package lacks."""
    messages = {message.name: message for message in file.message_type}
    for message, name, number, kind, label in ADDED:
        if all(field.name != name for field in messages[message].field):
            messages[message].field.add(name=name, number=number, type=kind, label=label)
    if "WatchProgressRequest" not in messages:
        file.message_type.add(name="WatchProgressRequest")
        messages["WatchRequest"].field.add(
            name="progress_request",
            number=3,
            type=_FIELD.TYPE_MESSAGE,
            label=_ONE,
            type_name=".etcdserverpb.WatchProgressRequest",
            oneof_index=0,
        )


def _stub(service: Any, classes: dict[str, Any]) -> type:
    """Return a class like a generated stub: one callable of the channel per method."""

    def __init__(self: Any, channel: Any) -> None:
        for method in service.methods:
            there, back = method.client_streaming, method.server_streaming
            arity = "_".join("stream" if many else "unary" for many in (there, back))
            call = getattr(channel, arity)(
                f"/{service.full_name}/{method.name}",
                request_serializer=classes[method.input_type.full_name].SerializeToString,
                response_deserializer=classes[method.output_type.full_name].FromString,
            )
            setattr(self, method.name, call)

    return type(f"{service.name}Stub", (), {"__init__": __init__})


def _build() -> ModuleType:
    spec = importlib.util.find_spec("etcd3")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the package etcd3 is not installed")
    pool = descriptor_pool.DescriptorPool()
    names = []
    for name in FILES:
        source = Path(spec.submodule_search_locations[0]) / "etcdrpc" / f"{name}_pb2.py"
        file = descriptor_pb2.FileDescriptorProto.FromString(_serialized(source))
        if name == "rpc":
            _complete(file)
        pool.AddSerializedFile(file.SerializeToString())
        names.append(file.name)
    classes: dict[str, Any] = dict(message_factory.GetMessageClassesForFiles(names, pool))
    module = ModuleType("etcd3.etcdrpc")
    module.__path__ = []
    descriptor: Any = pool.FindFileByName(names[-1])
    for name, message in descriptor.message_types_by_name.items():
        setattr(module, name, classes[message.full_name])
    for enum in descriptor.enum_types_by_name.values():
        for value in enum.values:
            setattr(module, value.name, value.number)
    for name, service in descriptor.services_by_name.items():
        setattr(module, f"{name}Stub", _stub(service, classes))
    return module


sys.modules.setdefault("etcd3.etcdrpc", _build())
rpc: Any = importlib.import_module("etcd3").etcdrpc
