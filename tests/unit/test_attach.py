"""The attach program with a played kernel: what it offers and when, what it adopts, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapd import config as configuration
from snapd.attach.attach import STUCK, Progress, backend_of
from snapd.attach.detach import detach
from snapd.attach.device import is_held
from snapd.attach.negotiate import reach
from snapd.errors import ConfigError, CsnapError, Refused
from snapd.nbd.handshake import GREETING
from snapd.nbd.identity import UNNAMED, describe
from snapd.units import SECOND
from tests.support.attach_bed import SIZE, Bed, readable
from tests.unit.test_config import GOOD


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path)
    yield bed
    bed.close()


def nothing() -> None:
    pass


def test_it_attaches_with_what_the_server_says(bed: Bed) -> None:
    """Size and block are the export's; the queue is set, udev is told, systemd is told that it is ready."""
    bed.serve()
    assert bed.run(nothing) == ["attached"]
    assert (bed.device.size, bed.device.block, bed.device.backend) == (SIZE, 512, backend_of(bed.config))
    queue = bed.sysfs / "block/nbd3/queue"
    assert (queue / "io_timeout").read_text() == "2000"
    assert (bed.sysfs / "block/nbd3/uevent").read_text() == "change"
    assert "READY=1" in bed.told


def test_it_waits_for_a_daemon_that_is_not_there_yet(bed: Bed) -> None:
    """One line of log for one reason, however often it is tried; not ready before it is attached."""
    assert bed.run(nothing, nothing, nothing, bed.serve, nothing) == ["attach_waiting", "attached"]
    assert not any(text == "READY=1" for text in bed.told[:1])


def test_a_dead_connection_is_replaced_until_one_is_taken(bed: Bed) -> None:
    """The daemon is gone for some attempts; the socket that is negotiated then is the kernel's."""
    bed.serve()

    def crash() -> None:
        bed.hang_up()
        bed.die()

    assert bed.run(crash, nothing, bed.serve, nothing) == [
        "attached",
        "connection_lost",
        "not_reconnected",
        "reconnected",
    ]
    assert bed.kernel.connection >= 0
    assert bed.log[-1][1]["taken"] is True


def test_an_announcement_that_comes_too_late_does_not_keep_it_busy(bed: Bed) -> None:
    """The kernel has a live connection and ignores what is offered: after some offers it is left in peace."""
    bed.serve()
    events = bed.run(bed.announce, *[nothing] * 6)
    assert events == ["attached", "connection_lost", "reconnected"]
    assert bed.log[-1][1]["taken"] is False
    assert bed.kernel.calls.count("reconfigure") == 5


def test_it_adopts_a_device_that_is_attached_to_this_volume(bed: Bed) -> None:
    """A program that was restarted finds it by the backend identifier; one that died meanwhile is replaced."""
    bed.serve()
    bed.run(nothing)
    bed.kernel.die()
    assert bed.run(nothing)[1:] == ["attached"]
    assert bed.log[-1][1] == {"device": bed.device.path, "size": SIZE, "adopted": True, "reconnected": True}
    assert bed.kernel.calls == ["connect", "reconfigure"]


def test_it_adopts_without_a_daemon(bed: Bed) -> None:
    """Whoever uses the device goes on to wait; systemd hears that it is ready, and the connection comes later."""
    bed.serve()
    bed.run(nothing)
    bed.hang_up()
    bed.kernel.die()
    bed.told.clear()
    assert bed.run(nothing, bed.serve, nothing)[1:] == ["connection_lost", "not_reconnected", "reconnected"]
    assert bed.told[0] == "READY=1"


