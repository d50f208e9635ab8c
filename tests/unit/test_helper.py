"""The privileged helper: who may ask it, for what, on which devices."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from snapd import config as configuration
from snapd.config import Config
from snapd.errors import CsnapError, Fenced, NoDaemon, Refused
from snapd.helper import server as helper_server
from snapd.helper.client import Helper
from snapd.helper.server import Server
from snapd.helper.service import Service
from snapd.units import KIB, MIB, SECOND
from tests.support.scsi_lun import Lun
from tests.support.worker_process import VOLUME_UUID, make_cow
from tests.unit.test_config import GOOD
from tests.unit.test_watchdog import FakeSystem

KEY, OTHER = "a" * 16, "b" * 16


class World:
    """One volume: an origin and a COW device as files, each with reservations of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.origin, self.cow = directory / "origin", directory / "cow"
        self.origin.write_bytes(bytes(MIB))
        make_cow(self.cow, "s1", MIB, 16 * KIB, MIB)
        path = directory / "vmstore.toml"
        text = GOOD.replace("/dev/disk/by-id/x", str(self.origin)).replace("/run/csnap/vmstore", str(directory))
        path.write_text(text.replace('"unsafe"', '"scsi-pr"'))
        self.config: Config = configuration.load(path)
        assert self.config.volume.cluster_uuid == VOLUME_UUID
        self.luns: dict[str, Lun] = {}

    def service(self, host: str = "host-a") -> Service:
        return Service(self.config, lambda fd, path: self.luns.setdefault(path, Lun()).path(host))

    @contextmanager
    def serving(self, service: Service | None = None) -> Iterator[Helper]:
        server = Server(self.config.export.helper, service or self.service())
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield Helper(self.config.export.helper, 20)
        finally:
            server.stop()
            thread.join()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# ---- what it does


def test_a_fencing_by_its_verbs(world: World) -> None:
    """Two hosts register; one preempts the other, who learns that it is fenced as soon as it asks for anything."""
    a, b = world.service("host-a"), world.service("host-b")
    device = {"device": str(world.origin)}
    assert a.handle({"verb": "register", "key": KEY, **device}) == {"holder": True}
    assert b.handle({"verb": "register", "key": OTHER, **device}) == {"holder": False}
    asked = {"verb": "preempt", "key": KEY, "victim": OTHER, **device}
    assert a.handle(asked) == {"found": True, "aborted": True}
    assert a.handle(asked) == {"found": False, "aborted": True}
    with pytest.raises(CsnapError, match="not registered"):
        b.handle({"verb": "preempt", "key": OTHER, "victim": KEY, **device})
    lun = world.luns[str(world.origin)]
    assert lun.may_write("host-a") and not lun.may_write("host-b")


def test_a_reservation_that_was_lost_is_there_again_after_a_preempt(world: World) -> None:
    """Its holder left without a word; without a reservation the fenced host could write."""
    a = world.service()
    device = {"device": str(world.origin)}
    a.handle({"verb": "register", "key": KEY, **device})
    lun = world.luns[str(world.origin)]
    lun.holder = ""
    a.handle({"verb": "preempt", "key": KEY, "victim": OTHER, **device})
    assert lun.holder == "host-a"


def test_the_holder_stays_while_others_need_its_reservation(world: World) -> None:
    """Unregistering it would end the reservation: the others preempt it instead, without a gap. Alone, it goes."""
    a, b = world.service("host-a"), world.service("host-b")
    device = {"device": str(world.origin)}
    a.handle({"verb": "register", "key": KEY, **device})
    b.handle({"verb": "register", "key": OTHER, **device})
    lun = world.luns[str(world.origin)]
    assert a.handle({"verb": "unregister", "key": KEY, "stay": True, **device}) == {"kept": True}
    assert not lun.may_write("host-c")
    b.handle({"verb": "preempt", "key": OTHER, "victim": KEY, "abort": False, **device})
    assert lun.holder == "host-b" and not lun.may_write("host-a")
    assert a.handle({"verb": "unregister", "key": KEY, "stay": True, **device}) == {"kept": False}
    assert b.handle({"verb": "unregister", "key": OTHER, "stay": False, **device}) == {"kept": False}
    assert lun.may_write("host-a")


