"""What a worker takes over of the one before it, and what it does not: descriptors and a memfd, from anybody."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapd.nbd.handover import ClientState, ExportFacts
from snapd.nbd.listener import listen
from snapd.units import MIB
from snapd.worker import takeover
from snapd.worker.takeover import SEALS, file_of, take_over, to_descriptors

VOLUME = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"
EXPORT = ExportFacts("origin", "", MIB, False, 512)


class Left:
    """A listening socket and two clients, as a worker leaves them."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "nbd.sock")
        self.listener = listen(self.path, 0o600)
        pairs = [socket.socketpair() for _ in range(2)]
        self.peers = [theirs for _, theirs in pairs]
        self.clients = [(self.state(ours), ours) for ours, _ in pairs]
        self.descriptors = to_descriptors(VOLUME, file_of(self.path), self.listener, self.clients)

    @staticmethod
    def state(sock: socket.socket) -> ClientState:
        return ClientState(os.fstat(sock.fileno()).st_ino, EXPORT, True, 1, 0, b"unread", b"unsent")

    def given(self) -> list[int]:
        """As they arrive: copies, in any order."""
        return [os.dup(fd) for fd in reversed(self.descriptors)]

    def refused(self, given: list[int], volume: str = VOLUME) -> str:
        """Nothing is taken, and every client is told at once. Return why."""
        taken = take_over(given, volume, self.path)
        assert taken.listener is None and taken.clients == ()
        for peer in self.peers:
            peer.settimeout(5)
            assert peer.recv(1) == b""
        (why,) = taken.refused
        return why

    def close(self) -> None:
        os.close(self.descriptors[-1])
        self.listener.close()
        for sock in (*self.peers, *(sock for _, sock in self.clients)):
            sock.close()


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Left]:
    before = open_descriptors()
    made = Left(tmp_path)
    yield made
    made.close()
    assert open_descriptors() == before


def test_what_fits_is_taken(left: Left) -> None:
    """The listening socket and each client with its state, whatever the order; the memfd is closed."""
    taken = take_over(left.given(), VOLUME, left.path)
    assert taken.refused == () and taken.listener is not None
    assert taken.listener.getsockname() == left.path and taken.listener.gettimeout() == 0
    assert [state for state, _ in taken.clients] == [state for state, _ in left.clients]
    for (_, sock), peer in zip(taken.clients, left.peers, strict=True):
        sock.send(b"x")
        assert peer.recv(1) == b"x"
        sock.close()
    taken.listener.close()


def test_nothing_was_left() -> None:
    """The usual start: nothing to take, nothing to say."""
    assert take_over([], VOLUME, "/nowhere") == takeover.Takeover()


def test_a_client_that_hung_up_meanwhile_is_no_error(left: Left) -> None:
    """systemd has let its descriptor go: the others are taken."""
    given = left.given()
    gone = os.fstat(left.clients[0][1].fileno()).st_ino
    for fd in [fd for fd in given if os.fstat(fd).st_ino == gone]:
        given.remove(fd)
        os.close(fd)
    taken = take_over(given, VOLUME, left.path)
    assert [state.socket for state, _ in taken.clients] == [left.clients[1][0].socket] and taken.refused == ()
    assert taken.listener is not None
    taken.listener.close()
    taken.clients[0][1].close()


def test_another_volume_is_refused(left: Left) -> None:
    """By name, and the clients are disconnected."""
    assert "volume 5b1c0e7e" in left.refused(left.given(), "another")


def test_another_boot_is_refused(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inodes of sockets are this boot's."""
    given = left.given()
    monkeypatch.setattr(takeover, "boot_id", lambda: "another")
    assert "expected another" in left.refused(given)


def memfd(data: bytes, seals: int = SEALS) -> int:
    fd = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.mark.parametrize(
    ("forged", "why"),
    [
        (lambda whole: [memfd(b"")], "0 bytes"),
        (lambda whole: [memfd(b"x" * 1000)], "magic"),
        (lambda whole: [memfd(whole[:-1])], "bytes, expected"),
        (lambda whole: [memfd(whole[:-1] + b"?")], "checksum"),
        (lambda whole: [memfd(whole, fcntl.F_SEAL_WRITE)], "seals"),
        (lambda whole: [], "0 descriptors"),
        (lambda whole: [memfd(whole), memfd(whole)], "2 descriptors"),
        (lambda whole: [os.open("/dev/null", os.O_RDWR)], "not a memfd"),
        (lambda whole: [os.eventfd(0)], "not a memfd"),
    ],
)
def test_a_state_that_cannot_be_believed_is_refused(left: Left, forged: Callable[[bytes], list[int]], why: str) -> None:
    """Empty, foreign, cut, changed, not sealed, absent, twice, not a memfd: named, and the clients disconnected."""
    whole = os.pread(left.descriptors[-1], 1 << 20, 0)
    given = [os.dup(fd) for fd in left.descriptors[:-1]]
    assert why in left.refused([*given, *forged(whole)])


def test_sockets_that_the_state_does_not_name_are_shut(left: Left) -> None:
    """They are nobody's: whoever is at their other end must not wait for ever."""
    stray, peer = socket.socketpair()
    taken = take_over([*left.given(), stray.detach()], VOLUME, left.path)
    peer.settimeout(5)
    assert peer.recv(1) == b""
    peer.close()
    assert taken.listener is not None and len(taken.clients) == 2
    for sock in (taken.listener, *(sock for _, sock in taken.clients)):
        sock.close()


def test_a_listening_socket_whose_file_is_another_is_not_taken(left: Left) -> None:
    """The file was removed, or replaced: nobody could connect to what was left, so it is closed and made anew; the
    clients are taken all the same."""
    Path(left.path).unlink()
    taken = take_over(left.given(), VOLUME, left.path)
    assert taken.listener is None and len(taken.clients) == 2
    assert "not that of" in taken.refused[0]
    for _, sock in taken.clients:
        sock.close()
    with listen(left.path, 0o600), socket.socket(socket.AF_UNIX) as client:
        client.connect(left.path)


def test_a_listener_in_a_clients_place_is_not_taken(tmp_path: Path, left: Left) -> None:
    """A state that calls the listening socket a client, and a client the listening socket: neither is believed."""
    (first, sock), _ = left.clients
    listener = left.listener
    swapped = ClientState(os.fstat(listener.fileno()).st_ino, EXPORT, True, 1, 0, b"", b"")
    given = to_descriptors(VOLUME, file_of(left.path), sock, [(swapped, listener)])
    copies = [os.dup(fd) for fd in given]
    os.close(given[-1])
    taken = take_over(copies, VOLUME, left.path)
    assert taken.listener is None and taken.clients == ()
    assert first.socket == os.fstat(sock.fileno()).st_ino
