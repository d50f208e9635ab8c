"""Members of different versions: who may join, when the protocol is raised, what 0.1.0 can read."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import pytest

from snapd import __version__
from snapd.errors import CsnapError, FormatError, LockspaceError, Refused
from snapd.lockspace.kv import Put, Txn
from snapd.lockspace.protocol import NEWEST, OLDEST, Speaks, check_spoken, in_force
from snapd.lockspace.records import FormatRecord, MemberRecord
from snapd.messages import EX, NL
from snapd.units import MIB
from tests.support.fake_etcd import NO_FAULT, Call, Fault
from tests.support.lock_rig import STARTED, TTL, Host, LockRig

FIRST = Speaks(1, 1, "")
"""What csnap 0.1.0 speaks, and does not say."""

FORMAT_1 = (
    b'{"chunk_size":16384,"origin_identity":"wwid:naa.1","origin_size":1073741824,"protocol":1,"region_size":67108864}'
)
MEMBER_1 = (
    b'{"address":"","boot_id":"boot-1","by":"","by_node":"","fence_key":"","incarnation":"host-b-1","lock_path":"/l",'
    b'"machine_id":"machine-host-b","node":"host-b","state":"active"}'
)
"""Written by csnap 0.1.0."""

MEMBER_FIELDS = set(json.loads(MEMBER_1))
"""What its parser takes: no field less, no field more."""


def record(rig: LockRig, node: str) -> dict[str, Any]:
    value = rig.key(f"m/{node}")
    assert value is not None
    found: dict[str, Any] = json.loads(value)
    return found


def in_force_now(rig: LockRig) -> int:
    return in_force("format", rig.key("format"))


def cluster(*speaks: Speaks) -> LockRig:
    """Hosts a, b, ... that speak this, in a volume of csnap 0.1.0."""
    rig = LockRig()
    rig.put("format", FORMAT_1)
    for letter, spoken in zip("abc", speaks, strict=False):
        rig.add(f"host-{letter}", speaks=spoken)
    rig.until(lambda: all(host.member.state == "active" for host in rig.hosts.values()))
    return rig


def upgrade(rig: LockRig, host: Host) -> int | CsnapError:
    """What a person is told who asks for it on this host."""
    outcomes: list[int | CsnapError] = []
    try:
        host.member.upgrade(outcomes.append)
    except CsnapError as error:
        return error
    rig.until(lambda: bool(outcomes))
    return outcomes[0]


def raises(call: Call) -> bool:
    """Whether this is the transaction that raises the protocol."""
    puts = call.request.success if isinstance(call.request, Txn) else ()
    return any(isinstance(put, Put) and put.key.endswith("/format") for put in puts)


def joins(call: Call, node: str) -> bool:
    puts = call.request.success if isinstance(call.request, Txn) else ()
    return any(isinstance(put, Put) and put.key.endswith(f"/m/{node}") for put in puts)


def test_what_the_first_csnap_wrote_is_read() -> None:
    """Its records are whole; who does not say what it speaks speaks 1; the volume's protocol is 1."""
    member = MemberRecord.from_bytes("m/host-b", MEMBER_1)
    assert (member.speaks, member.started) == (FIRST, 0)
    assert member.to_bytes() == MEMBER_1
    assert FormatRecord.from_bytes("format", FORMAT_1).to_bytes() == FORMAT_1
    assert in_force("format", FORMAT_1) == in_force("format", None) == 1


def test_the_first_csnap_can_read_what_it_is_given() -> None:
    """Under protocol 1 a member record has its fields exactly, and says all the same what its member speaks."""
    rig = cluster(Speaks(), FIRST)
    written = record(rig, "host-a")
    assert written.keys() == MEMBER_FIELDS
    assert all(type(value) is str for value in written.values())
    (row, other) = rig.b.member.members()
    assert (row.speaks, row.started) == (Speaks(OLDEST, NEWEST, __version__), 0)
    assert other.speaks == FIRST


