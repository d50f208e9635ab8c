"""Whatever stands in etcd: the records' parsers, and members in the midst of their work that come to see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snapd.daemon.admin import AdminServer, Command
from snapd.daemon.log import to_journal, to_stream
from snapd.errors import CsnapError, FormatError
from snapd.lockspace.etcd_values import key_str
from snapd.lockspace.keys import Keys
from snapd.lockspace.ports import WARNING
from snapd.lockspace.records import (
    MAX_VALUE,
    FormatRecord,
    MemberRecord,
    SnapshotRecord,
    TicketRecord,
    counter_value,
    parse_number,
)
from snapd.messages import EX, UNTRUSTED, Message, decode, encode
from tests.support import examples as _examples  # noqa: F401
from tests.support.lock_rig import STORE, TTL, UUID, LockRig
from tests.support.looped import Looped

REGION, OTHERS = "region/1", "region/7"
KINDS = (FormatRecord, MemberRecord, SnapshotRecord, TicketRecord)
PREFIX = f"/csnap/{UUID}/"
SOUND: dict[str, dict[str, object]] = {
    "format": {
        "protocol": 1,
        "origin_size": 1 << 30,
        "origin_identity": "wwn",
        "chunk_size": 16384,
        "region_size": 1 << 26,
    },
    "m/host-z": {
        "node": "host-z",
        "state": "active",
        "machine_id": "0" * 32,
        "boot_id": "b",
        "incarnation": "z-1",
        "lock_path": "/run/lock",
        "fence_key": "",
        "address": "",
        "by": "",
        "by_node": "",
    },
    "s/s9": {
        "name": "s9",
        "store": STORE,
        "path": "/dev/x",
        "identity": "wwn",
        "state": "creating",
        "writable": False,
        "generation": 1,
        "place": 1,
        "by": "z-1",
    },
    "q/region/7/host-z": {"mode": 2, "incarnation": "z-1"},
}


def dead_member(**changed: object) -> bytes:
    return json.dumps({**SOUND["m/host-z"], **changed}).encode()


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.lists(st.integers(), max_size=2),
    st.sampled_from([
        "\ud800", "\udcff", "\0", "a/b", "../m", "host-a", "host-b", "x" * 20000, "", "?", 1 << 63, 1 << 64, -1, 1e400,
        "fencing", "fenced", "active", "creating", "deleting", "invalid", "overflow", STORE, "/", "/" + "x" * 16000,
    ]),
)  # fmt: skip


@st.composite
def values(draw: st.DrawFn) -> bytes:
    """A record with one or two fields changed, another kind's record, JSON, digits, or bytes."""
    record: dict[str, Any] = dict(SOUND[draw(st.sampled_from(sorted(SOUND)))])
    match draw(st.integers(0, 7)):
        case 0:
            return draw(st.binary(max_size=40))
        case 1:
            return json.dumps(draw(ODD)).encode()
        case 2:
            return draw(st.sampled_from([b"", b"?", b"-1", b"01", b"9" * 19, b"9" * 5000, b"[" * 9000, b" ", b"1e3"]))
        case 3:
            record.pop(draw(st.sampled_from(sorted(record))))
        case 4:
            record[draw(st.text(max_size=5))] = draw(ODD)
        case 5:
            return json.dumps(record).encode() + b" " * draw(st.sampled_from([0, MAX_VALUE, 1 << 20]))
        case _:
            for _ in range(draw(st.integers(0, 2))):
                record[draw(st.sampled_from(sorted(record)))] = draw(ODD)
    return json.dumps(record).encode()


NAMES = st.sampled_from(
    ["host-z", "host-y", "host-a", "host-b", "s9", "", "x" * 300, "a b", "ü", key_str(b"\xff\xfe"), STORE, "\n"]
)


@st.composite
def suffixes(draw: st.DrawFn) -> str:
    """A key that csnap may look at; not those with which whoever writes them orders a host about."""
    first = draw(st.sampled_from(["m", "a", "c", "s", "v", "x", "o", "q", "h", "format", "zzz", ""]))
    name = draw(NAMES)
    if first in ("m", "a") and name in ("host-a", "host-b"):
        name = "host-z"
    match first:
        case "q":
            return f"q/{draw(st.sampled_from([OTHERS, f'tail/{STORE}', 'region/x', 'region/99999999999', '']))}/{name}"
        case "h":
            mode = draw(st.sampled_from(["EX", "CR", "PW", ""]))
            return f"h/{draw(st.sampled_from([OTHERS, 'region/-1', 'tail/x']))}/{mode}/{name}"
        case "x" | "o":
            return f"{first}/{draw(st.sampled_from([STORE, 'x', '']))}/{name}"
        case "format":
            return "format"
        case "":
            return name
    return f"{first}/{name}"


