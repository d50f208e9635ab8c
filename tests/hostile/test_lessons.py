"""What other block servers and snapshot tools got wrong, each as a test under its name; README.md says where."""

from __future__ import annotations

import ast
import re
import socket
import struct
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from errno import EINVAL, EIO, ENOSPC
from pathlib import Path

import pytest

from snapd.config import parse
from snapd.daemon.admin import may_ask
from snapd.errors import ConfigError, Corrupt, DeviceError
from snapd.exstore.content import Content
from snapd.exstore.image import Image
from snapd.format.header import Header
from snapd.lockspace.etcd import parse_endpoint
from snapd.messages import CR, EX
from snapd.nbd import wire
from snapd.nbd.handshake import Opened
from snapd.nbd.transmission import Transmission
from snapd.units import GIB, KIB, MIB, SECTOR
from tests.support.cluster_rig import ClusterRig
from tests.support.fake_etcd import NO_FAULT, Call, Fault
from tests.support.nbd_client import NbdClient
from tests.support.nbd_peer import Peer, info, negotiation, option, option_replies, request
from tests.support.ram_volume import RamExport, RamServer
from tests.support.worker_process import WorkerProcess, make_cow, wait_until

ROOT = Path(__file__).parents[2]
CHUNK = 16 * KIB
FLAGS = wire.CLIENT_FLAGS.pack(3)

LESSONS = (
    "nbd-server: name length 0xffffffff",
    "nbdkit: backend opened before negotiation ended",
    "nbdkit: plaintext injected before STARTTLS",
    "nbdkit: maximum-size block status",
    "libnbd: a copier that ignored read errors",
    "nbd-server: an address list matched by prefix",
    "multipathd: a control socket that did not check its caller",
    "tcmu-runner: a copy command that escaped its device",
    "etcd: watch events lost after compaction",
    "dm-snapshot: CVE-2013-4299, metadata chunk handed out as data",
    "LVM and dmeventd: auto-extend too coarse, snapshot lost at 100 %",
    "linstor: a failed snapshot left I/O frozen",
)


def test_every_lesson_names_tests_that_exist() -> None:
    """README.md has a row for each lesson, and each test that a row names is defined in the file it names."""
    rows = [line for line in (Path(__file__).parent / "README.md").read_text().splitlines() if line.startswith("| ")]
    named = {cells[0].strip(): re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cells[1])
             for cells in (row.strip("|").split("|") for row in rows)}  # fmt: skip
    for lesson in LESSONS:
        assert named.get(lesson), lesson
    for file, test in (pair for pairs in named.values() for pair in pairs):
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert test in functions, f"{file}::{test}"


# ---- nbdkit


def test_nbdkit_backend_opened_before_negotiation_ended(tmp_path: Path) -> None:
    """Whoever does not finish the negotiation costs no look at any export's content, and no request of the volume."""
    server = RamServer(str(tmp_path / "nbd.sock"), [RamExport("origin", MIB)])
    said = [option(kind, body) for kind, body in (
        (wire.OPT_LIST, b""), (wire.OPT_INFO, info("origin", wire.INFO_NAME)), (wire.OPT_GO, info("absent")),
        (wire.OPT_STRUCTURED_REPLY, b""), (wire.OPT_STARTTLS, b""),
    )]  # fmt: skip
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "nbd.sock"))
        client.sendall(FLAGS + b"".join(said))
        for _ in range(5):
            server.turn(0)
        assert option_replies(client.recv(1 << 16)[wire.GREETING.size :])[-1].kind == wire.REP_ERR_UNSUP
        assert server.volume.submitted == 0 and server.slots.out == 0
        (connection,) = server.server._connections
        assert connection.talk is None
    server.stop()
    server.turn(0)