def test_a_mixed_cluster_works() -> None:
    """During a roll locks pass from the old to the new and back, and either recovers the other."""
    rig = cluster(FIRST, Speaks())
    for host in (rig.a, rig.b, rig.a):
        host.want("region/1", EX)
        rig.until(lambda host=host: host.holds("region/1") == EX)  # type: ignore[misc]
    rig.a.kill()
    rig.b.want("region/1", EX)
    rig.until(lambda: rig.b.holds("region/1") == EX)
    rig.add("host-a", speaks=FIRST)
    rig.until(lambda: rig.a.member.state == "active")
    rig.b.kill()
    rig.a.want("region/1", EX)
    rig.until(lambda: rig.a.holds("region/1") == EX)
    assert rig.b.fenced is False


def test_members_of_the_first_csnap_that_died_are_recovered() -> None:
    """By their successor on the same host, and by others: the records that 0.1.0 left are good enough."""
    rig = LockRig()
    rig.put("format", FORMAT_1)
    rig.put("m/host-b", MEMBER_1)
    rig.put("h/region/1/EX/host-b", b"")
    rig.put("m/host-c", MEMBER_1.replace(b"host-b", b"host-c"))
    rig.put("h/region/2/EX/host-c", b"")
    rig.add("host-b", boot="boot-2")
    rig.until(lambda: rig.b.member.state == "active")
    assert rig.key("h/region/1/EX/host-b") is None
    rig.until(lambda: rig.key("m/host-c") is None)
    assert (rig.b.fencer.fenced, rig.key("h/region/2/EX/host-c")) == (["host-c"], None)


def test_the_protocol_is_raised_when_all_speak_it() -> None:
    """Until then it is refused, naming who does not; afterwards every record has what the new one has room for."""
    rig = cluster(FIRST, Speaks(), Speaks())
    said = upgrade(rig, rig.b)
    assert isinstance(said, Refused)
    assert "host-a has a csnap of 0.1, which speaks protocol 1, expected 2" in str(said)
    assert in_force_now(rig) == 1
    assert rig.a.stop() is not None
    rig.until(lambda: rig.key("m/host-a") is None)
    rig.add("host-a")
    rig.until(lambda: rig.a.member.state == "active")
    assert upgrade(rig, rig.b) == 2
    rig.settle()
    assert json.loads(rig.key("format") or b"") == {**json.loads(FORMAT_1), "protocol": 2}
    for host in rig.hosts.values():
        assert record(rig, host.node)["started"] == STARTED
        assert host.events("protocol_raised") == [{"protocol": 2, "was": 1}]
        assert host.member.protocol == 2
    assert [row.started for row in rig.a.member.members()] == [STARTED] * 3
    assert upgrade(rig, rig.c) == 2  # as high as it can be


def test_a_member_that_is_too_old_is_refused_by_name() -> None:
    """Who it is, what it speaks, what is wanted, what to do; and it has left nothing."""
    rig = cluster(Speaks())
    assert upgrade(rig, rig.a) == 2
    old = rig.add("host-b", speaks=Speaks(1, 1, "0.1.0"))
    rig.until(lambda: old.failure is not None)
    assert isinstance(old.failure, Refused)
    assert str(old.failure) == (
        "node host-b has csnap 0.1.0, which speaks protocol 1; protocol 2 is in force in this volume:"
        " install a csnap here that speaks 2"
    )
    assert not any("host-b" in key for key in rig.stored())


def test_a_member_that_is_too_new_is_refused_by_name() -> None:
    """It says which protocol the others must be raised to first."""
    rig = cluster(Speaks())
    new = rig.add("host-b", speaks=Speaks(2, 4, "0.9.0"))
    rig.until(lambda: new.failure is not None)
    assert str(new.failure) == (
        "node host-b has csnap 0.9.0, which speaks protocol 2 to 4; protocol 1 is in force in this volume: run csnap"
        " volume upgrade on a member until 2 is in force, or install an older csnap here"
    )


