"""Control process and worker: channel, deaths, and a ``serve`` whose etcd never answers. Real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapd import counters
from snapd.cli.client import ask
from snapd.daemon.lockfile import LockFile
from snapd.daemon.loop import Loop
from snapd.daemon.workerproc import Worker
from snapd.messages import Fatal, Hello, Message, Stop, Stopped
from snapd.units import KIB, MIB, SECOND
from snapd.worker.launch import WorkerSettings
from tests.support.etcd_server import wait_for

ROOT = Path(__file__).parents[2]
UUID = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"


# ---- the worker


class Scene:
    """A worker under a loop; messages are kept."""

    def __init__(self, directory: Path, origin: str = "origin") -> None:
        (directory / "origin").write_bytes(bytes(4 * MIB))
        self.loop = Loop()
        self.lock = LockFile(str(directory / "lock"))
        assert self.lock.take()
        self.messages: list[Message] = []
        self.codes: list[int] = []
        nbd = str(directory / "nbd.sock")
        settings = WorkerSettings(
            UUID, "vol", "clusterized_persistent", str(directory / origin), True, 16 * KIB, MIB, nbd
        )
        self.worker = Worker(self.loop, settings, self.lock.fd, self.messages.append, self.codes.append)

    def until(self, kind: type) -> None:
        """Run the loop until such a message has come."""
        end = self.loop.now() + 20 * SECOND
        while not any(isinstance(message, kind) for message in self.messages):
            assert self.loop.now() < end, self.messages
            self.loop.turn(0.05)

    def until_ended(self) -> int:
        end = self.loop.now() + 20 * SECOND
        while not self.codes:
            assert self.loop.now() < end
            self.loop.turn(0.01)
            self.loop._run_due()
        return self.codes[0]

    def close(self) -> None:
        self.worker.close()
        self.lock.close()
        self.loop.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


def test_a_worker_says_hello_and_stops_when_told(scene: Scene) -> None:
    """Hello, then Stopped after Stop, then its death with code 0, reported once."""
    scene.until(Hello)
    assert scene.worker.alive and scene.worker.words[counters.DIRECT] in (0, 1)
    scene.worker.send(Stop())
    scene.until(Stopped)
    assert scene.until_ended() == 0
    assert scene.codes == [0] and not scene.worker.alive


def test_a_worker_that_cannot_begin_says_why_before_its_death_is_told(tmp_path: Path) -> None:
    """The Fatal message is received, however close on it the end comes."""
    scene = Scene(tmp_path, origin="absent")
    assert scene.until_ended() == 1
    fatal = [message for message in scene.messages if isinstance(message, Fatal)]
    assert "absent: cannot be opened" in fatal[0].reason
    scene.close()


def test_a_killed_worker_is_noticed(scene: Scene) -> None:
    """By its pidfd, with the signal; sending to it afterwards does nothing."""
    scene.until(Hello)
    os.kill(scene.worker.pid, signal.SIGKILL)
    assert scene.until_ended() == -signal.SIGKILL
    scene.worker.send(Stop())
    scene.worker.kill()


def test_sending_to_a_dying_worker_is_no_error(scene: Scene) -> None:
    """The channel breaks before the death is seen: the death is reported all the same, once."""
    scene.until(Hello)
    os.kill(scene.worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, scene.worker.pid, os.WEXITED | os.WNOWAIT)
    scene.worker.send(Stop())
    assert scene.until_ended() == -signal.SIGKILL
    assert len(scene.codes) == 1


# ---- serve, without etcd

CONFIG = """
[volume]
name = "vol"
cluster_uuid = "{uuid}"
origin = "{directory}/origin"
chunk_size = "16KiB"
type = "{type}"
[node]
name = "host-a"
machine_id = "0123456789abcdef0123456789abcdef"
[lockspace]
endpoints = ["http://127.0.0.1:9"]
lease_ttl = 2
[export]
directory = "{directory}/run"
[metrics]
listen = "127.0.0.1:0"
[fencing]
method = "unsafe"
"""


class Serve:
    """A ``csnap serve`` whose etcd is a port that nobody listens on."""

    def __init__(self, directory: Path, store_type: str = "clusterized_persistent") -> None:
        self.directory = directory
        self.config = directory / "vol.toml"
        self.config.write_text(CONFIG.format(uuid=UUID, directory=directory, type=store_type))
        (directory / "origin").write_bytes(bytes(4 * MIB))
        self.log = directory / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "snapd.cli", "serve", str(self.config)], cwd=ROOT, stdout=log, stderr=log
            )

    def ask(self, command: str, **fields: object) -> object:
        return ask(str(self.directory / "run" / "admin.sock"), {"command": command, **fields})

    def wait_for_etcd(self) -> None:
        wait_for(lambda: "waiting_for_etcd" in self.log.read_text(), "it says that it waits")

    def worker(self) -> int:
        text = next(line for line in self.log.read_text().splitlines() if " started " in line)
        return int(text.rpartition("worker=")[2])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    made = Serve(tmp_path)
    made.wait_for_etcd()
    yield made
    made.close()


def test_without_etcd_it_waits_and_says_so(serve: Serve) -> None:
    """State joining, with the reason; snapshots are refused by name; the metrics are there."""
    status = json.loads(json.dumps(serve.ask("status")))
    assert status["member"]["state"] == "joining"
    assert "127.0.0.1:9" in status["member"]["why"]
    assert status["member"]["fencing"] == "unsafe"
    assert serve.ask("locks") == []
    with pytest.raises(Exception, match="this host is joining, expected active"):
        serve.ask("snapshot-create", name="s1", cow="/x")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_planned_stop_without_etcd_ends_with_0(serve: Serve, number: signal.Signals) -> None:
    """Within ten seconds, also with etcd gone; the admin socket is removed."""
    begun = time.monotonic()
    serve.process.send_signal(number)
    assert serve.process.wait(10) == 0
    assert time.monotonic() - begun < 10
    assert not (serve.directory / "run" / "admin.sock").exists()


def test_the_workers_death_ends_the_daemon(serve: Serve) -> None:
    """Exit code 1 and a line that says why: a dead worker is a dead incarnation."""
    os.kill(serve.worker(), signal.SIGKILL)
    assert serve.process.wait(20) == 1
    assert "csnap: the worker ended: killed by signal 9" in serve.log.read_text()


def test_the_daemons_death_ends_the_worker(serve: Serve) -> None:
    """SIGKILL of the control process: the worker goes, and with it the lock file is free."""
    serve.process.kill()
    lock = LockFile(str(serve.directory / "run" / "lock"))
    wait_for(lock.take, "the lock file is free")
    lock.close()


def test_a_store_type_for_one_host_is_refused(tmp_path: Path) -> None:
    """By name, before anything is made."""
    serve = Serve(tmp_path, "clusterized_transient")
    assert serve.process.wait(20) == 1
    assert "clusterized_transient" in serve.log.read_text()
    assert len(serve.log.read_text().splitlines()) == 1
    assert not (tmp_path / "run").exists()
