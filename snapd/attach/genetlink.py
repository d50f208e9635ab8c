"""Generic netlink messages as the kernel's NBD driver speaks them: bytes <-> values, no I/O. Host byte order.

    nlmsghdr                       length u32, type u16, flags u16, sequence u32, port u32
      genlmsghdr                   command u8, version u8, reserved u16
        attribute, attribute, ...  length u16 (with these four bytes), type u16, value; each begins at a multiple of 4

The type of a message is the number that the controller gave the family when its module was loaded. Sources:
<linux/netlink.h>, <linux/genetlink.h>, <linux/nbd-netlink.h>, drivers/block/nbd.c.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from snapd.errors import Refused

# <linux/netlink.h>
REQUEST, ACK = 1, 4
ERROR = 2
"""The message type of an error, and of an acknowledgement, which is error 0."""

NESTED = 0x8000
TYPE_MASK = 0x3FFF  # without NESTED and NLA_F_NET_BYTEORDER
SOL_NETLINK, ADD_MEMBERSHIP = 270, 1

# <linux/genetlink.h>
CONTROLLER = 16
CTRL_VERSION = 1
CTRL_GETFAMILY = 3
CTRL_FAMILY_ID, CTRL_FAMILY_NAME, CTRL_MCAST_GROUPS = 1, 2, 7
CTRL_GROUP_ID = 2

# <linux/nbd-netlink.h>
FAMILY = "nbd"
VERSION = 1
CONNECT, DISCONNECT, RECONFIGURE, LINK_DEAD, STATUS = range(1, 6)
INDEX, SIZE, BLOCK_SIZE, TIMEOUT, SERVER_FLAGS, CLIENT_FLAGS, SOCKETS, DEAD_TIMEOUT, DEVICES, BACKEND = range(1, 11)
DISCONNECT_ON_CLOSE = 2  # a client flag
SOCKET_ITEM, SOCKET_FD = 1, 1
DEVICE_ITEM, DEVICE_CONNECTED = 1, 2

_HEADER = Struct("=IHHII")
_GENERIC = Struct("=BBH")
_ATTRIBUTE = Struct("=HH")
_U32, _U64, _ERRNO = Struct("=I"), Struct("=Q"), Struct("=i")


@dataclass(frozen=True, slots=True)
class Message:
    """One message received. ``error`` 0 with type ERROR: an acknowledgement; ``attributes`` empty then."""

    type: int
    sequence: int
    command: int
    error: int  # positive errno
    attributes: dict[int, bytes]


# ---- building


def attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(attributes))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, _U32.pack(value))


def u64(kind: int, value: int) -> bytes:
    return attribute(kind, _U64.pack(value))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def request(family: int, command: int, version: int, sequence: int, *attributes: bytes) -> bytes:
    """Return a request that is to be acknowledged."""
    body = _GENERIC.pack(command, version, 0) + b"".join(attributes)
    return _HEADER.pack(_HEADER.size + len(body), family, REQUEST | ACK, sequence, 0) + body


def connect(
    *, index: int, size: int, block: int, flags: int, dead_timeout: int, backend: str, descriptor: int
) -> tuple[bytes, ...]:
    """Return CONNECT's attributes: one connection, no request timeout (what is slow is not broken)."""
    return (
        u32(INDEX, index),
        u64(SIZE, size),
        u64(BLOCK_SIZE, block),
        u64(TIMEOUT, 0),
        u64(SERVER_FLAGS, flags),
        u64(DEAD_TIMEOUT, dead_timeout),
        text(BACKEND, backend),
        _socket(descriptor),
    )


def reconfigure(*, index: int, dead_timeout: int, backend: str, descriptor: int) -> tuple[bytes, ...]:
    """Return RECONFIGURE's attributes; the kernel refuses a backend that is not the one of CONNECT."""
    return u32(INDEX, index), u64(DEAD_TIMEOUT, dead_timeout), text(BACKEND, backend), _socket(descriptor)


def _socket(descriptor: int) -> bytes:
    return nested(SOCKETS, nested(SOCKET_ITEM, u32(SOCKET_FD, descriptor)))


# ---- parsing


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes by type; of a repeated one the last. Raises Refused."""
    found: dict[int, bytes] = {}
    position = 0
    while position + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if not _ATTRIBUTE.size <= length <= len(data) - position:
            raise Refused(f"netlink: attribute {kind} has length {length}, {len(data) - position} bytes are left")
        found[kind & TYPE_MASK] = data[position + _ATTRIBUTE.size : position + length]
        position += length + -length % 4
    return found


def messages(data: bytes) -> Iterator[Message]:
    """Yield every message of a datagram. Raises Refused."""
    position = 0
    while position + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, position)
        if not _HEADER.size <= length <= len(data) - position:
            raise Refused(f"netlink: message {kind} has length {length}, {len(data) - position} bytes are left")
        yield _message(kind, sequence, data[position + _HEADER.size : position + length])
        position += length + -length % 4


def _message(kind: int, sequence: int, body: bytes) -> Message:
    if kind == ERROR:
        return Message(kind, sequence, 0, -_ERRNO.unpack_from(_whole(body, _ERRNO.size))[0], {})
    command, _, _ = _GENERIC.unpack_from(_whole(body, _GENERIC.size))
    return Message(kind, sequence, command, 0, attributes(body[_GENERIC.size :]))


def _whole(body: bytes, size: int) -> bytes:
    if len(body) < size:
        raise Refused(f"netlink: a message of {len(body)} bytes, expected {size}")
    return body


def number(values: dict[int, bytes], kind: int) -> int:
    """Return an unsigned attribute of whatever width. Raises Refused: it is not there."""
    if not values.get(kind):
        raise Refused(f"netlink: attribute {kind} is missing")
    return int.from_bytes(values[kind], sys.byteorder)
