"""The NBD negotiation, as pure bytes: fixed newstyle and every option, and what hostile clients get."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapd.nbd import wire
from snapd.nbd.handshake import GREETING, MAX_OPTION, MAX_OPTIONS, MAX_SKIPPED, Handshake
from snapd.nbd.wire import Drop
from tests.support.nbd_peer import (
    FIXED,
    NO_ZEROES,
    SIZE,
    OptionReply,
    contexts,
    exports,
    info,
    negotiation,
    option,
    option_replies,
    string,
)
from tests.support.ram_volume import RamExport

READ_WRITE = (
    wire.HAS_FLAGS | wire.SEND_FLUSH | wire.SEND_FUA | wire.SEND_TRIM | wire.SEND_WRITE_ZEROES | wire.CAN_MULTI_CONN
)
READ_ONLY = wire.HAS_FLAGS | wire.SEND_FLUSH | wire.SEND_FUA | wire.READ_ONLY | wire.CAN_MULTI_CONN


def ask(handshake: Handshake, kind: int, body: bytes = b"") -> list[OptionReply]:
    return option_replies(handshake.receive(option(kind, body)))


def kinds(replies: list[OptionReply]) -> list[int]:
    return [reply.kind for reply in replies]


# ---- what clients do


def test_the_greeting_is_fixed_newstyle_without_zeroes() -> None:
    """Byte for byte as the protocol's document has it."""
    assert GREETING == b"NBDMAGICIHAVEOPT\x00\x03"


def test_list_names_every_export_with_its_description() -> None:
    """One SERVER reply each, then ACK; the client goes on negotiating."""
    handshake = negotiation()
    replies = ask(handshake, wire.OPT_LIST)
    assert kinds(replies) == [wire.REP_SERVER] * 3 + [wire.REP_ACK]
    assert replies[1].body == string("snapshot/s1") + b"snapshot s1, active"
    assert handshake.opened is None and not handshake.finished


def test_list_sees_the_exports_of_the_moment() -> None:
    """A snapshot that was taken after the client came is listed."""
    listed = exports()[:1]
    handshake = negotiation(listed=listed)
    assert len(ask(handshake, wire.OPT_LIST)) == 2
    listed.append(RamExport("snapshot/new", SIZE))
    assert len(ask(handshake, wire.OPT_LIST)) == 3


@pytest.mark.parametrize(("name", "flags"), [("origin", READ_WRITE), ("snapshot/s1", READ_ONLY)])
def test_go_opens_the_export(name: str, flags: int) -> None:
    """Size, flags and block sizes are told, also unasked; trim and write zeroes are offered where writing is."""
    handshake = negotiation()
    export, block, ack = ask(handshake, wire.OPT_GO, info(name))
    assert export.body == struct.pack(">HQH", wire.INFO_EXPORT, SIZE, flags)
    assert block.body == struct.pack(">HIII", wire.INFO_BLOCK_SIZE, 512, 16384, 32 << 20)
    assert ack.kind == wire.REP_ACK
    assert handshake.opened is not None and handshake.opened.export.name == name
    assert not handshake.opened.structured and handshake.opened.allocation == 0


def test_info_opens_nothing() -> None:
    """INFO tells the same as GO, names and descriptions if asked, and the negotiation goes on."""
    handshake = negotiation()
    replies = ask(handshake, wire.OPT_INFO, info("snapshot/4k", wire.INFO_NAME, wire.INFO_DESCRIPTION, 77))
    bodies = [reply.body for reply in replies]
    assert struct.pack(">HIII", wire.INFO_BLOCK_SIZE, 4096, 16384, 32 << 20) in bodies
    assert b"\x00\x01snapshot/4k" in bodies and b"\x00\x02snapshot 4k, active" in bodies
    assert kinds(replies)[-1] == wire.REP_ACK and handshake.opened is None


def test_the_empty_name_is_the_origin() -> None:
    """The default export, for GO, EXPORT_NAME and the metadata contexts alike."""
    handshake = negotiation()
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    ask(handshake, wire.OPT_SET_META_CONTEXT, contexts("", "base:allocation"))
    ask(handshake, wire.OPT_GO, info("origin"))
    assert handshake.opened is not None and handshake.opened.allocation == 1


