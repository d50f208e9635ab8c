"""The NBD transmission phase, as pure bytes: requests, replies, refusals, limits, and what hostile clients get."""

from __future__ import annotations

import struct
from errno import EINVAL, EIO, ENOSPC, EPERM

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapd import counters
from snapd.nbd import wire
from snapd.nbd.transmission import DEPTH
from snapd.nbd.wire import Drop
from snapd.units import KIB, MIB
from snapd.volume.request import FLUSH, READ, TRIM, WRITE, ZERO
from tests.support.nbd_peer import SIZE, Answer, Peer, request, write

DATA, STATUS = wire.REPLY_TYPE_OFFSET_DATA, wire.REPLY_TYPE_BLOCK_STATUS
ERROR = wire.REPLY_TYPE_ERROR
READ_C, WRITE_C, FLUSH_C, TRIM_C, ZERO_C = (
    wire.CMD_READ,
    wire.CMD_WRITE,
    wire.CMD_FLUSH,
    wire.CMD_TRIM,
    wire.CMD_WRITE_ZEROES,
)


def data_chunk(offset: int, data: bytes) -> bytes:
    return struct.pack(">Q", offset) + data


# ---- requests and their answers


def test_write_and_read() -> None:
    """A write is answered without data, a structured read with one chunk that carries its offset."""
    peer = Peer()
    assert peer.say(write(4096, b"w" * 1024, 1)) == [Answer(1)]
    assert peer.say(request(READ_C, 4096, 512, 2)) == [Answer(2, data=data_chunk(4096, b"w" * 512), kind=DATA)]
    assert peer.out_of_pool == 0


def test_simple_replies_without_structured_ones() -> None:
    """A client that did not ask for structured replies gets simple ones, also for errors."""
    peer = Peer(structured=False, allocation=0)
    peer.say(write(0, b"w" * 512, 1))
    assert peer.say(request(READ_C, 0, 1024, 2)) == [Answer(2, data=b"w" * 512 + bytes(512))]
    assert peer.say(request(READ_C, 1, 512, 3)) == [Answer(3, EINVAL)]
    assert peer.say(request(READ_C, 0, 512, 4, flags=wire.CMD_FLAG_DF)) == [Answer(4, EINVAL)]


def test_a_batch_of_requests_is_one_batch_of_answers() -> None:
    """Everything that has come is started in one go."""
    peer = Peer()
    said = b"".join(request(READ_C, index * 512, 512, index) for index in range(8))
    assert [answer.cookie for answer in peer.say(said)] == list(range(8))


def test_answers_go_out_in_the_order_of_completion() -> None:
    """Cookies tell them apart."""
    peer = Peer()
    peer.volume.hold = True
    assert peer.say(request(READ_C, 0, 512, 1) + request(READ_C, 512, 512, 2)) == []
    peer.volume.held.rotate()
    peer.volume.release()
    assert [answer.cookie for answer in peer.answers()] == [2, 1]


@pytest.mark.parametrize(
    ("kind", "flags", "operation", "fua"),
    [
        (FLUSH_C, 0, FLUSH, False),
        (TRIM_C, wire.CMD_FLAG_FUA, TRIM, True),
        (ZERO_C, wire.CMD_FLAG_NO_HOLE, ZERO, False),
        (ZERO_C, wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FUA, ZERO, True),
        (READ_C, wire.CMD_FLAG_DF, READ, False),
        (READ_C, wire.CMD_FLAG_FUA, READ, True),
    ],
)
def test_commands_and_their_flags(kind: int, flags: int, operation: int, fua: bool) -> None:
    """Each command reaches the volume as its operation, with FUA where the client said so."""
    peer = Peer()
    length = 0 if kind == FLUSH_C else 4096
    assert peer.say(request(kind, 0, length, 5, flags))[0].error == 0
    (asked,) = peer.requests
    assert (asked.operation, asked.length, asked.fua) == (operation, length, fua)


def test_fua_of_a_write_reaches_the_volume() -> None:
    """A write with FUA is not answered as one without."""
    peer = Peer()
    peer.say(write(0, b"w" * 512, 1, wire.CMD_FLAG_FUA))
    assert peer.requests[0].fua and peer.requests[0].operation == WRITE


def test_trim_and_zeroes_may_be_as_long_as_the_export() -> None:
    """Their length is not bounded by the maximum payload."""
    peer = Peer()
    assert peer.say(request(ZERO_C, 0, SIZE, 1) + request(TRIM_C, 0, SIZE, 2)) == [Answer(1), Answer(2)]


