"""Raw bytes to the NBD socket of a real worker: whatever is said, the others are served and nothing is left behind.

The pure halves have their own fuzzing (tests/unit/test_nbd_*.py); here are the socket, the process, and its bounds.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import resource
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from snapd import counters
from snapd.nbd import server, wire
from snapd.units import KIB, MIB
from tests.support import examples as _examples  # noqa: F401
from tests.support.nbd_client import NbdClient
from tests.support.nbd_peer import contexts, info, option, request
from tests.support.served import Served, Shape, served
from tests.support.worker_process import wait_until

EXPORTS = ("origin", "snapshot/s1", "snapshot/w", "", "snapshot/", "origin\0", "x" * 4096)
FLAGS = wire.CLIENT_FLAGS.pack(3)
FUZZ = settings(
    max_examples=150,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a real process: shrinking it would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
HOLE = 8 * MIB
"""Only what lies behind it is written by fuzzed requests that make sense."""


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("nbd"), Shape(512, 16 * KIB)) as made:
        made.snapshot("s1")
        made.snapshot("w", writable=True)
        yield made


def descriptors(volume: Served) -> int:
    return len(list(Path(f"/proc/{volume.worker.process.pid}/fd").iterdir()))


def talk(volume: Served, said: list[bytes], rude: bool = False) -> bytes:
    """Connect, send the pieces one by one, and return what comes back until the server closes or has nothing to say.

    rude: close at once, everything unread.
    """
    received = bytearray()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(volume.worker.socket))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in said:
                sock.sendall(piece)
                if not rude and select.select([sock], [], [], 0)[0]:
                    received += sock.recv(1 << 20)
            if rude:
                return b""
            sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(1 << 20):
                received += data
    return bytes(received)


U32 = st.one_of(st.integers(0, 64), st.sampled_from([0, 1, 4096, 4097, 8192, 65536, 1 << 31, 0xFFFFFFFF]))
BODIES = st.one_of(
    st.binary(max_size=40),
    st.builds(info, st.sampled_from(EXPORTS), st.integers(0, 4)),
    st.builds(contexts, st.sampled_from(EXPORTS), st.sampled_from(["base:allocation", "base:", "", "x:y"])),
    st.builds(lambda length, rest: struct.pack(">I", length) + rest, U32, st.binary(max_size=20)),
    st.sampled_from(EXPORTS).map(str.encode),
)
OPTIONS = st.one_of(
    st.builds(option, st.sampled_from([*range(12), 0xFFFFFFFF]), BODIES),
    st.builds(lambda kind, length, body: wire.OPTION.pack(wire.OPTION_MAGIC, kind, length) + body,
              st.integers(0, 11), U32, st.binary(max_size=60)),
    st.binary(max_size=60),
)  # fmt: skip
SIZE = 12 * MIB
OFFSETS = st.one_of(
    st.integers(HOLE // 512, SIZE // 512).map(lambda sector: sector * 512),
    st.sampled_from([SIZE - 512, SIZE, SIZE + 512, (1 << 64) - 512, (1 << 64) - 1, 1 << 63, 511, HOLE + 1]),
)
LENGTHS = st.one_of(
    st.integers(0, 64).map(lambda sectors: sectors * 512),
    st.sampled_from([1, 511, 32 * MIB, 32 * MIB + 512, 0xFFFFFFFF, 0xFFFFFE00, 1 << 31]),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request: of a legal or an unknown kind; a WRITE has its payload, or less, or more."""
    kind = draw(st.sampled_from([*range(9), 0xFFFF]))
    length = draw(LENGTHS)
    magic = draw(st.sampled_from([wire.REQUEST_MAGIC] * 12 + [0, wire.SIMPLE_REPLY_MAGIC]))
    head = request(kind, draw(OFFSETS), length, draw(st.integers(0, 1 << 60)), draw(st.sampled_from([0, 1, 3, 0xFFFF])),
                   magic)  # fmt: skip
    if kind == wire.CMD_WRITE:
        head += b"\xee" * min(max(0, length + draw(st.sampled_from([0, 0, 0, -1, 1]))), 64 * KIB)
    return head


def check(volume: Served, before: int) -> None:
    """The worker lives, its other client is served, what it had for strangers is free."""
    worker = volume.worker
    assert worker.process.poll() is None, worker.stderr()
    with NbdClient(worker.socket) as client:
        assert client.read(0, 4096) == volume.content[:4096]
    wait_until(lambda: worker.words[counters.CONNECTIONS] == 0 and worker.words[counters.INFLIGHT] == 0)
    assert descriptors(volume) <= before


@FUZZ
@given(
    flags=st.one_of(st.just(FLAGS), st.integers(0, 0xFFFFFFFF).map(wire.CLIENT_FLAGS.pack), st.binary(max_size=3)),
    said=st.lists(OPTIONS, max_size=8),
    rude=st.booleans(),
)
def test_whatever_is_negotiated(volume: Served, flags: bytes, said: list[bytes], rude: bool) -> None:
    """Options whole, cut, too long, of every kind: the greeting comes first, replies are replies, the others live."""
    before = descriptors(volume)
    answered = talk(volume, [flags, *said], rude)
    assert rude or not answered or answered.startswith(wire.GREETING.pack(wire.INIT_MAGIC, wire.OPTION_MAGIC, 3))
    check(volume, before)