def test_the_first_csnap_refuses_a_volume_that_was_raised() -> None:
    """It knows the record's protocol 1 and no other: it ends before it joins. This one names a protocol it lacks."""
    with pytest.raises(FormatError, match=r"protocol 3 is in force, and this is csnap .* speaks protocol 1 to 2"):
        FormatRecord.from_bytes("format", b'{"protocol":3,"new":"field"}')
    for value in (b"", b"[]", b'{"protocol":"2"}', b'{"protocol":0}', b'{"protocol":true}'):
        with pytest.raises(FormatError, match="expected JSON, an object with a protocol"):
            in_force("format", value)


def test_a_member_that_joins_while_the_protocol_is_raised_fails_the_raise() -> None:
    """Its record was put after the others were judged: nothing is raised, and the next attempt names it."""
    rig = cluster(Speaks(), Speaks())
    rig.etcd.fault = lambda call: Fault(request_delay=50_000_000) if raises(call) else NO_FAULT
    outcomes: list[int | CsnapError] = []
    rig.a.member.upgrade(outcomes.append)
    rig.add("host-c", speaks=Speaks(1, 1, "0.1.9"))
    rig.until(lambda: bool(outcomes))
    assert "a member came or changed meanwhile" in str(outcomes[0])
    rig.until(lambda: rig.c.member.state == "active")
    assert "host-c has csnap 0.1.9" in str(upgrade(rig, rig.a))
    assert in_force_now(rig) == 1


def test_a_join_that_is_under_way_while_the_protocol_is_raised_fails() -> None:
    """It was decided under the old protocol: the member looks again, and is refused by name."""
    rig = cluster(Speaks(), Speaks())
    rig.etcd.fault = lambda call: Fault(request_delay=300_000_000) if joins(call, "host-c") else NO_FAULT
    old = rig.add("host-c", speaks=Speaks(1, 1, "0.1.9"))
    rig.run(0.1)
    assert upgrade(rig, rig.a) == 2
    assert rig.key("m/host-c") is None
    rig.until(lambda: old.failure is not None)
    assert "node host-c has csnap 0.1.9" in str(old.failure)
    assert rig.key("m/host-c") is None


def test_nothing_is_raised_while_somebody_is_recovered() -> None:
    """Whoever cleans up after itself comes back as what it is, not as what it was."""
    rig = cluster(Speaks(), Speaks())
    rig.a.fencer.at_once = False
    rig.b.kill()
    rig.until(lambda: rig.a.fencer.asked == ["host-b"])
    assert "host-b is being recovered (fencing)" in str(upgrade(rig, rig.a))
    rig.a.fencer.confirm()
    rig.until(lambda: "host-b" not in rig.a.member.mirror.members)
    assert upgrade(rig, rig.a) == 2


def test_a_raise_whose_answer_is_lost_is_asked_about() -> None:
    """It may have been applied: the status says what is in force."""
    rig = cluster(Speaks())
    rig.etcd.fault = lambda call: Fault(fail=True) if raises(call) else NO_FAULT
    assert isinstance(upgrade(rig, rig.a), LockspaceError)
    rig.etcd.fault = lambda call: NO_FAULT
    rig.settle()
    assert upgrade(rig, rig.a) == 2


def test_a_new_incarnation_speaks_for_itself_while_it_cleans_up() -> None:
    """The record that it takes over says what *it* speaks: a raise is not judged by what the older one spoke."""
    rig = cluster(Speaks(), Speaks())
    rig.b.want("region/1", EX)
    rig.settle()
    rig.b.kill()
    again = rig.add("host-b", boot="boot-2", speaks=Speaks(1, 1, "0.1.9"))
    rig.until(lambda: again.member.state == "active")
    assert "host-b has csnap 0.1.9" in str(upgrade(rig, rig.a))
    assert again.holds("region/1") == NL


