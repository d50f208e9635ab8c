"""In the guest: two hosts' helpers, each with its own iSCSI session to one origin and one COW device; one is fenced.

Prints ``@@FACT name value``; the test on the other side knows what the values must be.
"""

from __future__ import annotations

import mmap
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from snapd import config as configuration
from snapd.blockdev.aio import AioEngine
from snapd.blockdev.arena import Arena
from snapd.blockdev.device import open_device
from snapd.errors import CsnapError
from snapd.format.header import Header
from snapd.format.sidecar import Sidecar
from snapd.helper.client import Helper
from snapd.helper.server import Server
from snapd.helper.service import Service

CLUSTER = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"
CONFIG = """
[volume]
name = "vol"
cluster_uuid = "{cluster}"
origin = "{origin}"
chunk_size = "16KiB"
[node]
name = "{name}"
[lockspace]
endpoints = ["http://127.0.0.1:2379"]
[export]
directory = "{directory}"
[fencing]
method = "scsi-pr"
"""
BLOCK = 4096
STAMPS = 1 << 20
"""Where the hosts write on the origin; each its own block."""


class Host:
    """``origin`` and ``cow`` are this host's paths to the two LUNs."""

    def __init__(self, name: str, number: int, origin: str, cow: str) -> None:
        directory = Path("/run") / name
        directory.mkdir()
        path = directory / "vol.toml"
        path.write_text(CONFIG.format(cluster=CLUSTER, origin=origin, name=name, directory=directory))
        config = configuration.load(path)
        self.server = Server(config.export.helper, Service(config))
        threading.Thread(target=self.server.run, daemon=True).start()
        self.helper = Helper(config.export.helper)
        self.origin, self.cow = origin, cow
        self.at = STAMPS + number * BLOCK
        self.key = ""

    def both(self, verb: str, **fields: object) -> str:
        """Ask about both devices; the two answers, as text."""
        answers = [self.ask(verb, device=device, **fields) for device in (self.origin, self.cow)]
        return " ".join(answers)

    def ask(self, verb: str, **fields: object) -> str:
        try:
            answer = self.helper.ask(verb, **{"key": self.key, **fields})
        except CsnapError as error:
            return f"{type(error).__name__}"
        return ",".join(f"{name}={value}" for name, value in answer.items())

    def trial(self) -> str:
        steps = self.helper.ask("try", device=self.origin, key=self.key, no_reserve="")["steps"]
        return " ".join(f"{step['step']}={step['ok']}" for step in steps) + f" ({steps[2]['note']})"

    def write(self, device: str = "") -> int:
        """Write a block; 0, or the errno."""
        fd = os.open(device or self.origin, os.O_RDWR | os.O_DIRECT)
        try:
            with mmap.mmap(-1, BLOCK) as memory:
                os.pwrite(fd, memory, STAMPS + 8 * BLOCK)
            return 0
        except OSError as error:
            return error.errno or -1
        finally:
            os.close(fd)


class Writer:
    """Stamps its block of the origin as fast as it can, through the engine that the worker has."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.stamp = 0
        self.error = 0
        self.conflicts = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        device = open_device(self._host.origin, exclusive=False)
        arena = Arena(1 << 20)
        engine = AioEngine(arena, depth=8)
        engine.on_conflict = self._conflict
        where = arena.allocate(BLOCK)
        poll = select.poll()
        poll.register(engine.fileno(), select.POLLIN)

        def done(stamp: int, error: int) -> None:
            self.error = error
            if not error:
                self.stamp = stamp

        while not self._ended.is_set() and not self.error:
            stamp = self.stamp + 1
            arena.view[where : where + BLOCK] = stamp.to_bytes(8, "little") * (BLOCK // 8)
            engine.write(device, where, BLOCK, self._host.at, done, stamp)
            engine.kick()
            while engine.inflight:
                poll.poll(1000)
                engine.reap()
        engine.close()
        device.close()

    def _conflict(self) -> None:
        self.conflicts += 1

    def wait(self, reached: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not reached() and time.monotonic() < end:
            time.sleep(0.005)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


def read(host: Host, at: int) -> int:
    """The stamp that is on the disk, by ``host``'s path."""
    fd = os.open(host.origin, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, BLOCK) as memory:
            os.preadv(fd, [memory], at)
            return int.from_bytes(memory[:8], "little")
    finally:
        os.close(fd)


def fact(name: str, value: object) -> None:
    print(f"@@FACT {name} {value}", flush=True)


def format_cow(path: str) -> None:
    header = Header(True, 32)
    sidecar = Sidecar(CLUSTER, "3a0e8a70-6d8a-4c8f-a3a5-0f2f4f0f6a10", "s1", 16 << 20, 1)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, BLOCK) as memory:
        block = header.to_bytes() + sidecar.to_bytes(32)
        memory[: len(block)] = block
        os.pwrite(fd, memory, 0)
    os.close(fd)


def main(a_origin: str, a_cow: str, b_origin: str, b_cow: str) -> None:
    a, b = Host("host-a", 0, a_origin, a_cow), Host("host-b", 1, b_origin, b_cow)
    fact("foreign", a.ask("register", device=a_cow, key="1" * 16))
    format_cow(a_cow)

    fact("trial", a.trial())
    fact("after-trial", f"{a.write()} {b.write()}")

    a.key, b.key = "a" * 16, "b" * 16
    fact("a-registers", a.both("register"))
    fact("stranger", f"{b.write()} {b.write(b_cow)}")
    fact("b-registers", b.both("register"))
    fact("both-write", f"{a.write()} {b.write()} {b.write(b_cow)}")
    fact("verified", f"{a.both('verify')} {b.both('verify')} {a.write()} {b.write()}")
    fact("live-trial", b.trial())

    survivor, victim = Writer(a), Writer(b)
    victim.wait(lambda: victim.stamp > 20)
    fact("b-preempted", a.both("preempt", victim=b.key))
    then, mine = read(a, b.at), survivor.stamp
    victim.wait(lambda: victim.error != 0)
    survivor.wait(lambda: survivor.stamp > mine + 20)
    fact("victim", f"{victim.error} {victim.conflicts}")
    fact("victim-late", read(a, b.at) - then)
    fact("survivor", f"{survivor.error} {survivor.stamp > mine + 20}")
    survivor.stop()
    victim.stop()
    fact("fenced-writes", f"{b.write()} {b.write(b_cow)}")
    fact("fenced-verifies", f"{b.both('verify')} {a.both('verify')}")
    fact("fenced-preempts", b.both("preempt", victim=a.key))
    fact("again", a.both("preempt", victim=b.key))

    b.key = "c" * 16  # its next incarnation
    fact("b-returns", f"{b.both('register')} {b.write()}")
    fact("old-key", f"{a.both('preempt', victim='b' * 16)} {b.write()}")
    fact("holder-preempted", b.both("preempt", victim=a.key))
    fact("holder-writes", f"{a.write()} {a.write(a_cow)} {b.write()}")

    a.key = "d" * 16
    a.both("register")
    fact("holder-leaves", b.both("unregister", stay=True))
    fact("handed-over", a.both("preempt", victim=b.key, abort=False))
    fact("no-gap", f"{b.write()} {a.write()}")
    fact("last-leaves", a.both("unregister", stay=False))
    fact("free", f"{a.write()} {b.write()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