@settings(max_examples=400)
@given(st.sampled_from(KINDS), st.sampled_from(sorted(SOUND)), values())
def test_a_parser_refuses_by_key_or_makes_a_record_that_can_be_used(kind: type[Any], suffix: str, data: bytes) -> None:
    """FormatError that begins with the key; what is accepted is written back as it was, and every text is UTF-8."""
    key = PREFIX + suffix
    try:
        record = kind.from_bytes(key, data)
    except FormatError as error:
        assert str(error).startswith(f"{key}: ")
        return
    assert kind.from_bytes(key, record.to_bytes()) == record
    for value in json.loads(record.to_bytes()).values():
        assert not isinstance(value, str) or value.encode() or not value


@given(st.binary(max_size=25) | st.integers().map(lambda value: str(value).encode()))
def test_numbers_are_plain_digits(data: bytes) -> None:
    """A counter that makes no sense is not trusted; an extent that makes none is refused."""
    try:
        number = parse_number("k", data)
        assert str(number).encode() == data and counter_value("k", data) == number
    except FormatError:
        assert counter_value("k", data) == UNTRUSTED


@settings(max_examples=200)
@given(st.text(max_size=60) | suffixes())
def test_a_key_is_taken_apart_as_it_is_put_together(suffix: str) -> None:
    """Or is none of ours."""
    keys = Keys(UUID)
    found = keys.parse(PREFIX + suffix)
    if found is None:
        return
    again = {
        "m": lambda: keys.member(found.node),
        "a": lambda: keys.alive(found.node),
        "c": lambda: keys.creation(found.node),
        "s": lambda: keys.snapshot(found.name),
        "v": lambda: keys.counter(found.store),
        "x": lambda: keys.extent(found.store, found.node),
        "o": lambda: keys.opened(found.store, found.node),
        "q": lambda: keys.ticket(found.resource, found.node),
        "h": lambda: keys.hold(found.resource, found.mode, found.node),
        "format": lambda: keys.format,
    }[found.kind]
    assert again() == PREFIX + suffix
    assert keys.parse("/csnap/5b1c0e7e-6d0f-4c57-9a5e-000000000000/" + suffix) is None


def strict(rig: LockRig) -> None:
    """What a member says to its worker goes through the real encoding."""
    for host in rig.hosts.values():
        plain = host.send

        def send(message: Message, plain: Any = plain) -> None:
            plain(decode(encode(message)))

        host.send = send  # type: ignore[method-assign]


def still_work(rig: LockRig) -> None:
    """Both hosts are active, and a region goes from one to the other and back."""
    for host in (rig.a, rig.b, rig.a):
        assert host.failure is None and host.member.state == "active"
        host.want(REGION, EX)
        rig.until(lambda host=host: host.holds(REGION) == EX)


@settings(max_examples=80)
@given(st.lists(st.tuples(suffixes(), values()), min_size=1, max_size=6))
@example([("m/host-z", dead_member(state="fencing", by="\ud800", by_node="host-a"))])
@example([("m/host-z", dead_member(state="fencing", by="x", by_node="\ud800"))])
def test_running_members_go_on_whatever_is_put_beside_them(puts: list[tuple[str, bytes]]) -> None:
    """Any value under any key but the hosts' own: they stay active, locks change hands, questions are answered."""
    rig = LockRig("host-a", "host-b")
    strict(rig)
    rig.counter()
    for suffix, value in puts:
        rig.put(suffix, value)
    rig.run(2 * TTL + 1)
    still_work(rig)
    for host in (rig.a, rig.b):
        member = host.member
        asked = (member.snapshots(), member.locks(), member.members(), member.fence_keys(), member.fencing_waits())
        assert all(isinstance(answer, list | tuple | dict) for answer in asked)
        assert member.format is None or member.format.protocol == 1


