"""Generic netlink messages: what the NBD driver is sent, and what is read of its answers."""

from __future__ import annotations

import struct

import pytest

from snapd.attach import genetlink as nl
from snapd.errors import Refused


def test_a_request_is_laid_out_as_the_kernel_reads_it() -> None:
    """Header, generic header, attributes at multiples of four; asked to be acknowledged."""
    data = nl.request(27, nl.DISCONNECT, nl.VERSION, 5, nl.u32(nl.INDEX, 3), nl.text(nl.BACKEND, "ab"))
    assert struct.unpack_from("=IHHII", data) == (len(data), 27, nl.REQUEST | nl.ACK, 5, 0)
    assert data[16:20] == bytes([nl.DISCONNECT, 1, 0, 0])
    assert data[20:28] == struct.pack("=HHI", 8, 1, 3)
    assert data[28:] == struct.pack("=HH", 7, 10) + b"ab\0" + b"\0"


def test_connect_hands_over_one_socket_without_a_request_timeout() -> None:
    """What restarts survive: timeout 0, a dead-connection timeout, a backend identifier, exactly one socket."""
    given = nl.connect(index=2, size=1 << 20, block=4096, flags=5, dead_timeout=600, backend="csnap v u", descriptor=9)
    found = nl.attributes(b"".join(given))
    assert nl.number(found, nl.TIMEOUT) == 0
    assert nl.number(found, nl.DEAD_TIMEOUT) == 600
    assert (nl.number(found, nl.INDEX), nl.number(found, nl.SIZE), nl.number(found, nl.BLOCK_SIZE)) == (
        2,
        1 << 20,
        4096,
    )
    assert nl.number(found, nl.SERVER_FLAGS) == 5
    assert found[nl.BACKEND] == b"csnap v u\0"
    items = nl.attributes(found[nl.SOCKETS])
    assert list(items) == [nl.SOCKET_ITEM]
    assert nl.number(nl.attributes(items[nl.SOCKET_ITEM]), nl.SOCKET_FD) == 9


def test_answers_errors_and_acknowledgements_are_told_apart() -> None:
    """One datagram may have several; an error is a negative errno, an acknowledgement is error 0."""
    answer = nl.request(27, nl.CONNECT, 1, 8, nl.u32(nl.INDEX, 3))
    error = struct.pack("=IHHIIi", 36, nl.ERROR, 0, 8, 0, -16) + bytes(16)
    good = struct.pack("=IHHIIi", 36, nl.ERROR, 0, 8, 0, 0) + bytes(16)
    first, second, third = nl.messages(answer + error + good)
    assert (first.type, first.sequence, first.command) == (27, 8, nl.CONNECT)
    assert nl.number(first.attributes, nl.INDEX) == 3
    assert (second.type, second.error, third.error) == (nl.ERROR, 16, 0)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("=IHHII", 200, 27, 0, 1, 0),  # longer than the datagram
        struct.pack("=IHHII", 3, 27, 0, 1, 0),  # shorter than itself
        struct.pack("=IHHII", 16, 27, 0, 1, 0),  # no generic header
        struct.pack("=IHHII", 18, nl.ERROR, 0, 1, 0) + b"xx",
        struct.pack("=IHHIIBBHHH", 24, 27, 0, 1, 0, 4, 1, 0, 99, 1),  # an attribute longer than the message
        struct.pack("=IHHIIBBHHH", 24, 27, 0, 1, 0, 4, 1, 0, 2, 1),
    ],
)
def test_lengths_that_make_no_sense_are_refused(data: bytes) -> None:
    """By name, whatever they say."""
    with pytest.raises(Refused, match="netlink"):
        list(nl.messages(data))


def test_a_missing_attribute_is_named() -> None:
    """Not taken for 0: index 0 is a device."""
    with pytest.raises(Refused, match="attribute 1 is missing"):
        nl.number({}, nl.INDEX)