def test_an_export_that_is_not_there_is_refused_and_the_client_may_try_another() -> None:
    """ERR_UNKNOWN for INFO, GO and the contexts."""
    handshake = negotiation()
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    for kind, body in (
        (wire.OPT_INFO, info("nobody")),
        (wire.OPT_GO, info("nobody")),
        (wire.OPT_SET_META_CONTEXT, contexts("nobody", "base:allocation")),
    ):
        assert kinds(ask(handshake, kind, body)) == [wire.REP_ERR_UNKNOWN]
    assert kinds(ask(handshake, wire.OPT_GO, info("origin")))[-1] == wire.REP_ACK


@pytest.mark.parametrize("flags", [FIXED | NO_ZEROES, FIXED, 0])
def test_export_name(flags: int) -> None:
    """The old option: size and flags, then 124 zeroes unless the client said it can do without."""
    handshake = negotiation(flags)
    answer = handshake.receive(option(wire.OPT_EXPORT_NAME, b"origin"))
    assert answer == struct.pack(">QH", SIZE, READ_WRITE) + (b"" if flags & NO_ZEROES else bytes(124))
    assert handshake.opened is not None


def test_export_name_of_nothing_ends_the_connection() -> None:
    """This option has no error reply."""
    with pytest.raises(Drop, match="there is none"):
        negotiation().receive(option(wire.OPT_EXPORT_NAME, b"nobody"))


def test_abort_is_acknowledged() -> None:
    """The client leaves in order; what it sends behind is not looked at."""
    handshake = negotiation()
    replies = option_replies(handshake.receive(option(wire.OPT_ABORT) + b"garbage" * 10))
    assert kinds(replies) == [wire.REP_ACK]
    assert handshake.finished and handshake.opened is None


def test_structured_replies_add_the_df_flag() -> None:
    """DF makes sense for structured replies only."""
    handshake = negotiation()
    assert kinds(ask(handshake, wire.OPT_STRUCTURED_REPLY)) == [wire.REP_ACK]
    export = ask(handshake, wire.OPT_GO, info("origin"))[0]
    assert struct.unpack(">HQH", export.body)[2] == READ_WRITE | wire.SEND_DF
    assert handshake.opened is not None and handshake.opened.structured


@pytest.mark.parametrize("queries", [[], ["base:"], ["base:allocation"], ["qemu:x", "base:allocation"]])
def test_list_meta_contexts(queries: list[str]) -> None:
    """LIST answers all, a namespace or a name, and selects nothing."""
    handshake = negotiation()
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    context, ack = ask(handshake, wire.OPT_LIST_META_CONTEXT, contexts("origin", *queries))
    assert context.body[4:] == b"base:allocation" and ack.kind == wire.REP_ACK
    ask(handshake, wire.OPT_GO, info("origin"))
    assert handshake.opened is not None and handshake.opened.allocation == 0


@pytest.mark.parametrize("queries", [[], ["base:"], ["qemu:dirty-bitmap:b"]])
def test_setting_no_known_context_selects_none(queries: list[str]) -> None:
    """SET wants exact names; an empty list, a namespace or a foreign name select nothing."""
    handshake = negotiation()
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    assert kinds(ask(handshake, wire.OPT_SET_META_CONTEXT, contexts("origin", *queries))) == [wire.REP_ACK]


def test_a_later_set_replaces_the_earlier_one_also_when_it_fails() -> None:
    """What was selected before is gone, whatever becomes of the second SET."""
    for body in (contexts("origin"), contexts("nobody", "base:allocation"), b"\xff"):
        handshake = negotiation()
        ask(handshake, wire.OPT_STRUCTURED_REPLY)
        ask(handshake, wire.OPT_SET_META_CONTEXT, contexts("origin", "base:allocation"))
        ask(handshake, wire.OPT_SET_META_CONTEXT, body)
        ask(handshake, wire.OPT_GO, info("origin"))
        assert handshake.opened is not None and handshake.opened.allocation == 0


