"""Datagrams between control and worker: whatever the bytes, a message that ``encode`` makes, or FormatError."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapd import messages
from snapd.errors import FormatError
from snapd.messages import Counter, Message, SnapshotSpec, decode, encode
from tests.support import examples as _examples  # noqa: F401

KINDS: tuple[type[Any], ...] = get_args(Message)
NAMES = [kind.__name__ for kind in KINDS]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)


@st.composite
def whole(draw: st.DrawFn) -> Message:
    """Any message that makes sense."""
    message: Message = _built(draw, draw(st.sampled_from(KINDS)))
    return message


def _built(draw: st.DrawFn, kind: type[Any]) -> Any:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        match str(field.type):
            case "str":
                values[field.name] = draw(TEXTS)
            case "int":
                values[field.name] = draw(NUMBERS)
            case "bool":
                values[field.name] = draw(st.booleans())
            case "SnapshotSpec":
                values[field.name] = _built(draw, SnapshotSpec)
            case "tuple[Counter, ...]":
                values[field.name] = tuple(_built(draw, Counter) for _ in range(draw(st.integers(0, 3))))
            case "tuple[SnapshotSpec, ...]":
                values[field.name] = tuple(_built(draw, SnapshotSpec) for _ in range(draw(st.integers(0, 2))))
            case "tuple[tuple[str, int], ...]":
                values[field.name] = tuple(draw(st.lists(st.tuples(TEXTS, NUMBERS), max_size=3)))
            case "tuple[tuple[str, str], ...]":
                values[field.name] = tuple(draw(st.lists(st.tuples(TEXTS, TEXTS), max_size=3)))
            case "tuple[str, ...]":
                values[field.name] = tuple(draw(st.lists(TEXTS, max_size=3)))
            case other:
                raise AssertionError(f"{kind.__name__}.{field.name}: {other} is not played here")
    return kind(**values)


def decoded(data: bytes) -> Message | None:
    """What the datagram says, None if it is refused. A message must be one that can be sent: of the right types."""
    try:
        message = decode(data)
    except FormatError as error:
        assert len(str(error)) < 1000
        return None
    assert decode(encode(message)) == message
    return message


@settings(max_examples=200)
@given(whole())
def test_every_message_comes_back(message: Message) -> None:
    """Of every type, with every field filled."""
    assert decoded(encode(message)) == message


@settings(max_examples=200)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_and_arbitrary_json_are_refused(data: bytes) -> None:
    """FormatError and nothing else."""
    assert decoded(data) is None


@settings(max_examples=400)
@given(st.sampled_from(NAMES), st.lists(JSON, max_size=7))
def test_wrong_fields_are_refused(name: str, values: list[Any]) -> None:
    """A known name with any values: only those of the right types make a message."""
    message = decoded(json.dumps([name, *values]).encode())
    if message is not None:
        for field in dataclasses.fields(message):
            value = getattr(message, field.name)
            expected = {"str": str, "int": int, "bool": bool}.get(str(field.type), (tuple, SnapshotSpec))
            assert isinstance(value, expected) and (type(value) is bool) == (str(field.type) == "bool"), field.name


@settings(max_examples=200)
@given(whole(), st.integers(0, 1 << 16), st.integers(0, 255))
def test_a_changed_byte_is_another_message_or_refused(message: Message, at: int, byte: int) -> None:
    """Whatever it becomes, it can be sent on."""
    data = bytearray(encode(message))
    data[at % len(data)] = byte
    decoded(bytes(data))


@pytest.mark.parametrize("data", [b"[" * 60000, b'{"a":' * 10000, b'["Want","x",' + b"[" * 50000])
def test_regression_a_datagram_nested_too_deeply_is_refused(data: bytes) -> None:
    """The JSON parser's RecursionError was not caught."""
    assert decoded(data) is None


def test_a_message_longer_than_a_datagram_is_refused_where_it_is_made() -> None:
    """It would be cut off by the receiver."""
    with pytest.raises(FormatError, match=f"at most {messages.MAX_DATAGRAM}"):
        encode(messages.Fatal("x" * messages.MAX_DATAGRAM))