def test_block_status_is_one_allocated_extent() -> None:
    """Of whatever length was asked for: one descriptor, flags 0, with the context's id."""
    peer = Peer()
    for length, flags in ((SIZE, 0), (512, wire.CMD_FLAG_REQ_ONE), (777, 0)):
        (answer,) = peer.say(request(wire.CMD_BLOCK_STATUS, 0, length, 3, flags))
        assert answer == Answer(3, data=struct.pack(">III", 1, length, 0), kind=STATUS)
    assert peer.requests == []


def test_block_status_without_its_context_is_refused() -> None:
    """It was not negotiated."""
    assert Peer(allocation=0).say(request(wire.CMD_BLOCK_STATUS, 0, 512, 3))[0].error == EINVAL


def test_disc_ends_it_and_what_follows_is_not_read() -> None:
    """What was asked before is answered; DISC itself is not."""
    peer = Peer()
    answers = peer.say(request(READ_C, 0, 512, 1) + request(wire.CMD_DISC, 0, 0, 2) + write(0, b"x" * 512, 3))
    assert [answer.cookie for answer in answers] == [1] and peer.talk.ending
    assert [asked.operation for asked in peer.requests] == [READ]


def test_the_volumes_errors_are_translated_to_the_protocols() -> None:
    """EIO and ENOSPC as they are, EROFS as EPERM, what NBD has no word for as EIO."""
    peer = Peer()
    for error, told in ((5, EIO), (28, ENOSPC), (30, EPERM), (121, EIO), (108, 108)):
        peer.volume.fail[READ] = error
        assert peer.say(request(READ_C, 0, 512, 1)) == [Answer(1, told, kind=ERROR)]
    told_apart = {
        name: peer.words[counters.IO_ERRORS["origin", "read", name]] for name in ("EIO", "ENOSPC", "ESHUTDOWN")
    }
    assert told_apart == {"EIO": 1, "ENOSPC": 1, "ESHUTDOWN": 1}
    assert peer.words[counters.IO_ERRORS["origin", "read", counters.OTHER]] == 2
    assert peer.out_of_pool == 0


# ---- refusals


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (request(READ_C, 0, 0), EINVAL),
        (request(READ_C, 256, 512), EINVAL),
        (request(READ_C, 0, 100), EINVAL),
        (request(READ_C, SIZE, 512), EINVAL),
        (request(READ_C, SIZE - 512, 1024), EINVAL),
        (request(READ_C, (1 << 64) - 512, 1024), EINVAL),
        (request(READ_C, 0, 0xFFFFFE00), EINVAL),
        (request(READ_C, 0, 33 * MIB), EINVAL),
        (request(READ_C, 0, 512, flags=0x8000), EINVAL),
        (request(READ_C, 0, 512, flags=wire.CMD_FLAG_NO_HOLE), EINVAL),
        (write(SIZE, b"x" * 512), ENOSPC),
        (write(SIZE - 512, b"x" * 1024), ENOSPC),
        (write(100, b"x" * 512), EINVAL),
        (write(0, b""), EINVAL),
        (write(0, b"x" * 512, flags=wire.CMD_FLAG_DF), EINVAL),
        (request(ZERO_C, SIZE - 512, 1024), ENOSPC),
        (request(ZERO_C, 0, 1), EINVAL),
        (request(ZERO_C, 0, 512, flags=1 << 4), EINVAL),
        (request(TRIM_C, SIZE, 512), EINVAL),
        (request(TRIM_C, 0, 0), EINVAL),
        (request(FLUSH_C, 512, 0), EINVAL),
        (request(FLUSH_C, 0, 512), EINVAL),
        (request(wire.CMD_BLOCK_STATUS, 0, 0), EINVAL),
        (request(wire.CMD_BLOCK_STATUS, SIZE, 512), EINVAL),
        (request(5, 0, 512), EINVAL),
        (request(0xFFFF, 0, 0), EINVAL),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_done(said: bytes, error: int) -> None:
    """An error with the request's cookie; the volume is not asked; the next request is served."""
    peer = Peer()
    answers = peer.say(said + request(FLUSH_C, 0, 0, 9))
    assert answers == [Answer(0, error, kind=ERROR), Answer(9)]
    assert [asked.operation for asked in peer.requests] == [FLUSH]
    assert peer.out_of_pool == 0