def test_a_context_is_for_the_export_it_was_asked_for() -> None:
    """Another export is opened without it."""
    handshake = negotiation()
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    ask(handshake, wire.OPT_SET_META_CONTEXT, contexts("snapshot/s1", "base:allocation"))
    ask(handshake, wire.OPT_GO, info("origin"))
    assert handshake.opened is not None and handshake.opened.allocation == 0


def test_contexts_need_structured_replies() -> None:
    """ERR_INVALID before them."""
    for kind in (wire.OPT_LIST_META_CONTEXT, wire.OPT_SET_META_CONTEXT):
        assert kinds(ask(negotiation(), kind, contexts("origin", "base:allocation"))) == [wire.REP_ERR_INVALID]


def test_requests_sent_behind_go_are_kept() -> None:
    """A client may pipeline its first requests: they are what is left over."""
    handshake = negotiation()
    handshake.receive(option(wire.OPT_GO, info("origin")) + b"requests")
    assert handshake.rest == b"requests"


# ---- what breaks or attacks


def test_unknown_options_are_refused_one_by_one() -> None:
    """STARTTLS and options of the future: ERR_UNSUP, whatever their data; what comes behind is parsed anew."""
    handshake = negotiation()
    for kind in (wire.OPT_STARTTLS, 4, 11, 0, 0xFFFFFFFF):
        assert ask(handshake, kind, b"some data")[0].kind == wire.REP_ERR_UNSUP
    injected = option_replies(handshake.receive(option(wire.OPT_STARTTLS) + option(wire.OPT_LIST)))
    assert kinds(injected) == [wire.REP_ERR_UNSUP] + [wire.REP_SERVER] * 3 + [wire.REP_ACK]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (wire.OPT_LIST, b"x"),
        (wire.OPT_STRUCTURED_REPLY, b"x"),
        (wire.OPT_GO, b""),
        (wire.OPT_GO, struct.pack(">I", 0xFFFFFFFF)),
        (wire.OPT_GO, struct.pack(">I", 7) + b"origin"),
        (wire.OPT_GO, string("origin")),
        (wire.OPT_GO, string("origin") + b"\x00\x02\x00\x00"),
        (wire.OPT_GO, string("origin") + b"\xff\xff"),
        (wire.OPT_GO, info("origin") + b"more"),
        (wire.OPT_GO, string(b"\xff\xfe") + b"\0\0"),
        (wire.OPT_GO, info("x" * 4097)),
        (wire.OPT_INFO, b"\0\0\0"),
        (wire.OPT_SET_META_CONTEXT, string("origin") + struct.pack(">I", 0xFFFFFFFF)),
        (wire.OPT_SET_META_CONTEXT, string("origin") + struct.pack(">I", 2) + string("base:allocation")),
        (wire.OPT_SET_META_CONTEXT, contexts("origin", "base:allocation") + b"more"),
    ],
)
def test_an_option_whose_inside_is_wrong_is_refused(kind: int, body: bytes) -> None:
    """Lengths inside are held against the option's own: ERR_INVALID, and the negotiation goes on."""
    handshake = negotiation()
    ask(handshake, wire.OPT_STRUCTURED_REPLY)
    assert kinds(ask(handshake, kind, body)) == [wire.REP_ERR_INVALID]
    assert handshake.opened is None
    assert kinds(ask(handshake, wire.OPT_ABORT)) == [wire.REP_ACK]


def test_an_option_that_is_too_long_is_skipped_and_refused() -> None:
    """Its data is thrown away as it comes: none of it is kept."""
    handshake = negotiation()
    data = option(wire.OPT_GO, bytes(MAX_SKIPPED))
    answer = b""
    for begin in range(0, len(data), 1000):
        assert answer == b""
        answer += handshake.receive(data[begin : begin + 1000])
        assert len(handshake._buffer) <= wire.OPTION.size
    assert kinds(option_replies(answer)) == [wire.REP_ERR_TOO_BIG]
    assert kinds(ask(handshake, wire.OPT_LIST))[-1] == wire.REP_ACK


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_GO, 0xFFFFFFFF), "option 7: 4294967295 bytes"),
        (wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_GO, MAX_SKIPPED + 1), "bytes"),
        (wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_EXPORT_NAME, 0xFFFFFFFF), "option 1"),
        (wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_EXPORT_NAME, wire.MAX_STRING + 1), "option 1"),
        (option(wire.OPT_EXPORT_NAME, b"\xff\xff"), "not UTF-8"),
        (bytes(16), "option magic 0x0"),
        (b"GET / HTTP/1.1\r\n", "option magic"),
    ],
)
def test_without_common_ground_the_connection_ends(data: bytes, what: str) -> None:
    """A length of 0xffffffff, a name that has no refusal, a wrong magic: Drop, before any of it is stored."""
    with pytest.raises(Drop, match=what):
        negotiation().receive(data)


