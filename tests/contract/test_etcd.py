"""The etcd driver where only a real etcd will do: outages, several endpoints, TLS, restores, threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from snapd.errors import Ambiguous, ConfigError, LockspaceError
from snapd.lockspace.etcd import Etcd, Tls, parse_endpoint, to_failure
from snapd.lockspace.etcd_sync import EtcdSync
from snapd.lockspace.kv import Compare, Failure, Put, Range, Status, Target, Txn, TxnResult
from tests.support.deaf_proxy import DeafProxy
from tests.support.etcd_server import EtcdServer, etcd_cluster, free_ports, make_certificates, wait_for
from tests.support.kv_rig import SECOND, RealRig

SHORT = SECOND // 4
PUT = Txn((), (Put("/driver/a", b""),))
READ = Range("/driver/a")
HASTY = ("--heartbeat-interval", "50", "--election-timeout", "500")  # a lost leader is noticed after three of them


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer() as one:
        yield one


@pytest.fixture
def own_server() -> Iterator[EtcdServer]:
    """A server that the test may stop and change."""
    with EtcdServer() as one:
        yield one


@pytest.fixture
def rig(server: EtcdServer) -> Iterator[RealRig]:
    one = RealRig(server)
    yield one
    one.close()


def failure(answer: object) -> Failure:
    assert isinstance(answer, Failure), answer
    return answer


def dead_url() -> str:
    return f"http://127.0.0.1:{free_ports(1)[0]}"


def eventually_put(rig: RealRig) -> None:
    """Try until a put succeeds."""
    wait_for(lambda: isinstance(rig.run(PUT, SECOND), TxnResult), "a put succeeds")


def test_frozen_etcd(server: EtcdServer, rig: RealRig) -> None:
    """With etcd stopped every call ends at its timeout; writes are ambiguous, a read and a compare are not."""
    key = rig.prefix + "k"
    before = rig.done(Txn((), (Put(key, b"before"),))).revision
    server.pause()
    try:
        begun = time.monotonic()
        assert failure(rig.run(Txn((), (Put(key, b"after"),)), SHORT)).ambiguous
        assert not failure(rig.range_or_failure(Range(key), SHORT)[0]).ambiguous
        assert not failure(rig.run(Txn((Compare(key, Target.MOD, 1),), ()), SHORT)).ambiguous
        answers: list[object] = []
        rig.kv.lease_grant(10, SHORT, answers.append)
        rig.kv.lease_keepalive(1, SHORT, answers.append)
        rig.kv.lease_revoke(1, SHORT, answers.append)
        rig.wait(lambda: len(answers) == 3)
        assert all(failure(answer).ambiguous for answer in answers)
        statuses: list[Status | Failure] = []
        rig.etcd.status(SHORT, statuses.append)
        rig.wait(lambda: bool(statuses))
        assert not failure(statuses[0]).ambiguous
        assert time.monotonic() - begun < 8
    finally:
        server.resume()
    (kv,) = rig.range(Range(key))[0].kvs  # either is right: that is what ambiguous means
    assert (kv.value, kv.mod_revision == before) in ((b"before", True), (b"after", False))


def test_lost_answers(server: EtcdServer) -> None:
    """A write whose answer was lost is ambiguous, and it was applied."""
    with DeafProxy(server.url) as proxy:
        rig = RealRig(server, [proxy.url])
        rig.done(Txn((), (Put(rig.prefix + "a", b"1"),)))
        proxy.deaf.set()
        assert failure(rig.run(Txn((), (Put(rig.prefix + "a", b"2"),)), SHORT)).ambiguous
        rig.close()
        other = RealRig(server)
        wait_for(lambda: other.range(Range(rig.prefix + "a"))[0].kvs[0].value == b"2", "the write is applied")
        other.close()


def test_restart_of_etcd(own_server: EtcdServer) -> None:
    """A stopped etcd fails calls as unavailable and ends the watch; after its restart everything goes on."""
    rig = RealRig(own_server)
    recorder = rig.watch(rig.prefix, 1)
    revision = rig.done(Txn((), (Put(rig.prefix + "a", b""),))).revision
    rig.wait(lambda: len(recorder.events()) == 1)
    own_server.kill()
    rig.wait(recorder.lost)
    assert failure(rig.run(PUT, SECOND)).ambiguous
    own_server.start()
    eventually_put(rig)
    again = rig.watch(rig.prefix, revision)
    rig.wait(lambda: len(again.events()) == 1)
    assert len(recorder.notices) == 2
    rig.close()


def test_dead_endpoint_is_left(server: EtcdServer) -> None:
    """With the first of two endpoints dead one call fails, the next goes to the other; so do watches."""
    rig = RealRig(server, [dead_url(), server.url])
    assert not failure(rig.range_or_failure(READ)[0]).ambiguous
    revision = rig.done(PUT).revision
    lost = RealRig(server, [dead_url(), server.url])
    recorder = lost.watch("/driver/", revision)
    lost.wait(recorder.lost)
    again = lost.watch("/driver/", revision)
    lost.wait(lambda: bool(again.events()))
    rig.close()
    lost.close()


def test_frozen_member_is_left() -> None:
    """In a cluster of three with one member frozen, a timeout moves the driver to another member."""
    with etcd_cluster() as servers:
        rig = RealRig(servers[0], [server.url for server in servers])
        eventually_put(rig)
        servers[0].pause()
        assert failure(rig.run(PUT, SHORT)).ambiguous
        eventually_put(rig)
        servers[0].resume()
        rig.close()


def test_watch_on_a_member_without_leader_is_lost() -> None:
    """A member cut off from the others ends the watch: a progress answer of it would prove nothing."""
    with etcd_cluster(arguments=HASTY) as servers:
        rig = RealRig(servers[0])
        eventually_put(rig)
        recorder = rig.watch("/driver/", rig.range(READ)[1])
        rig.wait(lambda: bool(recorder.events()))
        for server in servers[1:]:
            server.kill()
        rig.wait(recorder.lost, 30)
        rig.close()


def test_mutual_tls(tmp_path: Path) -> None:
    """The client's certificate is presented and the server's is checked; a stranger and a missing one are refused."""
    certificates = make_certificates(tmp_path)
    with EtcdServer(certificates=certificates) as server:
        rig = RealRig(server)
        recorder = rig.watch("/driver/", 1)
        rig.done(PUT)
        rig.wait(lambda: bool(recorder.events()))
        rig.close()
        wrong_ca = Tls(certificates.stranger.cert, certificates.client.cert, certificates.client.key)
        for tls in (certificates.stranger, Tls(certificates.ca), wrong_ca):
            with EtcdSync([server.url], tls, patience=SHORT) as client, pytest.raises(LockspaceError):
                client.range(READ)


def test_other_cluster(own_server: EtcdServer) -> None:
    """An etcd whose data were wiped answers with another cluster id: named as the wrong cluster."""
    rig = RealRig(own_server)
    rig.done(PUT)
    own_server.kill()
    shutil.rmtree(own_server.directory / "data")
    own_server.start(token="another")
    wait_for(lambda: failure(rig.run(PUT, SECOND)).wrong_cluster, "the other cluster is noticed")
    recorder = rig.watch("/driver/", 1)
    rig.wait(recorder.lost)
    rig.close()


def test_restored_backup(own_server: EtcdServer) -> None:
    """An etcd restored from a backup, same cluster id, is found out by its revision."""
    data = own_server.directory / "data"
    rig = RealRig(own_server)
    rig.done(PUT)
    own_server.stop()
    shutil.copytree(data, own_server.directory / "backup")
    own_server.start()
    eventually_put(rig)
    rig.done(PUT)
    own_server.stop()
    shutil.rmtree(data)
    (own_server.directory / "backup").rename(data)
    own_server.start()
    answers = []

    def answered() -> bool:
        answers.append(failure(rig.range_or_failure(READ)[0]))
        return answers[-1].wrong_cluster

    wait_for(answered, "the older history is noticed")
    assert "restored from a backup" in answers[-1].message
    rig.close()


def test_status(rig: RealRig) -> None:
    """The member's version and size are read; it has no alarms."""
    answers: list[Status | Failure] = []
    rig.etcd.status(SECOND, answers.append)
    rig.wait(lambda: bool(answers))
    status = answers[0]
    assert isinstance(status, Status)
    assert status.version.startswith("3.")
    assert status.db_size > 0
    assert status.alarms == ()