def test_what_members_say_of_themselves_is_hostile_until_parsed() -> None:
    """A text that says nothing is protocol 1; one that says more than we know is read as far as we do."""
    assert Speaks.from_text(Speaks(3, 5, "1.2.3").to_text()) == Speaks(3, 5, "1.2.3")
    assert Speaks.from_text("csnap 2.0 protocol 4-9 and more") == Speaks(4, 9, "2.0")
    for text in ("", "10.0.0.1", "csnap 1 protocol 1", "csnap  protocol 1-2", "csnap 1 protocol 1-" + "9" * 10):
        assert Speaks.from_text(text) == FIRST
    check_spoken("host-a", Speaks(1, 2, "x"), 2)


def test_the_volume_keeps_its_sizes_when_it_is_raised() -> None:
    """Only the protocol changes, also of a record with fields that this csnap does not know."""
    record = FormatRecord(1, 4 * MIB, "file:1:2", 4096, 4 * MIB)
    rig = LockRig()
    rig.put("format", record.to_bytes())
    rig.add("host-a")
    rig.until(lambda: rig.a.member.state == "active")
    assert upgrade(rig, rig.a) == 2
    raised = FormatRecord.from_bytes("format", rig.key("format") or b"")
    assert (raised.protocol, raised.origin_size, raised.chunk_size) == (2, 4 * MIB, 4096)


class Roll:
    """Hosts that start, stop, die and come back as any version, while people raise the protocol; etcd loses answers."""

    NODES = ("host-a", "host-b", "host-c")

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.rig = LockRig()
        self.rig.put("format", FORMAT_1)
        self.rig.etcd.fault = self._fault
        self.speaks: dict[str, Speaks] = {}  # by incarnation
        self.raised = self.refused = 0

    def _fault(self, call: Call) -> Fault:
        decisive = raises(call) or any(joins(call, node) for node in self.NODES)
        if call.kind != "txn" or self.random.random() > (0.5 if decisive else 0.05):
            return NO_FAULT
        delay = self.random.randrange(400_000_000)
        slow = Fault(request_delay=delay)
        return self.random.choice((Fault(fail=True), slow, slow, Fault(response_delay=delay)))

    def step(self) -> None:
        node = self.random.choice(self.NODES)
        host = self.rig.hosts.get(node)
        if host is None or host.dead or host.failure is not None:
            newest = self.random.choice((2, 3, 4, 4, 4))
            spoken = Speaks(self.random.choice((1, 1, 1, 2)), newest, f"0.{newest}")
            host = self.rig.add(node, boot=f"boot-{self.random.random()}", speaks=spoken)
            self.speaks[host.settings.incarnation] = spoken
        elif self.random.random() < 0.2:
            host.kill()
        elif self.random.random() < 0.2:
            host.stop()
        else:
            self.ask()
        if self.random.random() < 0.5:
            self.ask()
        self.rig.run(self.random.choice((0.02, 0.05, 0.1, 0.2, 0.5, 3 * TTL)))
        self.check()

    def ask(self) -> None:
        """A person raises the protocol, on whatever host."""
        for host in self.rig.hosts.values():
            with contextlib.suppress(CsnapError):
                if not host.dead:
                    host.member.upgrade(lambda outcome: None)

    def check(self) -> None:
        """Whoever is a member speaks what is in force."""
        protocol = in_force_now(self.rig)
        self.raised = max(self.raised, protocol)
        self.refused += sum("is in force in this volume" in str(host.failure) for host in self.rig.hosts.values())
        for key, value in self.rig.stored().items():
            if key.startswith("m/"):
                record = MemberRecord.from_bytes(key, value)
                mine = record.by or record.incarnation
                if f"a/{record.node}" in self.rig.stored() and record.node == (record.by_node or record.node):
                    assert protocol in self.speaks[mine], (key, record, protocol)
                assert (record.started != 0) <= (protocol >= 2)


def test_rolls_at_random() -> None:
    """Nobody is ever a member under a protocol that it does not speak; protocols are raised, and hosts refused."""
    rolls = [Roll(seed) for seed in range(150)]
    for roll in rolls:
        for _ in range(12):
            roll.step()
    assert max(roll.raised for roll in rolls) == 4
    assert sum(roll.raised > 1 for roll in rolls) > 10
    assert sum(roll.refused > 0 for roll in rolls) > 10
