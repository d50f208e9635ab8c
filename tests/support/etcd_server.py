"""A real etcd on loopback, for tests: one member or three, plaintext or mutual TLS.

    with EtcdServer() as server:
        Etcd([server.url], ...)

Data lie in memory where there is /dev/shm. Ready means: a linearizable read was answered. Nothing is waited for by
sleeping a fixed time.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from snapd.errors import LockspaceError
from snapd.lockspace.etcd import Tls
from snapd.lockspace.etcd_sync import EtcdSync
from snapd.lockspace.kv import Range

BINARY = "/usr/bin/etcd"
START_TIMEOUT = 20.0  # seconds
ALONE = ("--heartbeat-interval", "20", "--election-timeout", "100")  # a single member elects itself sooner
SECOND = 1_000_000_000


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(condition: Callable[[], bool], what: str, timeout: float = START_TIMEOUT) -> None:
    """Look again and again; AssertionError when the time is over."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.01)


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files. Server and client are signed by ``ca``; ``stranger`` is signed by nobody known."""

    ca: str
    server: Tls
    client: Tls
    stranger: Tls


def make_certificates(directory: Path) -> Certificates:
    """Make a CA, a server for 127.0.0.1, a client with CN csnap and a self-signed stranger."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "stranger"):
        openssl(
            "req",
            "-x509",
            *curve,
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.pem",
        )
    (directory / "san").write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    for name in ("server", "csnap"):
        openssl("req", "-new", *curve, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san")
        openssl("x509", "-req", "-in", f"{name}.csr", *sign, "-out", f"{name}.pem")

    def tls(name: str) -> Tls:
        return Tls(str(directory / "ca.pem"), str(directory / f"{name}.pem"), str(directory / f"{name}.key"))

    return Certificates(str(directory / "ca.pem"), tls("server"), tls("csnap"), tls("stranger"))


class EtcdServer:
    """One etcd process: ``start``, ``stop``, ``kill``, ``pause``, ``resume``. Its context manager removes its data."""

    def __init__(
        self,
        *,
        name: str = "n0",
        ports: tuple[int, int] | None = None,
        cluster: str = "",
        certificates: Certificates | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        client, peer = ports or tuple(free_ports(2))
        base = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.directory = Path(tempfile.mkdtemp(prefix="csnap-etcd-", dir=base))
        self.url = f"{'https' if certificates else 'http'}://127.0.0.1:{client}"
        self.client_tls = certificates.client if certificates else None
        self._peer = f"http://127.0.0.1:{peer}"
        self._name = name
        self._cluster = cluster or f"{name}={self._peer}"
        self._certificates = certificates
        self._arguments = [*(() if cluster else ALONE), *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EtcdServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()

    def start(self, wait: bool = True, token: str = "csnap-test") -> None:
        """Start on the data that are there; a ``token`` of its own makes a new cluster another one."""
        command = [BINARY, "--name", self._name, "--data-dir", str(self.directory / "data")]
        command += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        command += ["--listen-peer-urls", self._peer, "--initial-advertise-peer-urls", self._peer]
        command += ["--initial-cluster", self._cluster, "--initial-cluster-token", token]
        command += ["--logger", "zap", "--log-level", "warn", *self._arguments]
        if self._certificates:
            server = self._certificates.server
            command += ["--cert-file", server.cert, "--key-file", server.key]
            command += ["--trusted-ca-file", server.ca, "--client-cert-auth"]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Return when a linearizable read is answered."""
        try:
            with EtcdSync([self.url], self.client_tls, patience=int(START_TIMEOUT) * SECOND) as client:
                client.range(Range("ready"))
        except LockspaceError as error:
            raise AssertionError(f"{error}\n{(self.directory / 'log').read_text()[-2000:]}") from error

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP; returns when the process is stopped."""
        self._signal(signal.SIGSTOP)
        wait_for(lambda: self._state() == "T", "etcd is stopped", 5)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def destroy(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def compact(self, revision: int) -> None:
        """Compact by the JSON gateway (plaintext servers only): the driver has no use for it."""
        body = json.dumps({"revision": revision, "physical": True}).encode()
        request = urllib.request.Request(f"{self.url}/v3/kv/compaction", body, {"Content-Type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            answer.read()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _state(self) -> str:
        assert self._process is not None
        return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextmanager
def etcd_cluster(count: int = 3, arguments: Sequence[str] = ()) -> Iterator[list[EtcdServer]]:
    """Start a cluster of ``count`` members that has a leader."""
    ports = free_ports(2 * count)
    pairs = list(zip(ports[:count], ports[count:], strict=True))
    cluster = ",".join(f"n{i}=http://127.0.0.1:{peer}" for i, (_, peer) in enumerate(pairs))
    with ExitStack() as stack:
        servers = [
            EtcdServer(name=f"n{i}", ports=pair, cluster=cluster, arguments=arguments) for i, pair in enumerate(pairs)
        ]
        for server in servers:
            stack.callback(server.destroy)
        for server in servers:
            server.start(wait=False)
        for server in servers:
            server.wait_ready()
        yield servers
