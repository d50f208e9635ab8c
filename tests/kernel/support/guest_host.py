"""In the guest: a whole host, with what systemd does for it: daemon and attach program, restarted when they end.

etcd is outside, at SERVICE; the origin is /dev/vda, a snapshot's COW device /dev/vdb.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.service_manager import ServiceManager

PYTHON = ["/usr/bin/python3", "-s"]
RUN = Path("/run/csnap")
LIMIT = 120.0  # seconds; the guest is emulated, perhaps on a busy machine
RESTART = 2.0
"""RestartSec= of csnapd@.service."""

CONFIG = """
[volume]
name = "{name}"
cluster_uuid = "{uuid}"
origin = "/dev/vda"
chunk_size = "16KiB"
[node]
name = "host-a"
machine_id = "{machine}"
[lockspace]
endpoints = ["http://10.0.2.100:10809"]
allow_old_etcd = true
[export]
directory = "/run/csnap"
[metrics]
listen = ""
[fencing]
method = "unsafe"
[attach]
device = "/dev/nbd0"
"""
UUID, OTHER_UUID = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11", "6b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a12"


def fact(name: str, value: object) -> None:
    print(f"@@FACT {name} {value}", flush=True)


def wait_for(reached: Callable[[], bool], what: str, limit: float = LIMIT) -> None:
    end = time.monotonic() + limit
    while not reached():
        if time.monotonic() > end:
            for log in sorted(RUN.glob("*.log")):
                print(log.name, log.read_text(), flush=True)
            print(f"@@DIE not within {limit} s: {what}", flush=True)
            raise SystemExit(1)
        time.sleep(0.01)


def configure(name: str = "vol", uuid: str = UUID) -> str:
    RUN.mkdir(exist_ok=True)
    path = RUN / f"{name}.toml"
    path.write_text(CONFIG.format(name=name, uuid=uuid, machine="0" * 31 + "1"))
    return str(path)


def csnap(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYTHON, "-m", "snapd.cli", *arguments], capture_output=True, text=True, timeout=LIMIT)


class Unit:
    """A program that is started again when it ends by itself, as its unit says. manager: keeps what it hands over."""

    def __init__(self, name: str, *arguments: str, restart: float, manager: ServiceManager | None = None) -> None:
        self.name = name
        self._command = [*PYTHON, "-m", "snapd.cli", *arguments]
        self._restart = restart
        self._pause = restart
        self._manager = manager
        self._wanted = True
        self.log = RUN / f"{name}.log"
        self._start()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _start(self) -> None:
        if self._manager is not None:
            self.process = self._manager.start(self._command, os.environ, self.log)
            return
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _watch(self) -> None:
        while True:
            self.process.wait()
            if not self._wanted:
                return
            time.sleep(self._pause)
            self._pause = self._restart
            self._start()

    def restart(self) -> None:
        """As `systemctl restart`: stopped, and started at once."""
        self._pause = 0
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM; return the exit code."""
        self._wanted = False
        self.process.terminate()
        self._thread.join(LIMIT)
        return self.process.wait(LIMIT)

    def said(self, word: str) -> int:
        """How many lines of its log have the word in them."""
        return sum(word in line for line in self.log.read_text().splitlines())

    def children(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    def show(self) -> None:
        for line in self.log.read_text().splitlines():
            print(f"{self.name}: {line}", flush=True)


PAUSE = 0.02
"""Seconds between two writes of a thread: the one emulated processor is also to start programs."""


class Writer:
    """Stamps blocks of its own part of a device with O_DIRECT, one at a time, and reads back what it wrote before.

    Every block holds (position, stamp); ``stamps`` are those acknowledged.
    """

    BLOCK = 4096

    def __init__(self, path: str, begin: int, blocks: int) -> None:
        self._path, self._begin, self._blocks = path, begin, blocks
        self.stamps = [0] * blocks
        self.count = 0
        self.error = ""
        self.stall, self.acknowledged = 0.0, time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _block(self, index: int, stamp: int) -> bytes:
        word = (self._begin + index).to_bytes(8, "little") + stamp.to_bytes(8, "little")
        return word * (self.BLOCK // 16)

    def _run(self) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_DIRECT)
        memory = mmap.mmap(-1, self.BLOCK)
        try:
            while not self._ended.is_set():
                index = self.count * 7 % self._blocks
                place = (self._begin + index) * self.BLOCK
                if self.stamps[index]:
                    os.preadv(descriptor, [memory], place)
                    if memory[:] != self._block(index, self.stamps[index]):
                        self.error = f"block {index}: not what was acknowledged"
                        return
                memory[:] = self._block(index, self.stamps[index] + 1)
                os.pwritev(descriptor, [memory], place)
                self.stamps[index] += 1
                self.count += 1
                now = time.monotonic()
                self.stall = max(self.stall, now - self.acknowledged)
                self.acknowledged = now
                self._ended.wait(PAUSE)
        except OSError as error:
            self.error = str(error)
        finally:
            os.close(descriptor)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def verify(self, path: str) -> int:
        """How many blocks of the device do not hold what was acknowledged last."""
        wrong = 0
        descriptor = os.open(path, os.O_RDONLY)
        for index, stamp in enumerate(self.stamps):
            if stamp:
                found = os.pread(descriptor, self.BLOCK, (self._begin + index) * self.BLOCK)
                wrong += found != self._block(index, stamp)
        os.close(descriptor)
        return wrong


class Writers:
    """Four threads; ``outage`` is the longest that one of them waited since ``mark``."""

    def __init__(self, path: str, count: int = 4, blocks: int = 64) -> None:
        self.path = path
        self.all = [Writer(path, number * 1024, blocks) for number in range(count)]

    def mark(self) -> None:
        for writer in self.all:
            writer.stall = 0.0

    def go_on(self, count: int = 20) -> None:
        """Until each has written so much more, or has failed."""
        wanted = [writer.count + count for writer in self.all]
        wait_for(
            lambda: all(one.count >= most or one.error for one, most in zip(self.all, wanted, strict=True)), "writing"
        )

    @property
    def stall(self) -> float:
        return max(writer.stall for writer in self.all)

    @property
    def errors(self) -> list[str]:
        return [writer.error for writer in self.all if writer.error]

    def stop(self) -> None:
        for writer in self.all:
            writer.stop()

    def wrong(self, path: str) -> int:
        return sum(writer.verify(path) for writer in self.all)


EATER = "oom_score_adj:1000"
"""In the kernel's line about a process killed for want of memory: the one that was started to be that."""


def complaints() -> None:
    """Whatever the kernel says that it should not."""
    listed = subprocess.run(["/bin/busybox", "dmesg"], capture_output=True, text=True).stdout
    wrong = ("I/O error", "EXT4-fs error", "blocked for more", "Out of memory", "BUG:")
    for line in listed.splitlines():
        if EATER not in line and any(words in line for words in wrong):
            print(f"@@COMPLAINT kernel {line}", flush=True)