def test_client_flags_that_nobody_offered_end_the_connection() -> None:
    """The document says MUST."""
    for flags in (4, 0x80000000, 0xFFFFFFFF):
        with pytest.raises(Drop, match="unknown"):
            Handshake(exports).receive(wire.CLIENT_FLAGS.pack(flags))


def test_a_client_that_is_not_fixed_newstyle_may_only_name_an_export() -> None:
    """It could not read the answer to anything else."""
    with pytest.raises(Drop, match="not fixed newstyle"):
        negotiation(0).receive(option(wire.OPT_LIST))


def test_a_client_that_negotiates_for_ever_is_ended() -> None:
    """The number of options is bounded."""
    handshake = negotiation()
    for _ in range(MAX_OPTIONS):
        ask(handshake, wire.OPT_STRUCTURED_REPLY)
    with pytest.raises(Drop, match="options"):
        ask(handshake, wire.OPT_STRUCTURED_REPLY)


def test_byte_by_byte_it_comes_to_the_same() -> None:
    """Where the network cuts does not matter."""
    said = (
        wire.CLIENT_FLAGS.pack(3)
        + option(wire.OPT_STRUCTURED_REPLY)
        + option(wire.OPT_LIST)
        + option(wire.OPT_SET_META_CONTEXT, contexts("snapshot/s1", "base:allocation"))
        + option(wire.OPT_GO, bytes(MAX_OPTION + 1))
        + option(wire.OPT_GO, info("snapshot/s1"))
    )
    whole, pieces = Handshake(exports), Handshake(exports)
    at_once = whole.receive(said)
    assert b"".join(pieces.receive(said[index : index + 1]) for index in range(len(said))) == at_once
    assert whole.opened is not None and pieces.opened is not None
    assert (pieces.opened.export.name, pieces.opened.allocation) == ("snapshot/s1", 1)


# ---- fuzz

_options = st.one_of(
    st.builds(
        lambda kind, body: option(kind, body),
        st.sampled_from([0, *range(1, 12), 99, 0xFFFFFFFF]),
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([info("origin"), info("nobody", 1, 2), contexts("origin", "base:allocation")]),
        ),
    ),
    st.builds(lambda kind, length: wire.OPTION.pack(wire.OPTION_MAGIC, kind, length), st.integers(0, 12),
              st.integers(0, 0xFFFFFFFF)),
    st.binary(max_size=60),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    flags=st.sampled_from([0, 1, 2, 3, 3, 3, 3, 7]),
    said=st.lists(_options, max_size=12),
    cuts=st.lists(st.integers(1, 50), min_size=1, max_size=20),
)
def test_fuzz(flags: int, said: list[bytes], cuts: list[int]) -> None:
    """Whatever comes, however it is cut: replies that can be read or Drop, and a bounded buffer."""
    handshake = Handshake(exports)
    data = wire.CLIENT_FLAGS.pack(flags) + b"".join(said)
    answers = b""
    turn = 0
    try:
        while data and handshake.opened is None and not handshake.finished:
            count = cuts[turn % len(cuts)]
            turn += 1
            piece, data = data[:count], data[count:]
            answers += handshake.receive(piece)
            assert len(handshake._buffer) <= MAX_OPTION + wire.OPTION.size + 50
    except Drop:
        return
    if not any(part.startswith(option(wire.OPT_EXPORT_NAME)[:12]) for part in said):
        option_replies(answers)