def test_another_volumes_device_is_refused(bed: Bed) -> None:
    """By name, also one of a client that leaves no identifier; nothing is asked of the kernel."""
    (bed.sysfs / "block/nbd3/pid").write_text("7\n")
    with pytest.raises(Refused, match="does not say to what"):
        bed.run(nothing)
    (bed.sysfs / "block/nbd3/backend").write_text("csnap other 1\n")
    with pytest.raises(Refused, match="already attached to 'csnap other 1', expected 'csnap vmstore 5b1c"):
        bed.run(nothing)
    with pytest.raises(Refused, match="left alone"):
        detach(bed.config, bed.kernel, bed.device, bed.wait)
    assert bed.kernel.calls == []


def test_another_size_is_refused_and_its_socket_is_not_offered(bed: Bed) -> None:
    """At the start by name; later it is logged, while the program goes on to try."""
    bed.serve()
    bed.run(nothing)
    (bed.sysfs / "block/nbd3/size").write_text(f"{SIZE // 1024}\n")
    bed.kernel.die()
    with pytest.raises(Refused, match=f"{SIZE // 2} bytes.*has {SIZE} bytes"):
        bed.run(nothing)
    assert bed.kernel.connection == -1


def test_another_volumes_daemon_at_the_socket_is_refused(bed: Bed) -> None:
    """Of equal size: its socket is never offered. A mounted device waits for its own; at the start it is refused."""
    other = describe("other", "6b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a12")

    def crash() -> None:
        bed.hang_up()
        bed.die()
        bed.serve_as(other)

    def repair() -> None:
        bed.hang_up()
        bed.serve()

    bed.serve()
    assert bed.run(crash, nothing, repair, nothing) == ["attached", "connection_lost", "not_reconnected", "reconnected"]
    assert "serves 'origin of volume other, cluster_uuid 6b1c" in str(bed.log[-2][1]["reason"])
    assert bed.kernel.calls == ["connect", "reconfigure"]
    bed.kernel.release()
    bed.hang_up()
    bed.serve_as(other)
    with pytest.raises(Refused, match=r"other, cluster_uuid 6b1c.*expected .*vmstore, cluster_uuid 5b1c"):
        bed.run(nothing)
    assert bed.kernel.calls == ["connect", "reconfigure"]


@pytest.mark.parametrize(("description", "taken"), [(UNNAMED, True), ("", False), ("a disk", False)])
def test_a_server_that_names_no_volume_is_refused_but_for_older_daemons(
    bed: Bed, description: str, taken: bool
) -> None:
    """A host whose daemon is still the version before goes on; any other NBD server is not taken for the origin."""
    bed.serve_as(description)
    with contextlib.nullcontext() if taken else pytest.raises(Refused, match="serves"):
        assert bed.run(nothing) == ["attached"]
    assert bed.kernel.calls == ["connect"] * taken


def test_a_device_that_somebody_detached_ends_it(bed: Bed) -> None:
    """`csnap detach` by hand: nothing is left to do."""
    bed.serve()
    assert bed.run(bed.kernel.release, nothing) == ["attached", "detached"]


def test_requests_of_which_none_ends_are_noticed() -> None:
    """Once every STUCK; progress, or nothing to do, begins the time anew."""
    progress = Progress(0)
    assert not progress.stuck(SECOND, 1, 5)
    assert not progress.stuck(STUCK, 1, 5)
    assert progress.stuck(SECOND + STUCK, 1, 5)
    assert not progress.stuck(2 * STUCK, 1, 5)
    assert not progress.stuck(3 * STUCK, 1, 6)
    assert not progress.stuck(5 * STUCK, 0, 6)
    assert not progress.stuck(6 * STUCK - 1, 1, 6)