@pytest.mark.parametrize("kind", [WRITE_C, TRIM_C, ZERO_C])
def test_a_read_only_export_takes_no_change(kind: int) -> None:
    """EPERM; a refused write's payload is skipped, not parsed."""
    peer = Peer("snapshot/s1")
    payload = request(READ_C, 0, 512, 66).ljust(512, b"!") if kind == WRITE_C else b""
    answers = peer.say(request(kind, 0, 512, 1) + payload + request(FLUSH_C, 0, 0, 2))
    assert answers == [Answer(1, EPERM, kind=ERROR), Answer(2)]


def test_the_minimum_block_is_the_exports() -> None:
    """With 4096 byte blocks 512 are refused, for reads and writes."""
    peer = Peer("snapshot/4k")
    assert [answer.error for answer in peer.say(request(READ_C, 512, 4096) + write(0, b"x" * 512))] == [EINVAL] * 2
    assert peer.say(write(4096, b"x" * 4096)) == [Answer(0)]


def test_an_endless_payload_ends_the_connection() -> None:
    """A WRITE beyond the maximum: its payload is not skipped for hours."""
    with pytest.raises(Drop, match="at most"):
        Peer().say(request(WRITE_C, 0, 32 * MIB + 512))


def test_a_wrong_magic_ends_the_connection() -> None:
    """There is no telling where the next request begins."""
    peer = Peer()
    with pytest.raises(Drop, match="request magic"):
        peer.say(request(READ_C, 0, 512, 1) + request(READ_C, 0, 512, 2, magic=0x25609514))


def test_a_refused_payload_is_skipped_as_it_comes() -> None:
    """In pieces, without being stored; it may contain what looks like requests."""
    peer = Peer("snapshot/s1")
    said = write(0, (request(READ_C, 0, 512, 77) * 300)[:8192], 1) + request(FLUSH_C, 0, 0, 2)
    answers = []
    for begin in range(0, len(said), 100):
        answers += peer.say(said[begin : begin + 100])
        assert len(peer.rest) < wire.REQUEST.size
    assert answers == [Answer(1, EPERM, kind=ERROR), Answer(2)]


# ---- limits


def test_depth() -> None:
    """DEPTH requests are started, the rest waits in its bytes; each answer lets one more in."""
    peer = Peer(small=2 * DEPTH)
    peer.volume.hold = True
    peer.say(b"".join(request(READ_C, 0, 512, index) for index in range(DEPTH + 3)))
    assert len(peer.requests) == DEPTH and peer.talk.depth and len(peer.rest) == 3 * wire.REQUEST.size
    peer.volume.release(1)
    assert peer.answers() and not peer.talk.depth
    peer.more()
    assert len(peer.requests) == DEPTH + 1 and peer.talk.depth


def test_no_memory() -> None:
    """A request that finds no slots says how much it needs, and is started when they are back."""
    peer = Peer(small=1, large=1)
    peer.volume.hold = True
    peer.say(request(READ_C, 0, 512, 1) + request(READ_C, 0, 512, 2) + request(READ_C, 0, 4096, 3))
    assert peer.talk.need == 4096 and len(peer.requests) == 2
    peer.volume.release()
    assert [answer.cookie for answer in peer.answers()] == [1, 2]
    peer.volume.hold = False
    assert [answer.cookie for answer in peer.more()] == [3] and peer.talk.need == 0


def test_a_payload_goes_straight_to_its_slots() -> None:
    """``room`` is where the rest of it belongs; the write starts with its last byte."""
    peer = Peer(large_size=64 * KIB, large=4)
    data = bytes(range(256)) * 640  # three slots
    assert peer.say(write(0, data, 1)[:1000]) == []
    sent = 1000 - wire.REQUEST.size
    assert sum(map(len, peer.talk.room)) == len(data) - sent
    while sent < len(data):
        view = peer.talk.room[0]
        count = min(len(view), 10_000)
        view[:count] = data[sent : sent + count]
        assert not peer.requests
        sent += count
        peer.talk.received(count)
    assert peer.answers() == [Answer(1)] and peer.volume.contents["origin"][: len(data)] == data


def test_a_client_that_leaves_in_the_middle_of_a_payload_wrote_nothing() -> None:
    """Its slots go back; the write never was."""
    peer = Peer()
    peer.say(write(0, b"x" * 4096, 1)[:2000])
    assert peer.out_of_pool == 1 and peer.talk.inflight == 1
    peer.talk.close()
    assert (peer.out_of_pool, peer.talk.inflight, peer.desk.inflight) == (0, 0, 0)
    assert not peer.requests