def test_big_answers(rig: RealRig) -> None:
    """A watch that starts in the past brings more than gRPC's default 4 MiB, in fragments joined again."""
    base = rig.range(READ)[1]
    for number in range(6):
        rig.done(Txn((), (Put(f"{rig.prefix}{number}", bytes(1_000_000)),)))
    recorder = rig.watch(rig.prefix, base + 1)
    rig.wait(lambda: len(recorder.events()) == 6)
    assert [key for key, _, _ in recorder.events()] == [f"{rig.prefix}{number}" for number in range(6)]


def test_close_leaves_no_threads(server: EtcdServer) -> None:
    """Closing with calls in flight, a watch open and one cancelled, and etcd frozen, is quick and leaves no thread."""
    before = set(threading.enumerate())
    rig = RealRig(server)
    rig.done(PUT)
    rig.watch("/driver/", 1)
    rig.watch("/driver/", 1).watch.cancel()
    server.pause()
    try:
        answers: list[object] = []
        rig.kv.txn(PUT, 60 * SECOND, answers.append)
        begun = time.monotonic()
        rig.close()
        rig.close()
        assert time.monotonic() - begun < 5
        wait_for(lambda: set(threading.enumerate()) <= before, "gRPC's threads end")
    finally:
        server.resume()
    while not rig.posted.empty():
        rig.posted.get()()
    assert not answers