def test_a_death_that_nobody_announced_is_found(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The announcement was lost, as it may be when memory is short: requests of which none ends lead to an offer."""
    monkeypatch.setattr("snapd.attach.attach.STUCK", 0)
    bed.serve()

    def lost() -> None:
        bed.kernel.die()
        (bed.sysfs / "block/nbd3/inflight").write_text("0 4\n")

    assert bed.run(lost, nothing) == ["attached", "reconnected"]
    assert bed.kernel.connection >= 0


def test_detaching_is_decided_by_the_kernel(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened exclusively, told to disconnect with the last close, closed: nobody else has it, so it is gone."""
    bed.serve()
    bed.run(nothing)
    assert detach_here(bed, monkeypatch)
    assert bed.device.backend is None
    assert not detach_here(bed, monkeypatch)


def test_a_device_that_is_open_stays(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has it open, without any list that names it: refused, and the order is taken back; --force detaches."""
    bed.serve()
    bed.run(nothing)
    bed.kernel.opened = 1
    with pytest.raises(Refused, match="in use: a process has it open"):
        detach_here(bed, monkeypatch)
    assert bed.kernel.flags == 0
    assert bed.device.backend is not None
    assert detach_here(bed, monkeypatch, force=True)
    assert bed.kernel.calls[-1] == "disconnect"


def test_what_uses_it_is_named(bed: Bed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Mounts of the device and its partitions by device number, holders, swap."""
    block = bed.sysfs / "block/nbd3"
    (block / "nbd3p1/holders/dm-0").mkdir(parents=True)
    (block / "nbd3p1/dev").write_text("43:49\n")
    (tmp_path / "proc/self/mountinfo").write_text("36 1 43:49 / /srv rw - ext4 /dev/nbd3p1 rw\n")
    (tmp_path / "proc/swaps").write_text("Filename Type\n/dev/nbd3 partition 1 0 -2\n")
    assert bed.device.users() == ["dm-0 holds nbd3p1", "mounted on /srv", "swap on /dev/nbd3"]


def detach_here(bed: Bed, monkeypatch: pytest.MonkeyPatch, force: bool = False) -> bool:
    real = os.close

    def close(descriptor: int) -> None:
        ours = os.path.samestat(os.fstat(descriptor), Path(bed.device.path).stat())
        real(descriptor)
        if ours:
            bed.kernel.closed()

    bed.plan = [nothing] * 1000
    with monkeypatch.context() as patch:
        patch.setattr("os.close", close)
        patch.setattr("snapd.attach.detach.PATIENCE", 0)
        return detach(bed.config, bed.kernel, bed.device, bed.wait, force)


def test_a_socket_that_somebody_still_has_is_told_from_one_that_is_gone() -> None:
    """What RECONFIGURE does not say, /proc/net/unix does."""
    ours, theirs = socket.socketpair()
    inode = os.fstat(ours.fileno()).st_ino
    kept = os.dup(ours.fileno())
    ours.close()
    assert is_held(inode)
    os.close(kept)
    assert not is_held(inode)
    theirs.close()


@pytest.mark.parametrize("said", [b"", b"x" * 18, GREETING[:10]])
def test_what_is_no_nbd_server_is_refused(tmp_path: Path, said: bytes) -> None:
    """By the socket's path; the connection is closed."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def answer() -> None:
            with listener.accept()[0] as sock:
                sock.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(CsnapError, match=str(tmp_path / "s")):
            reach(str(tmp_path / "s"), "origin", readable)
        thread.join()


def test_an_export_that_is_not_there_is_named(bed: Bed) -> None:
    """With the server's own words."""
    bed.serve()
    with pytest.raises(CsnapError, match="export 'snapshot/s1': there is no such export"):
        reach(bed.config.export.nbd, "snapshot/s1", bed.wait)


@pytest.mark.parametrize("device", ["/dev/sda", "/dev/nbd", "/dev/nbd01", "/dev/nbd0p1", "nbd0", 0])
def test_only_nbd_devices_can_be_configured(tmp_path: Path, device: object) -> None:
    """The error says which section and key."""
    path = tmp_path / "v.toml"
    path.write_text(f"{GOOD}[attach]\ndevice = {json.dumps(device)}\n")
    with pytest.raises(ConfigError, match=r"\[attach\] device = .*expected a device of the kernel's NBD client"):
        configuration.load(path)
