"""A real etcd on loopback, for tests: one member or three, plaintext or mutual TLS.

    with EtcdServer() as server:
        Etcd([server.url], ...)

Data lie in memory where there is /dev/shm. Ready means: a linearizable read was answered. Nothing is waited for by
sleeping a fixed time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.ports import free_ports
from snapd.errors import LockspaceError
from snapd.lockspace.etcd import Tls
from snapd.lockspace.etcd_sync import EtcdSync
from snapd.lockspace.kv import Range

BINARY = "/usr/bin/etcd"
START_TIMEOUT = 20.0  # seconds
ALONE = ("--heartbeat-interval", "20", "--election-timeout", "100")  # a single member elects itself sooner
GATEWAY_LIMIT = 5  # seconds
SECOND = 1_000_000_000


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
        address: str = "127.0.0.1",
        cluster: str = "",
        certificates: Certificates | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        client, peer = ports or tuple(free_ports(2))
        base = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.directory = Path(tempfile.mkdtemp(prefix="csnap-etcd-", dir=base))
        self.url = f"{'https' if certificates else 'http'}://{address}:{client}"
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
        """Compact up to ``revision``."""
        self._ask("kv/compaction", revision=revision, physical=True)

    def refuse_writes(self) -> None:
        """Raise the alarm NOSPACE, as etcd does when its database has reached the quota; ``alarm disarm`` ends it."""
        member = self._ask("maintenance/status")["header"]["member_id"]
        self._ask("maintenance/alarm", action="ACTIVATE", memberID=member, alarm="NOSPACE")

    def revision(self) -> int:
        """Return the newest revision."""
        return int(self._ask("kv/range", key="AA==")["header"]["revision"])

    def leads(self) -> bool:
        """Whether this member is the leader, by its own account; False if it does not answer."""
        try:
            status = self._ask("maintenance/status")
        except OSError:
            return False
        return bool(status.get("leader") == status["header"]["member_id"])

    def _ask(self, method: str, **body: object) -> dict[str, Any]:
        """Ask the JSON gateway (plaintext servers only): what the driver has no use for."""
        request = urllib.request.Request(
            f"{self.url}/v3/{method}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=GATEWAY_LIMIT) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def etcdctl(self, *arguments: str) -> str:
        """Run the distribution's etcdctl, as an administrator does; return what it prints."""
        environment = {**os.environ, "ETCDCTL_API": "3"}
        command = ["etcdctl", "--endpoints", self.url, *arguments]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_TIMEOUT)
        assert ended.returncode == 0, f"{command}: {ended.stderr}"
        return ended.stdout

    def restore(self, backup: Path, token: str = "csnap-test") -> None:
        """Kill it, and start it from what ``etcdctl snapshot save`` saved; a ``token`` of its own: another cluster."""
        self.wipe()
        data = ("--data-dir", str(self.directory / "data"), "--name", self._name)
        cluster = ("--initial-cluster", self._cluster, "--initial-cluster-token", token)
        self.etcdctl("snapshot", "restore", str(backup), *data, *cluster, "--initial-advertise-peer-urls", self._peer)
        self.start(token=token)

    def wipe(self) -> None:
        """Kill it and remove its data."""
        self.kill()
        shutil.rmtree(self.directory / "data")

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
def etcd_cluster(
    count: int = 3, arguments: Sequence[str] = (), addresses: Sequence[str] = ()
) -> Iterator[list[EtcdServer]]:
    """Start a cluster of ``count`` members that has a leader; clients find them at these addresses."""
    ports = free_ports(2 * count)
    pairs = list(zip(ports[:count], ports[count:], strict=True))
    cluster = ",".join(f"n{i}=http://127.0.0.1:{peer}" for i, (_, peer) in enumerate(pairs))
    with ExitStack() as stack:
        servers = [
            EtcdServer(name=f"n{i}", ports=pair, address=address, cluster=cluster, arguments=arguments)
            for i, (pair, address) in enumerate(zip(pairs, addresses or ["127.0.0.1"] * count, strict=True))
        ]
        for server in servers:
            stack.callback(server.destroy)
        for server in servers:
            server.start(wait=False)
        for server in servers:
            server.wait_ready()
        yield servers