@settings(max_examples=60)
@given(
    st.sampled_from(["m/host-a", "a/host-a", f"h/{REGION}/EX/host-a", "h/table/CR/host-a", "q/table/host-a"]), values()
)
def test_a_host_whose_own_keys_are_overwritten_ends_by_name_or_goes_on(suffix: str, value: bytes) -> None:
    """No other exception than a CsnapError that says why; the other host goes on."""
    rig = LockRig("host-a", "host-b")
    strict(rig)
    rig.a.want(REGION, EX)
    rig.settle()
    rig.put(suffix, value)
    rig.run(3 * TTL)
    assert rig.a.failure is None or isinstance(rig.a.failure, CsnapError)
    assert rig.b.failure is None and rig.b.member.state in ("active", "stalled")


def test_regression_two_records_that_make_no_sense_are_named_once_each() -> None:
    """The recovery remembered the last one only, so two of them filled the log with each change of anything."""
    rig = LockRig("host-a", "host-b")
    rig.put("m/host-y", b"{]")
    rig.put("m/host-z", b"[}")
    for _ in range(20):
        for host in (rig.a, rig.b):
            host.want(REGION, EX)
            rig.settle()
    assert len(rig.a.events("bad_record")) == 2


@pytest.mark.parametrize("text", ["\ud800", "\udcff"])
@pytest.mark.parametrize(("suffix", "field"), [("m/host-z", "by"), ("m/host-z", "by_node"), ("s/s9", "path")])
def test_regression_a_text_that_is_no_utf_8_is_refused(suffix: str, field: str, text: str) -> None:
    """JSON can say half a surrogate pair; whoever encodes it (a key, a file name, a metric) fails."""
    kind = MemberRecord if suffix.startswith("m") else SnapshotRecord
    data = json.dumps({**SOUND[suffix], field: f"/{text}"}).encode()
    with pytest.raises(FormatError, match=f"{field}.*: expected UTF-8"):
        kind.from_bytes(PREFIX + suffix, data)


@pytest.mark.parametrize("key", ["\udcff", "\ud800"])
def test_regression_a_key_that_is_no_utf_8_can_be_logged(key: str) -> None:
    """systemd's journal takes UTF-8 only: its refusal ended the thread that logs, and nothing was said from then on."""
    sent: list[bytes] = []

    def send(text: str, **values: object) -> None:
        sent.append(" ".join([text, *map(str, values.values())]).encode())

    to_journal(send, "host-a", "v1")(WARNING, "foreign_key", {"key": f"x/{key}"})
    stream = TextIOWrapper(BytesIO(), encoding="utf-8", errors="strict")
    to_stream(stream, "host-a")(WARNING, "foreign_key", {"key": f"x/{key}"})
    stream.seek(0)
    assert b"foreign_key" in sent[0] and "foreign_key" in stream.read()


def test_regression_a_lock_of_a_node_whose_name_is_no_utf_8_is_printed(tmp_path: Path) -> None:
    """``csnap locks`` ended in a traceback where standard output is strict about its encoding."""
    rows = [{"resource": "table", "node": "\udcff", "mode": "CR", "state": "held", "since_seconds": 1.0}]
    program = f"import sys; from snapd.cli import main; sys.exit(main.main(['locks', {str(tmp_path / 'c.toml')!r}]))"
    (tmp_path / "c.toml").write_text(
        f'[volume]\nname="v"\ncluster_uuid="{UUID}"\norigin="/x"\nchunk_size="4KiB"\n[node]\nname="a"\n'
        f'[lockspace]\nendpoints=["http://h:1"]\n[export]\ndirectory="{tmp_path}"\n[fencing]\nmethod="unsafe"\n'
    )
    with Looped() as looped:
        commands: dict[str, Command] = {"locks": lambda request, reply: reply.result(rows)}
        path = str(tmp_path / "admin.sock")
        admin = looped.call(lambda: AdminServer(looped.loop, path, commands, lambda fields: None))
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            timeout=60,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )
        looped.call(admin.close)
    assert done.returncode == 0 and b"\\udcff" in done.stdout, done.stderr


def test_regression_many_and_long_records_fit_a_grant() -> None:
    """Counters of no store are left out, texts longer than a path refused: a grant must fit one datagram."""
    rig = LockRig("host-a", "host-b")
    strict(rig)
    for index in range(8):
        record = {**SOUND["s/s9"], "name": f"s{index}", "state": "active", "by": "", "path": "/" + "x" * 15000}
        rig.put(f"s/s{index}", json.dumps({**record, "store": f"{index}{STORE[1:]}"}).encode())
        rig.put("v/" + str(index) * 16000, b"1")
    for index in range(1500):
        rig.counter(f"garbage-{index}")
    still_work(rig)