def test_nbdkit_plaintext_injected_before_starttls() -> None:
    """There is no TLS here: the option is refused; what was sent with it is an ordinary client's, trusted no more.

    Nothing set before or behind it in the same segment gains anything; a TLS hello that follows ends the connection.
    """
    handshake = negotiation()
    injected = option(wire.OPT_STARTTLS) + option(wire.OPT_STARTTLS, b"x") + option(wire.OPT_LIST)
    kinds = [(reply.option, reply.kind) for reply in option_replies(handshake.receive(injected))]
    assert kinds[:2] == [(wire.OPT_STARTTLS, wire.REP_ERR_UNSUP)] * 2
    assert kinds[-1] == (wire.OPT_LIST, wire.REP_ACK) and handshake.opened is None
    with pytest.raises(wire.Drop, match="magic"):
        handshake.receive(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40))


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0xFFFFFE00, 1 << 31, 1 << 32])
def test_nbdkit_maximum_size_block_status(length: int) -> None:
    """On an export of 1 TiB: one extent no longer than what was asked for; beyond the end or of no length: refused."""
    peer = Peer()
    peer.talk = Transmission(Opened(RamExport("origin", 1024 * GIB), True, 1), peer.desk)
    asked = length & 0xFFFFFFFF
    (answer,) = peer.say(request(wire.CMD_BLOCK_STATUS, 0, asked, 1))
    if not asked:
        assert answer.error == EINVAL
        return
    context, extent, flags = struct.unpack(">III", answer.data)
    assert (context, flags) == (1, 0) and 0 < extent <= asked
    (answer,) = peer.say(request(wire.CMD_BLOCK_STATUS, 1024 * GIB - 512, asked, 2))
    assert answer.error == EINVAL
    (answer,) = peer.say(request(wire.CMD_BLOCK_STATUS, (1 << 64) - 512, asked, 3))
    assert answer.error == EINVAL


# ---- libnbd, LVM: a snapshot that is lost