def test_the_watchdog_by_its_verbs(world: World) -> None:
    """Armed by the first pet, looked at while armed, disarmed in order; another method's helper does not touch it."""
    with pytest.raises(Refused, match='"scsi-pr", not "watchdog"'):
        world.service().handle({"verb": "pet", "deadline": SECOND})
    fencing = replace(world.config.fencing, method="watchdog", watchdog_timeout=9)
    system = FakeSystem()
    service = Service(replace(world.config, fencing=fencing), system=system)
    assert service.handle({"verb": "look"}) == {"identity": "Fake Watchdog", "timeout": 9, "nowayout": False}
    assert system.fires is None
    assert service.handle({"verb": "pet", "deadline": 1 << 62})["timeout"] == 9
    assert system.fires is not None
    assert service.handle({"verb": "look"})["timeout"] == 9
    assert system.fires is not None  # looking does not disarm one that is in use
    assert service.handle({"verb": "disarm"}) == {"disarmed": True}
    assert system.fires is None
    system.fires = 5  # a killed daemon's: it may have to reset the host
    with pytest.raises(Refused, match="counts down"):
        service.handle({"verb": "look"})
    assert system.fires == 5
    assert service.handle({"verb": "disarm"}) == {"disarmed": True}


# ---- on which devices


def test_only_devices_of_the_volume(world: World) -> None:
    """The origin by its configured path, and what says itself that it is a COW device of this volume; anything else
    is refused by name, and nothing is registered there."""
    service = world.service()
    plain = world.directory / "plain"
    plain.write_bytes(bytes(MIB))
    assert service.handle({"verb": "register", "device": str(world.cow), "key": KEY}) == {"holder": True}
    foreign = replace(world.config, volume=replace(world.config.volume, cluster_uuid="0" * 35 + "1"))
    strange = Service(foreign, lambda fd, path: world.luns.setdefault(path, Lun()).path("host-a"))
    for asked, device, words in (
        (service, plain, "neither the origin nor a COW device of volume"),
        (strange, world.cow, "neither the origin nor a COW device of volume 0000"),
        (service, world.directory, "a directory"),
        (service, world.directory / "absent", "absent"),
    ):
        for verb in ("register", "preempt", "unregister", "try"):
            with pytest.raises(Refused, match=words):
                asked.handle({"verb": verb, "device": str(device), "key": KEY, "victim": OTHER})
    assert set(world.luns) == {str(world.cow)}


@pytest.mark.parametrize(
    "request_",
    [
        None,
        [],
        {},
        {"verb": 3},
        {"verb": "format"},
        {"verb": "register", "key": KEY},
        {"verb": "register", "key": KEY, "device": "relative"},
        {"verb": "register", "key": KEY, "device": "/a\0b"},
        {"verb": "register", "key": "0" * 16, "device": "ORIGIN"},
        {"verb": "register", "key": "A" * 16, "device": "ORIGIN"},
        {"verb": "register", "key": 3, "device": "ORIGIN"},
        {"verb": "preempt", "key": KEY, "victim": KEY, "device": "ORIGIN"},
        {"verb": "preempt", "key": KEY, "device": "ORIGIN"},
        {"verb": "pet"},
        {"verb": "pet", "deadline": -1},
        {"verb": "pet", "deadline": True},
    ],
)
def test_requests_that_make_no_sense_are_refused(world: World, request_: object) -> None:
    """Each by name; nothing is done."""
    if isinstance(request_, dict) and request_.get("device") == "ORIGIN":
        request_["device"] = str(world.origin)
    with pytest.raises(Refused, match="helper: "):
        world.service().handle(request_)
    assert not any(lun.keys for lun in world.luns.values())


# ---- its socket


