"""What the daemon does between its parts: opening the volume, creating and deleting snapshots, reporting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapd import config as configuration
from snapd.cluster.cluster import Finished, NewSnapshot
from snapd.cluster.volume import check_origin, check_type, new_format, same_hardware
from snapd.config import Config
from snapd.daemon import host, status
from snapd.daemon.loop import Loop
from snapd.daemon.opening import Opening
from snapd.daemon.snapshots import SnapshotCommands, Wanted
from snapd.errors import CsnapError, LockspaceError, Refused
from snapd.exstore.image import Image
from snapd.format.header import Header
from snapd.format.sidecar import Sidecar
from snapd.lockspace.kv import Failure, KeyValue, RangeResult, Status
from snapd.lockspace.records import FormatRecord
from snapd.messages import Hello
from snapd.units import GIB, KIB, MIB, SECOND
from tests.support.virtual_time import Scheduler
from tests.unit.test_config import GOOD

HELLO = Hello(1, 8 * MIB, 512, "file:1:2")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "vmstore.toml"
    path.write_text(GOOD)
    return configuration.load(path)


# ---- the format record


def test_the_record_is_compared_with_this_hosts_origin(config: Config) -> None:
    """Another size, chunk size, region size or device is refused, naming both values."""
    volume = config.volume
    record = new_format(volume, 8 * MIB, "wwid:naa.1")
    check_origin(volume, record, 8 * MIB, "wwid:naa.1")
    with pytest.raises(Refused, match="origin size 4194304, but the volume was initialized with 8388608"):
        check_origin(volume, record, 4 * MIB, "wwid:naa.1")
    with pytest.raises(Refused, match=r"another device: is wwid:naa\.2"):
        check_origin(volume, record, 8 * MIB, "wwid:naa.2")
    other = FormatRecord(1, 8 * MIB, "wwid:naa.1", 32 * KIB, record.region_size)
    with pytest.raises(Refused, match="chunk_size 16384, but"):
        check_origin(volume, other, 8 * MIB, "wwid:naa.1")


def test_identities_that_only_one_host_knows_are_compared_by_kind() -> None:
    """A file has other numbers on another host; hardware has not, and is not a file."""
    assert same_hardware("file:1:2", "file:3:4")
    assert not same_hardware("wwid:a", "wwid:b")
    assert not same_hardware("file:1:2", "wwid:a")


def test_a_region_size_is_chosen_once(tmp_path: Path) -> None:
    """64 MiB, or more for a large origin: at most 16,384 regions."""
    path = tmp_path / "v.toml"
    path.write_text(GOOD.replace('region_size = "64MiB"', ""))
    volume = configuration.load(path).volume
    assert new_format(volume, 8 * MIB, "file:1:2").region_size == 64 * MIB
    assert new_format(volume, 4096 * GIB, "file:1:2").region_size == 256 * MIB


@pytest.mark.parametrize("name", ["clusterized_transient", "transient", "persistent", "nonsense", "clusterized_x"])
def test_only_store_types_for_several_hosts_serve(name: str) -> None:
    """Everything else is refused by name."""
    check_type("clusterized_persistent")
    with pytest.raises(Refused, match=name):
        check_type(name)


# ---- opening


class Etcd:
    """Answers what the test says, in virtual time."""

    def __init__(self, timers: Scheduler) -> None:
        self._timers = timers
        self.version: Status | Failure = Status("3.5.23", 1, ())
        self.format: bytes | Failure = b""

    def status(self, timeout: int, done: Callable[[Any], None]) -> None:
        self._timers.call_soon(lambda: done(self.version))

    def range(self, request: object, timeout: int, done: Callable[[Any, int], None]) -> None:
        if isinstance(self.format, Failure):
            answer: object = self.format
        else:
            answer = RangeResult((KeyValue("k", self.format, 1, 1),) if self.format else ())
        self._timers.call_soon(lambda: done(answer, 1))


class Scene:
    """An Opening over a played etcd."""

    def __init__(self, config: Config) -> None:
        self.timers = Scheduler()
        self.etcd = Etcd(self.timers)
        self.etcd.format = new_format(config.volume, HELLO.origin_size, "file:9:9").to_bytes()
        self.logged: list[str] = []
        self.waits: list[str] = []
        self.outcome: list[FormatRecord | CsnapError] = []
        self.opening = Opening(
            config,
            HELLO,
            self.etcd,  # type: ignore[arg-type]
            self.timers,
            lambda priority, event, fields: self.logged.append(event),
            self.waits.append,
            self.outcome.append,
        )
        self.opening.begin()

    def finish(self) -> FormatRecord | CsnapError:
        self.timers.run_until(lambda: bool(self.outcome))
        (outcome,) = self.outcome
        return outcome


def test_a_volume_is_opened(config: Config) -> None:
    """A sound etcd, a record that fits: done, without a warning."""
    scene = Scene(config)
    assert isinstance(scene.finish(), FormatRecord)
    assert scene.opening.warning == ""


def test_an_etcd_that_does_not_answer_is_waited_for(config: Config) -> None:
    """As long as it takes, whatever fails; said once in thirty seconds, and shown all the time."""
    scene = Scene(config)
    scene.etcd.version = Failure("etcd x: unavailable", False)
    scene.timers.run_for(20 * SECOND)
    assert scene.logged == ["waiting_for_etcd"]
    assert scene.waits[-1] == "etcd x: unavailable"
    scene.etcd.version = Status("3.5.23", 1, ())
    scene.etcd.format = Failure("timeout", False)
    scene.timers.run_for(20 * SECOND)
    assert not scene.outcome
    scene.etcd.format = new_format(config.volume, HELLO.origin_size, "file:9:9").to_bytes()
    assert isinstance(scene.finish(), FormatRecord)


@pytest.mark.parametrize(
    ("version", "record", "says"),
    [
        ("3.4.23", None, "allow_old_etcd"),
        ("3.5.23", b"", "run csnap volume init"),
        ("3.5.23", b"nonsense", "expected JSON"),
        ("3.5.23", FormatRecord(1, 4 * MIB, "file:1:2", 16 * KIB, 64 * MIB).to_bytes(), "origin size"),
    ],
)
def test_what_a_person_must_put_right_is_refused(config: Config, version: str, record: bytes | None, says: str) -> None:
    """An old etcd, no record, a record that makes no sense, another origin: waiting would help none of them."""
    scene = Scene(config)
    scene.etcd.version = Status(version, 1, ())
    if record is not None:
        scene.etcd.format = record
    outcome = scene.finish()
    assert isinstance(outcome, Refused)
    assert says in str(outcome)


# ---- snapshots


class FakeMember:
    state = "active"


class FakeCluster:
    """Takes and deletes what it is told to; ``refusal`` is what it answers."""

    def __init__(self, member: FakeMember) -> None:
        self.member = member
        self.refusal: CsnapError | None = None
        self.taken: list[NewSnapshot] = []
        self.pending: list[Finished] = []
        self.slow = False
        self.reserved = False

    def reserve(self, name: str, identity: str, done: Finished) -> None:
        self.reserved = name != "used"
        done(None if self.reserved else Refused("snapshot used: exists already"))

    def abandon(self) -> None:
        self.reserved = False

    def take(self, snapshot: NewSnapshot, done: Finished) -> None:
        self.taken.append(snapshot)
        self._answer(done)

    def may_delete(self) -> bool:
        return self.member.state == "active"

    def delete(self, name: str, done: Finished) -> None:
        self._answer(done)

    def _answer(self, done: Finished) -> None:
        if self.slow:
            self.pending.append(done)
        else:
            done(self.refusal)


class FakeReply:
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.value: Any = None

    def progress(self, text: str) -> None:
        self.steps.append(text)

    def result(self, value: Any) -> None:
        self.value = value

    def error(self, error: CsnapError) -> None:
        self.value = error


class Desk:
    """SnapshotCommands over a fake cluster and a real file as COW device."""

    def __init__(self, config: Config, directory: Path) -> None:
        self.loop = Loop()
        self.member = FakeMember()
        self.cluster = FakeCluster(self.member)
        self.cow = directory / "cow"
        with open(self.cow, "wb") as file:
            file.truncate(4 * MIB)
        self.commands = SnapshotCommands(
            self.loop,
            lambda priority, event, fields: None,
            config.volume,
            HELLO,
            self.member,  # type: ignore[arg-type]
            self.cluster,  # type: ignore[arg-type]
        )

    def create(self, name: str = "s1", **fields: Any) -> FakeReply:
        reply = FakeReply()
        self.commands.create({"name": name, "cow": str(self.cow), **fields}, reply)  # type: ignore[arg-type]
        return reply

    def finish(self, reply: FakeReply) -> Any:
        end = self.loop.now() + 20 * SECOND
        while reply.value is None and not self.cluster.pending:
            assert self.loop.now() < end
            self.loop.turn(0.05)
        return reply.value

    def image(self) -> Image:
        data = self.cow.read_bytes()
        return Image.load(lambda offset, length: data[offset : offset + length], len(data))


@pytest.fixture
def desk(config: Config, tmp_path: Path) -> Iterator[Desk]:
    made = Desk(config, tmp_path)
    yield made
    made.loop.close()


def test_a_snapshot_is_formatted_before_it_is_taken(desk: Desk, config: Config) -> None:
    """When the cluster is asked, header and sidecar are on the device; the store's uuid is the same in both."""
    reply = desk.create(writable=True)
    assert desk.finish(reply) == {"name": "s1", "store": desk.cluster.taken[0].store}
    (taken,) = desk.cluster.taken
    assert (taken.name, taken.path, taken.writable, taken.generation) == ("s1", str(desk.cow), True, 1)
    image = desk.image()
    assert isinstance(image.sidecar, Sidecar)
    assert image.header == Header(True, 32)
    assert image.sidecar.store_uuid == taken.store
    assert image.sidecar.volume_uuid == config.volume.cluster_uuid
    assert reply.steps[-1] == "waiting for every host"