@FUZZ
@given(
    export=st.sampled_from(["origin", "snapshot/s1", "snapshot/w"]),
    structured=st.booleans(),
    said=st.lists(requests() | st.binary(max_size=30), min_size=1, max_size=12),
    rude=st.booleans(),
)
def test_whatever_is_requested(volume: Served, export: str, structured: bool, said: list[bytes], rude: bool) -> None:
    """Requests of every kind, beyond the end, across 2**64, with too much or too little behind them."""
    before = descriptors(volume)
    opening = FLAGS + (option(wire.OPT_STRUCTURED_REPLY) if structured else b"") + option(wire.OPT_GO, info(export))
    talk(volume, [opening, *said], rude)
    check(volume, before)


@FUZZ
@given(data=st.binary(max_size=300), cut=st.integers(1, 20))
def test_bytes_in_pieces(volume: Served, data: bytes, cut: int) -> None:
    """Raw bytes, a few at a time."""
    before = descriptors(volume)
    talk(volume, [data[at : at + cut] for at in range(0, len(data), cut)])
    check(volume, before)


def test_afterwards_only_what_was_written_has_changed(volume: Served) -> None:
    """All fuzzing wrote behind HOLE: before it the origin is as it was; the read-only snapshot is as it was taken."""
    assert volume.fetch("origin")[:HOLE] == volume.content[:HOLE]
    snapshot = hashlib.sha256(volume.fetch("snapshot/s1")).digest()
    assert snapshot == hashlib.sha256(volume.content).digest()
    assert volume.worker.stderr() == ""


def test_memory_stays_where_it_was(volume: Served) -> None:
    """A thousand strangers that each leave half of something behind: not a mebibyte more after the first hundred."""
    rng = random.Random(3)

    def strangers(count: int) -> int:
        for _ in range(count):
            said = [FLAGS, option(wire.OPT_GO, info("origin")), request(wire.CMD_WRITE, HOLE, 64 * KIB)]
            data = b"".join(said) + rng.randbytes(rng.randrange(60000))
            talk(volume, [data[: rng.randrange(len(data))]], rng.random() < 0.5)
        return volume.worker.resident()

    before = strangers(100)
    assert strangers(900) < before + MIB
    check(volume, 40)


def test_half_open_clients_of_every_phase_cost_the_others_nothing(volume: Served) -> None:
    """Three hundred that stop after the greeting, in the midst of an option, a request, or a payload."""
    before = descriptors(volume)
    opening = FLAGS + option(wire.OPT_GO, info("origin"))
    stops = [
        b"", FLAGS[:2], FLAGS + wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_LIST, 100) + b"x", opening,
        opening + request(wire.CMD_READ, 0, 512)[:20], opening + request(wire.CMD_WRITE, HOLE, 64 * KIB) + b"x" * 1000,
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        for index in range(300):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(volume.worker.socket))
            sock.sendall(stops[index % len(stops)])
        with NbdClient(volume.worker.socket) as client:
            for at in range(0, 4 * MIB, 64 * KIB):
                assert client.read(at, 64 * KIB) == volume.content[at : at + 64 * KIB]
            assert client.write(HOLE, bytes(4096)) == 0
    check(volume, before)


def test_a_thousand_connections(volume: Served) -> None:
    """A thousand clients connect and stay: the limit's number is served, the rest are closed at once, nobody waits.

    The limit keeps descriptors for devices: a snapshot can still be taken. When they leave, nothing of them stays.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= 1200
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    worker = volume.worker
    before, resident = descriptors(volume), worker.resident()
    try:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(NbdClient(worker.socket))
            sockets = []
            for _ in range(999):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.settimeout(20)
                sock.connect(str(worker.socket))
                sockets.append(sock)
            greeted = [sock for sock in sockets if _greeted(sock)]
            assert len(greeted) == server.MAX_CONNECTIONS - 1
            assert worker.words[counters.CONNECTIONS] == server.MAX_CONNECTIONS
            assert first.read(0, 4096) == volume.content[:4096]
            for sock in greeted:
                sock.sendall(FLAGS + option(wire.OPT_GO, info("origin")) + request(wire.CMD_READ, 0, 512, 7))
            for sock in greeted:
                assert _read_of_512(sock) == volume.content[:512]
            volume.snapshot("late")
            assert first.write(HOLE, b"n" * 4096) == 0
            assert worker.resident() < resident + 64 * MIB
            assert descriptors(volume) < 1000
        wait_until(lambda: worker.words[counters.CONNECTIONS] == 0)
        assert descriptors(volume) <= before + 1  # the new snapshot's device
        with NbdClient(worker.socket, "snapshot/late") as client:
            assert client.read(0, 4096) == volume.content[:4096]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _greeted(sock: socket.socket) -> bool:
    """Whether the server talks to this client; the others are closed before a word is said."""
    try:
        return len(sock.recv(wire.GREETING.size, socket.MSG_WAITALL)) == wire.GREETING.size
    except ConnectionResetError:
        return False


def _read_of_512(sock: socket.socket) -> bytes:
    """The data of the one request, behind the replies to GO."""
    kind = 0
    while kind != wire.REP_ACK:
        _, _, kind, length = wire.OPTION_REPLY.unpack(sock.recv(wire.OPTION_REPLY.size, socket.MSG_WAITALL))
        if length:
            sock.recv(length, socket.MSG_WAITALL)
    head = sock.recv(wire.SIMPLE_REPLY.size, socket.MSG_WAITALL)
    assert head == wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, struct.pack(">Q", 7))
    return sock.recv(512, socket.MSG_WAITALL)