def test_libnbd_a_copier_that_ignored_read_errors(tmp_path: Path) -> None:
    """A snapshot that becomes invalid while nbdcopy reads it: the copier gets EIO and ends with an error."""
    origin = tmp_path / "origin"
    origin.write_bytes(b"o" * 12 * MIB)
    with WorkerProcess(tmp_path, origin, CHUNK) as worker:
        worker.take(make_cow(tmp_path / "cow", "s1", 12 * MIB, CHUNK, MIB))
        uri = f"nbd+unix:///snapshot/s1?socket={worker.socket}"
        copier = subprocess.Popen(["nbdcopy", uri, "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert copier.stdout is not None and copier.stderr is not None
        try:
            got = len(copier.stdout.read(4096))  # it has begun; the pipe is full and the rest is still to be read
            with NbdClient(worker.socket) as client:
                for at in range(0, 4 * MIB, CHUNK):
                    assert client.write(at, b"n" * 512) == 0
            wait_until(worker.overflowed)
            got += len(copier.stdout.read())
            said = copier.stderr.read().decode()
            assert copier.wait(20) != 0
        finally:
            copier.kill()
            copier.stdout.close()
            copier.stderr.close()
        assert got < 12 * MIB and "Input/output error" in said


def test_lvm_auto_extend_too_coarse_snapshot_lost_at_100_percent(tmp_path: Path) -> None:
    """A COW device that fills between two looks: every write of the origin is done all the same; the snapshot says EIO.

    It is lost as a whole and at once, never partly wrong; the next one can be taken, and is right.
    """
    origin = tmp_path / "origin"
    origin.write_bytes(b"o" * 8 * MIB)
    with ExitStack() as stack:
        worker = stack.enter_context(WorkerProcess(tmp_path, origin, CHUNK))
        worker.take(make_cow(tmp_path / "cow1", "s1", 8 * MIB, CHUNK, MIB))
        reader = stack.enter_context(NbdClient(worker.socket, "snapshot/s1"))
        client = stack.enter_context(NbdClient(worker.socket))
        numbers = [client.send(wire.CMD_WRITE, at, data=b"n" * 4096) for at in range(0, 60 * CHUNK, CHUNK)]
        assert [client.answer(number).error for number in numbers] == [0] * 60
        assert not worker.overflowed()
        for at in range(0, 8 * MIB, 64 * KIB):
            assert client.write(at, b"x" * 64 * KIB) == 0
        assert worker.overflowed()
        answers = [reader.answer(reader.send(wire.CMD_READ, at, 4096)) for at in range(0, 8 * MIB, 256 * KIB)]
        assert {answer.error for answer in answers} == {EIO}
        worker.take(make_cow(tmp_path / "cow2", "s2", 8 * MIB, CHUNK, 16 * MIB))
        for at in range(0, 8 * MIB, 64 * KIB):
            assert client.write(at, b"y" * 64 * KIB) == 0
        second = stack.enter_context(NbdClient(worker.socket, "snapshot/s2"))
        assert all(second.read(at, MIB) == b"x" * MIB for at in range(0, 8 * MIB, MIB))


# ---- nbd-server: addresses


@pytest.mark.parametrize("listen", [
    "127.0.0.1", "127.0.0.1:", "127.0.0", "127.0.0.:9942", "127.0.0.1:9942x", "127.0.0.1 :9942", "127.0.0.1:9942 ", "*",
    "127.0.0.1/8:9942", "127.0.0.1.evil.example:9942", "localhost:9942", ":9942", "[::1]:", "[::1", "::1:9942", "127:1",
    "0x7f.0.0.1:1", "127.0.0.1:0009942", "0177.0.0.1:1",
])  # fmt: skip
def test_nbd_server_address_list_matched_by_prefix_of_listen(listen: str) -> None:
    """An address is a whole address or refused: no prefix, mask, name, or number in another base."""
    with pytest.raises(ConfigError, match=r"\[metrics\] listen"):
        _configured(listen=listen)


@pytest.mark.parametrize("endpoint", [
    "http://10.0.0.1:2379@evil.example:1", "http://10.0.0.1:2379.evil.example:1", "http://user@10.0.0.1:2379",
    "http://10.0.0.1:2379/../x", "http:/10.0.0.1:2379", "https:10.0.0.1:2379", "10.0.0.1:2379", "http://10.0.0.1",
    "unix:///run/etcd", "http://:2379", "https://10.0.0.1:0", "https://10.0.0.1:65536",
])  # fmt: skip
def test_nbd_server_address_list_matched_by_prefix_of_endpoints(endpoint: str) -> None:
    """The host asked is the host named; the driver refuses the same as the configuration does."""
    with pytest.raises(ConfigError, match=r"\[lockspace\] endpoints"):
        _configured(endpoint=endpoint)
    with pytest.raises(ConfigError, match="endpoint"):
        parse_endpoint(endpoint)


def test_nbd_server_address_list_matched_by_prefix_of_users() -> None:
    """Who may ask is decided by equal numbers: user 10 is not user 100, group 1 not group 10."""
    assert not may_ask(10, 1, (12, 13), own=100, group=11)
    assert not may_ask(100, 100, (1, 110), own=10, group=11)


def _configured(listen: str = "127.0.0.1:9942", endpoint: str = "http://10.0.0.1:2379") -> None:
    uuid = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"
    values = {
        "volume": {"name": "v", "cluster_uuid": uuid, "origin": "/x", "chunk_size": "16KiB"},
        "node": {"name": "host-a"},
        "lockspace": {"endpoints": [endpoint]},
        "export": {"directory": "/run/x"},
        "metrics": {"listen": listen},
        "fencing": {"method": "unsafe"},
    }
    parse(Path("v.toml"), values)


# ---- tcmu-runner


def test_tcmu_runner_a_copy_command_that_escaped_its_device(tmp_path: Path) -> None:
    """Requests of every kind that begin or end beyond the device, across 2**32, 2**63 and 2**64: refused, nothing done.

    Origin and COW devices lie in files with something behind their ends: nothing of it is read or written.
    """
    size = 4 * MIB
    origin = tmp_path / "origin"
    origin.write_bytes(b"o" * size)
    with WorkerProcess(tmp_path, origin, CHUNK) as worker:
        worker.take(make_cow(tmp_path / "cow", "w", size, CHUNK, 8 * MIB, writable=True))
        for export in ("origin", "snapshot/w"):
            with NbdClient(worker.socket, export) as client:
                for offset, length in (
                    (size, 512), (size - 512, 1024), (0, size + 512), (1 << 32, 512), ((1 << 63) - 512, 1024),
                    ((1 << 64) - 512, 512), ((1 << 64) - 512, 1024), ((1 << 64) - 4096, 8192), (size + CHUNK, CHUNK),
                ):  # fmt: skip
                    for kind in (wire.CMD_READ, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES, wire.CMD_BLOCK_STATUS):
                        assert client.do(kind, offset, length) in (EINVAL, ENOSPC), (kind, offset, length)
                    assert client.write(offset, b"\xee" * length) == ENOSPC
                assert client.read(size - 512, 512) == b"o" * 512
    assert origin.stat().st_size == size and origin.read_bytes() == b"o" * size


@pytest.mark.parametrize("new", [3, 4, 1 << 20, 1 << 55, (1 << 64) - 1])
def test_tcmu_runner_a_copy_command_that_escaped_its_device_by_an_exception(new: int) -> None:
    """An entry that points beyond the COW device: dump shows it, content refuses it before a byte is read."""
    size, read_at = 3 * 4096, []
    data = Header(True, 8).to_bytes().ljust(4096, b"\0") + struct.pack("<QQ", 0, new).ljust(8192, b"\0")

    def read(offset: int, length: int) -> bytes:
        read_at.append(offset + length)
        if offset + length > size:
            raise DeviceError("read", EIO)
        return data[offset : offset + length]

    assert Image.load(read, size).exceptions == [(0, new)]
    with pytest.raises(Corrupt, match=f"new chunk {new} lies behind the device's end"):
        Content([(read, size)], (lambda offset, length: bytes(length), 4096))
    assert max(read_at) <= size and size % SECTOR == 0


# ---- linstor


def _lost(number: int, response: bool) -> Callable[[ClusterRig], None]:
    """The n-th transaction of the coordinator, or its answer, is lost."""

    def spoil(rig: ClusterRig) -> None:
        seen: list[Call] = []

        def fault(call: Call) -> Fault:
            if call.kind == "txn" and call.client == rig.a.settings.incarnation:
                seen.append(call)
                if len(seen) == number:
                    return Fault(drop_response=True) if response else Fault(drop_request=True)
            return NO_FAULT

        rig.etcd.fault = fault

    return spoil


STEPS: dict[str, Callable[[ClusterRig], object]] = {
    "a-host-cannot-open": lambda rig: rig.refusing.update({"host-b": "no such device"}),
    "a-host-is-silent": lambda rig: rig.silent.add("host-b"),
    "a-host-does-not-drain": lambda rig: rig.b.worker.in_use.add("table"),
    "etcd-is-full": lambda rig: setattr(rig.etcd, "no_space", True),
    "etcd-stops": lambda rig: rig.etcd.stop(),
    "etcd-hangs": lambda rig: rig.etcd.freeze(),
    **{f"request-{number}-is-lost": _lost(number, False) for number in range(1, 7)},
    **{f"answer-{number}-is-lost": _lost(number, True) for number in range(1, 7)},
}


@pytest.mark.parametrize("step", STEPS)
def test_linstor_a_failed_snapshot_left_io_frozen(step: str) -> None:
    """Whatever fails while one is taken: all hosts go on within the freeze limit, and the next can be taken."""
    rig = ClusterRig("host-a", "host-b", "host-c")
    assert rig.take("host-a", "s0") is None
    STEPS[step](rig)
    outcome = rig.start_take("host-a", "s1")
    frozen = 0.0
    for _ in range(30):
        rig.run(0.1)
        frozen += 0.1 if rig.c.holds("table") != CR else 0.0
    rig.refusing.clear()
    rig.silent.clear()
    rig.etcd.fault = lambda call: NO_FAULT
    rig.etcd.no_space = False
    if step == "etcd-stops":
        rig.etcd.start()
    if step == "etcd-hangs":
        rig.etcd.thaw()
    rig.b.worker.in_use.clear()
    if "table" in rig.b.worker.asked:
        rig.b.worker.give_back("table")
    rig.run(8)
    assert frozen < 2.6, "the freeze limit is two seconds"
    assert len(outcome) == 1 and (outcome[0] is not None or not step.startswith("a-"))
    for host in (rig.a, rig.b, rig.c, rig.a):
        assert host.failure is None and host.member.state == "active" and host.holds("table") == CR
        host.want("region/3", EX)
        rig.until(lambda host=host: host.holds("region/3") == EX)  # type: ignore[misc]
    assert rig.take("host-b", "s2") is None