def test_asking_over_the_socket(world: World) -> None:
    """Results and errors arrive; being fenced has its own type; afterwards the socket is gone."""
    with world.serving() as helper:
        assert helper.ask("ping")["pid"] == os.getpid()
        assert helper.ask("register", device=str(world.origin), key=KEY) == {"holder": True}
        with pytest.raises(CsnapError, match="expected one of"):
            helper.ask("format")
        with pytest.raises(Fenced):
            helper.ask("preempt", device=str(world.origin), key=OTHER, victim=KEY)
    with pytest.raises(NoDaemon):
        helper.ask("ping")
    assert not Path(helper.path).exists()


def test_only_root_and_the_daemons_user(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's word on the peer decides: others are refused, whatever the file's mode has become."""
    with world.serving() as helper:
        assert Path(helper.path).stat().st_mode & 0o777 == 0o660
        helper.ask("ping")
        monkeypatch.setattr(helper_server, "peer", lambda sock: (1, 12345))
        with pytest.raises(CsnapError, match="user 12345 may not ask"):
            helper.ask("ping")


def test_regression_a_refusal_before_the_question_was_no_helper(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The helper refuses a stranger as soon as it comes: on a busy machine before it has asked, ``Broken pipe``."""
    hung_up = threading.Event()

    class Hasty(Server):
        def _serve(self, sock: socket.socket) -> None:
            super()._serve(sock)
            hung_up.set()

    class Late(socket.socket):
        def connect(self, address: object) -> None:
            super().connect(address)  # type: ignore[arg-type]
            assert hung_up.wait(20)

    monkeypatch.setattr(helper_server, "peer", lambda sock: (1, 12345))
    server = Hasty(world.config.export.helper, world.service())
    thread = threading.Thread(target=server.run)
    thread.start()
    monkeypatch.setattr("snapd.helper.client.socket.socket", Late)
    with pytest.raises(CsnapError, match="user 12345 may not ask"):
        Helper(world.config.export.helper, 20).ask("ping")
    monkeypatch.undo()
    server.stop()
    thread.join()


@pytest.mark.skipif(os.getuid() != 0, reason="gives files away: needs root")
def test_regression_the_daemons_user_could_have_any_file_given_to_its_group(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is that user's: a link put in the socket's place made root give its target to the group."""
    precious = world.directory / "precious"
    precious.touch()
    os.chown(world.directory, -1, 12345)
    real = helper_server.listen

    def listen(path: str, mode: int) -> socket.socket:
        listener = real(path, mode)
        Path(path).unlink()
        Path(path).symlink_to(precious)
        return listener

    monkeypatch.setattr(helper_server, "listen", listen)
    with world.serving():
        assert precious.stat().st_gid == 0


@pytest.mark.parametrize("data", [b"", b"{\n", b"[" * 100_000 + b"\n", b"x" * (70 * KIB), b"\xff\n"])
def test_bytes_that_are_no_request(world: World, data: bytes) -> None:
    """An error, or a closed connection; the next one is served."""
    with world.serving() as helper:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(helper.path)
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                answer = sock.recv(65536)
            except (BrokenPipeError, ConnectionResetError):  # it did not read to the end
                answer = b""
            assert not answer or "error" in json.loads(answer)
        assert helper.ask("ping")


def test_a_silent_client_holds_up_nobody(world: World) -> None:
    """Others are served beside it; of too many, the last are turned away."""
    with world.serving() as helper:
        silent = [socket.socket(socket.AF_UNIX) for _ in range(helper_server.CONNECTIONS_MOST - 1)]
        for sock in silent:
            sock.connect(helper.path)
        assert helper.ask("ping")
        for sock in silent:
            sock.close()


def test_the_program(world: World) -> None:
    """``python -m snapd.helper CONFIG`` serves until SIGTERM; a child ends with the parent it was given."""
    command = [sys.executable, "-m", "snapd.helper", str(world.config.path)]
    with subprocess.Popen(command) as process:
        helper = Helper(world.config.export.helper, 20)
        _until_it_answers(helper)
        assert helper.ask("ping")["pid"] == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    orphan = subprocess.run([*command, "--parent=1"], timeout=20, check=False)
    assert orphan.returncode == 1


def _until_it_answers(helper: Helper) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            helper.ask("ping")
            return
        except NoDaemon:
            time.sleep(0.02)
    raise AssertionError("the helper does not answer")