def test_buffers_of_a_client_that_left_are_freed_only_when_their_io_is_done() -> None:
    """A device may still write into them: they go back with the completion, and nothing is answered."""
    peer = Peer()
    peer.volume.hold = True
    peer.say(request(READ_C, 0, 512, 1) + write(0, b"x" * 512, 2))
    peer.talk.close()
    assert peer.out_of_pool == 2 and peer.desk.inflight == 2
    peer.volume.release()
    assert peer.out_of_pool == 0 and peer.desk.inflight == 0 and peer.talk.out == []


def test_the_oldest_request_is_known() -> None:
    """For the metric that shows a hang; also with many younger ones answered behind it."""
    peer = Peer(small=64)
    peer.volume.hold = True
    peer.say(request(READ_C, 0, 512, 1))
    assert peer.desk.lots.oldest() == 1000
    peer.now = 2000
    for _ in range(3000):
        peer.say(request(READ_C, 0, 512, 2))
        peer.volume.held.rotate()
        peer.volume.release(1)
        peer.answers()
        peer.desk.lots.settle(peer.now)
    assert peer.desk.lots.oldest() == 1000
    peer.volume.release()
    peer.desk.lots.settle(peer.now)
    assert peer.desk.lots.oldest() == 0 and not peer.desk.lots.order


def test_byte_by_byte_it_comes_to_the_same() -> None:
    """Where the network cuts does not matter."""
    said = (
        write(512, b"a" * 1024, 1)
        + request(READ_C, 0, 2048, 2)
        + write(SIZE, b"b" * 512, 3)
        + request(wire.CMD_BLOCK_STATUS, 0, SIZE, 4)
        + request(ZERO_C, 512, 512, 5, wire.CMD_FLAG_FUA)
        + request(READ_C, 0, 2048, 6)
        + request(wire.CMD_DISC, 0, 0, 7)
    )
    whole, pieces = Peer(), Peer()
    at_once = whole.say(said)
    one_by_one = [answer for index in range(len(said)) for answer in pieces.say(said[index : index + 1])]
    assert one_by_one == at_once and len(at_once) == 6
    assert pieces.volume.contents == whole.volume.contents and pieces.talk.ending


# ---- fuzz

_requests = st.one_of(
    st.builds(
        request,
        st.sampled_from([0, 2, 3, 4, 5, 6, 7, 8, 0xFFFF]),
        st.one_of(st.integers(0, SIZE // 512).map(lambda block: block * 512), st.integers(0, (1 << 64) - 1)),
        st.one_of(st.integers(0, 200).map(lambda blocks: blocks * 512), st.integers(0, 0xFFFFFFFF)),
        st.integers(0, 1 << 60),
        st.one_of(st.sampled_from([0, 1, 2, 4, 8]), st.integers(0, 0xFFFF)),
    ),
    st.builds(
        write,
        st.integers(0, SIZE // 512 + 2).map(lambda block: block * 512),
        st.integers(0, 40).map(lambda blocks: b"\x25\x60\x95\x13" * 128 * blocks),
        st.integers(0, 1 << 60),
        st.sampled_from([0, 0, 1, 4]),
    ),
    st.binary(max_size=40),
)


@settings(max_examples=150, deadline=None)
@given(
    export=st.sampled_from(["origin", "snapshot/s1", "snapshot/4k"]),
    said=st.lists(_requests, max_size=20),
    cuts=st.lists(st.integers(1, 5000), min_size=1, max_size=20),
    hold=st.booleans(),
)
def test_fuzz(export: str, said: list[bytes], cuts: list[int], hold: bool) -> None:
    """Whatever comes, however it is cut: answers that can be read or Drop; every slot comes back; nothing piles up."""
    peer = Peer(export)
    data = b"".join(said)
    answers: list[Answer] = []
    turn = 0
    try:
        while data and not peer.talk.ending:
            count = cuts[turn % len(cuts)]
            peer.volume.hold = hold and turn % 3 > 0
            turn += 1
            piece, data = data[:count], data[count:]
            answers += peer.say(piece)
            while peer.talk.need:
                peer.volume.release()
                answers += peer.more()
            assert len(peer.rest) < wire.REQUEST.size or peer.talk.depth or peer.talk.ending
    except Drop:
        pass
    peer.talk.close()
    peer.volume.release()
    assert peer.out_of_pool == 0 and peer.desk.inflight == 0
    if export == "snapshot/s1":
        assert not any(peer.volume.contents[export])