def test_a_refused_snapshot_is_undone(desk: Desk) -> None:
    """The device is free again, as after a delete: the next attempt needs no --force."""
    desk.cluster.refusal = Refused("host-b: cannot open the COW device")
    assert desk.finish(desk.create()) is desk.cluster.refusal
    assert desk.image().header.valid is False
    desk.cluster.refusal = None
    assert desk.finish(desk.create())["name"] == "s1"


def test_what_may_have_been_taken_is_not_undone(desk: Desk) -> None:
    """An outcome that nobody knows: the device is not touched."""
    desk.cluster.refusal = LockspaceError("nobody knows")
    assert isinstance(desk.finish(desk.create()), LockspaceError)
    assert desk.image().header.valid is True


def test_a_name_in_use_leaves_the_device_alone(desk: Desk) -> None:
    """It is refused before anything is written."""
    before = desk.cow.read_bytes()
    assert "exists already" in str(desk.finish(desk.create("used")))
    assert desk.cow.read_bytes() == before


def test_foreign_content_needs_force(desk: Desk) -> None:
    """A device with something on it is refused, naming it; with force it is taken."""
    with open(desk.cow, "r+b") as file:
        file.seek(70000)
        file.write(b"precious")
    assert "foreign content" in str(desk.finish(desk.create()))
    assert not desk.cluster.taken
    assert desk.finish(desk.create(force=True))["name"] == "s1"


