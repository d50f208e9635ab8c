"""Clients that a stopping worker leaves to the next one: descriptors, and a sealed memfd that says what they are.

    stopping worker --SCM_RIGHTS--> control --FDSTORE--> systemd --LISTEN_FDS--> control --exec--> next worker

Whatever comes in is held against what this worker is (volume, boot, socket file) and against what the memfd says.
What does not fit is shut down, not only closed: another process may have it too, and its client must learn of it now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from snapd.errors import FormatError
from snapd.nbd.handover import MAX_BYTES, ClientState, Handover

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""Nobody changes it any more while it is read."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Client = tuple[ClientState, socket.socket]


@dataclass(frozen=True, slots=True)
class Takeover:
    """listener: None where there is none that fits. refused: why, in words, for what was shut down."""

    listener: socket.socket | None = None
    clients: tuple[Client, ...] = ()
    refused: tuple[str, ...] = ()


def boot_id() -> str:
    return BOOT_ID.read_text(encoding="ascii").strip()


def file_of(path: str) -> tuple[int, int]:
    """Return device and inode of a socket's file; zeros if it is gone."""
    try:
        found = os.lstat(path)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def to_descriptors(volume: str, file: tuple[int, int], listener: socket.socket, clients: Sequence[Client]) -> list[int]:
    """Return what to give away: the sockets, and last the memfd, without which they are worth nothing."""
    inode = os.fstat(listener.fileno()).st_ino
    handover = Handover(volume, boot_id(), inode, file, tuple(state for state, _ in clients))
    state = os.memfd_create("csnap-handover", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    data = memoryview(handover.to_bytes())
    while data:
        data = data[os.write(state, data) :]
    fcntl.fcntl(state, fcntl.F_ADD_SEALS, SEALS)
    return [listener.fileno(), *(sock.fileno() for _, sock in clients), state]


def take_over(descriptors: Iterable[int], volume: str, path: str) -> Takeover:
    """Take the descriptors; all of them are closed that are not in what is returned."""
    sockets: dict[int, socket.socket] = {}
    others: list[int] = []
    for fd in descriptors:
        found = os.fstat(fd)
        if stat.S_ISSOCK(found.st_mode):
            sockets[found.st_ino] = socket.socket(fileno=fd)
        else:
            others.append(fd)
    if not (sockets or others):
        return Takeover()
    try:
        return _matched(_read(others), sockets, volume, path)
    except FormatError as error:
        return Takeover(refused=(str(error),))
    finally:
        for fd in others:
            os.close(fd)
        for sock in sockets.values():
            shut(sock)


def shut(sock: socket.socket) -> None:
    """End a connection, or a listening socket, for every process that has it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def _read(others: list[int]) -> Handover:
    if len(others) != 1:
        raise FormatError(f"hand-over: {len(others)} descriptors that are not sockets, expected 1")
    (fd,) = others
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise FormatError("hand-over: not a memfd") from error
    if seals & SEALS != SEALS:
        raise FormatError(f"hand-over: seals {seals:#x}, expected {SEALS:#x}")
    size = os.fstat(fd).st_size
    if size > MAX_BYTES:
        raise FormatError(f"hand-over: {size} bytes, expected at most {MAX_BYTES}")
    pieces, position = [], 0
    while position < size and (piece := os.pread(fd, size - position, position)):
        pieces.append(piece)
        position += len(piece)
    return Handover.from_bytes(b"".join(pieces))


def _matched(handover: Handover, sockets: dict[int, socket.socket], volume: str, path: str) -> Takeover:
    """Take out of ``sockets`` what fits."""
    for name, found, expected in (("volume", handover.volume, volume), ("boot", handover.boot, boot_id())):
        if found != expected:
            raise FormatError(f"hand-over: {name} {found}, expected {expected}")
    refused = []
    listener = sockets.get(handover.listener)
    if listener is not None:
        if _listens(listener, path) and handover.file == file_of(path) != (0, 0):
            listener.setblocking(False)
            del sockets[handover.listener]
        else:
            refused.append(f"hand-over: the listening socket is not that of {path}")
            listener = None
    clients = []
    for state in handover.clients:
        sock = sockets.get(state.socket)
        if sock is None:  # it has hung up meanwhile, so systemd has let it go
            continue
        if _is_connected(sock):
            sock.setblocking(False)
            clients.append((state, sockets.pop(state.socket)))
    return Takeover(listener, tuple(clients), tuple(refused))


def _is_stream(sock: socket.socket) -> bool:
    return (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM)


def _listens(sock: socket.socket, path: str) -> bool:
    listening = _is_stream(sock) and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return bool(listening) and sock.getsockname() == path


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return _is_stream(sock)