@pytest.mark.parametrize("backend", ["default", "python"])
def test_protobuf_backend(server: EtcdServer, backend: str) -> None:
    """The driver imports and works in a fresh process with protobuf's default and its pure-Python backend."""
    program = (
        "import sys; from snapd.lockspace.etcd_sync import *; from snapd.lockspace.kv import *;"
        "from google.protobuf.internal import api_implementation as a;"
        "k = EtcdSync([sys.argv[1]]); r = k.txn(Txn((), (Put('/b', b'1'), Range('/b'))));"
        "print(r.results[1].kvs[0].value, a.Type()); k.close()"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROTOCOL_BUFFERS")}
    if backend == "python":
        environment["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
    command = [sys.executable, "-c", program, server.url]
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    value, kind = answer.stdout.split()
    assert value == "b'1'"
    assert (kind == "python") == (backend == "python")


def test_sync_retries_what_is_definite(server: EtcdServer) -> None:
    """Blocking calls go round dead endpoints, reads and writes alike; an ambiguous write is not repeated."""
    with EtcdSync([dead_url(), dead_url(), server.url]) as client:
        revision = client.txn(PUT).revision
    with EtcdSync([dead_url(), server.url]) as client:
        assert client.range(READ).kvs[0].mod_revision == revision
        assert [kv.key for kv in client.read_prefix("/driver/")] == ["/driver/a"]
        assert client.status().version
        with pytest.raises(LockspaceError, match="duplicate key"):
            client.txn(Txn((), (Put("k", b""), Put("k", b""))))


def test_sync_gives_up(server: EtcdServer) -> None:
    """When nobody answers, a blocking call ends after its patience; what may have happened is named ambiguous."""
    begun = time.monotonic()
    with EtcdSync([dead_url()], patience=SECOND) as client, pytest.raises(LockspaceError, match="unavailable"):
        client.range(READ)
    assert time.monotonic() - begun < 8
    assert issubclass(Ambiguous, LockspaceError)


@pytest.mark.parametrize(
    ("code", "details", "ambiguous", "no_space", "refused"),
    [
        ("DEADLINE_EXCEEDED", "", True, False, False),
        ("UNAVAILABLE", "etcdserver: request timed out", True, False, False),
        ("CANCELLED", "", True, False, False),
        ("INTERNAL", "", True, False, False),
        ("UNKNOWN", "", True, False, False),
        ("DATA_LOSS", "", True, False, False),
        ("RESOURCE_EXHAUSTED", "Received message larger than max", True, False, False),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", False, False, False),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", False, True, False),
        ("PERMISSION_DENIED", "etcdserver: permission denied", False, False, True),
        ("UNAUTHENTICATED", "", False, False, True),
        ("INVALID_ARGUMENT", "", False, False, True),
    ],
)
def test_codes(code: str, details: str, ambiguous: bool, no_space: bool, refused: bool) -> None:
    """Each gRPC code says for a write what the caller must do; for a read nothing is ambiguous."""
    status = grpc.StatusCode[code]
    expected = Failure(f"etcd u: {code.lower().replace('_', ' ')}: {details}", ambiguous, no_space, refused=refused)
    assert to_failure(status, details, "u", writes=True) == expected
    assert not to_failure(status, details, "u", writes=False).ambiguous


def test_endpoints() -> None:
    """An endpoint is scheme, host and port; anything else, and TLS over plaintext, is refused by name."""
    assert parse_endpoint("http://127.0.0.1:2379") == ("127.0.0.1:2379", False)
    assert parse_endpoint("https://[::1]:2379/") == ("[::1]:2379", True)
    for bad in ("", "127.0.0.1:2379", "http://host", "ftp://host:1", "http://host:99999", "http://u@host:1/x"):
        with pytest.raises(ConfigError, match="expected http"):
            parse_endpoint(bad)
    with pytest.raises(ConfigError, match="plaintext"):
        Etcd(["http://127.0.0.1:1"], print, Tls("ca"))
    with pytest.raises(ConfigError, match="/nowhere"):
        Etcd(["https://127.0.0.1:1"], print, Tls("/nowhere"))
    with pytest.raises(ConfigError, match="no etcd endpoint"):
        Etcd([], print)