def test_one_command_at_a_time(desk: Desk) -> None:
    """A second one is refused by name while the first is under way; afterwards it is not."""
    desk.cluster.slow = True
    first = desk.create()
    desk.finish(first)
    with pytest.raises(Refused, match="snapshot create s1 is under way"):
        desk.commands.delete({"name": "s1"}, FakeReply())  # type: ignore[arg-type]
    desk.cluster.pending.pop()(None)
    desk.cluster.slow = False
    reply = FakeReply()
    desk.commands.delete({"name": "s1"}, reply)  # type: ignore[arg-type]
    assert desk.finish(reply) == {"name": "s1"}


def test_only_an_active_host_takes_snapshots(desk: Desk) -> None:
    """One that stalls or joins says so."""
    desk.member.state = "stalled"
    with pytest.raises(Refused, match="this host is stalled, expected active"):
        desk.create()


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"name": "s/1", "cow": "/c"},
        {"name": 3, "cow": "/c"},
        {"name": "s1", "cow": "c"},
        {"name": "s1", "cow": "/c\0"},
        {"name": "s1", "cow": "/c", "force": "yes"},
        {"name": "s" * 64, "cow": "/c"},
    ],
)
def test_requests_that_make_no_sense_are_refused(request_: dict[str, Any]) -> None:
    """The admin socket is no place for trust: every field is checked."""
    with pytest.raises(Refused):
        Wanted.from_request(request_)


# ---- reports


def test_a_daemon_that_only_starts_has_a_status(config: Config) -> None:
    """joining, without lease and snapshots, with the fencing method in so many words."""
    value = status.report(status.View(config, why="waiting for etcd"))
    assert value["member"] == {
        "state": "joining",
        "why": "waiting for etcd",
        "lease_remaining_seconds": 0.0,
        "lease_ttl_seconds": 0,
        "fencing": "unsafe",
    }
    assert (value["volume"], value["node"], value["snapshots"]) == ("vmstore", "host-a", [])


def test_a_machine_without_identity_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty /etc/machine-id would make every host the same; the configuration may name one."""
    monkeypatch.setattr(host, "MACHINE_ID", tmp_path / "machine-id")
    with pytest.raises(Refused, match="machine_id in"):
        host.machine_id("")
    assert host.machine_id("0" * 31 + "1") == "0" * 31 + "1"
    (tmp_path / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    assert host.machine_id("") == "0123456789abcdef0123456789abcdef"
