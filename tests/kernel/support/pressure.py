"""In the guest: a file system on the device, more dirtied than there is memory, another process eats the rest."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from snapd.units import MIB
from tests.kernel.support.guest_host import Unit, fact, wait_for

FOLDER = Path("/mnt")
FILES, FILE = 4, 20 * MIB
ROUNDS = 2
LEFT = 24 * MIB
"""What the eater leaves of what the kernel calls available: a little above the kernel's own reserve."""

PF_MEMALLOC_NOIO, PF_LOCAL_THROTTLE = 0x00080000, 0x00100000
"""Flags of a task, in /proc/<pid>/stat: what PR_SET_IO_FLUSHER sets."""


def available() -> int:
    words = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(words["MemAvailable"].split()[0]) * 1024


def eat() -> None:
    """Take memory whenever there is more than LEFT, page by page, until killed."""
    Path("/proc/self/oom_score_adj").write_text("1000")
    taken = []
    while True:
        if available() > LEFT + MIB:
            piece = mmap.mmap(-1, MIB)
            piece[:] = b"e" * MIB
            taken.append(piece)
        else:
            with contextlib.suppress(IndexError):
                for piece in taken[:8]:
                    piece[0:1] = b"f"
            time.sleep(0.01)


class Eater:
    """One after the other: the kernel kills it when even locked memory becomes too little, and nothing else."""

    def __init__(self) -> None:
        self._wanted, self._killed = True, 0
        self._process = self._start()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "from tests.kernel.support.pressure import eat; eat()"])

    def _run(self) -> None:
        while True:
            self._process.wait()
            if not self._wanted:
                return
            self._killed += 1
            self._process = self._start()

    def stop(self) -> int:
        self._wanted = False
        self._process.kill()
        self._thread.join()
        return self._killed


def protected(pid: int) -> bool:
    """Whether its memory is locked, and every thread of it marked as one that write-back waits for."""
    locked = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmLck")]
    flags = [
        int((task / "stat").read_text().rpartition(")")[2].split()[6]) for task in Path(f"/proc/{pid}/task").iterdir()
    ]
    wanted = PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE
    return int(locked[0].split()[1]) > 0 and all(flag & wanted == wanted for flag in flags)


class Filler:
    """Writes one file over and over through the page cache, and keeps what it must hold."""

    def __init__(self, number: int) -> None:
        self.path = FOLDER / f"file{number}"
        self.number = number
        self.rounds = 0
        self.error = ""
        self.pieces = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def piece(self, round_: int, index: int) -> bytes:
        return f"{self.number:4}{round_:4}{index:8}".encode() * (MIB // 16)

    def _run(self) -> None:
        try:
            for round_ in range(1, ROUNDS + 1):
                with open(self.path, "r+b" if self.rounds else "w+b", buffering=0) as file:
                    for index in range(FILE // MIB):
                        file.write(self.piece(round_, index))
                        self.pieces += 1
                    os.fsync(file.fileno())
                self.rounds = round_
        except OSError as error:
            self.error = str(error)

    def join(self) -> None:
        self._thread.join()

    def wrong(self) -> int:
        with open(self.path, "rb") as file:
            return sum(file.read(MIB) != self.piece(ROUNDS, index) for index in range(FILE // MIB))


def run(device: str, daemon: Unit, attach: Unit) -> None:
    fact("memory", f"{os.sysconf('SC_PHYS_PAGES') * 4096 // MIB} MiB, {available() // MIB} MiB available")
    worker = daemon.children()[0]
    for name, pid in (("attach", attach.process.pid), ("worker", worker), ("control", daemon.process.pid)):
        fact(f"{name}-protected", protected(pid))
    for knob, value in (("dirty_ratio", "70"), ("dirty_background_ratio", "60")):
        Path(f"/proc/sys/vm/{knob}").write_text(value)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0", device], check=True)
    subprocess.run(["mount", "-t", "ext4", device, FOLDER], check=True)
    eater = Eater()
    wait_for(lambda: available() < LEFT + 2 * MIB, "the memory is eaten")
    began = time.monotonic()
    fillers = [Filler(number) for number in range(FILES)]
    least = available()
    while any(filler.rounds < ROUNDS and not filler.error for filler in fillers):
        before = sum(filler.pieces for filler in fillers), sum(filler.rounds for filler in fillers)
        wait_for(
            lambda before=before: (sum(one.pieces for one in fillers), sum(one.rounds for one in fillers)) != before,
            "progress under memory pressure",
            limit=30,
        )
        least = min(least, available())
    for filler in fillers:
        filler.join()
    fact("pressure-seconds", f"{time.monotonic() - began:.0f}")
    fact("pressure-written", f"{FILES * FILE * ROUNDS // MIB} MiB, least available {least // MIB} MiB")
    fact("pressure-errors", [filler.error for filler in fillers if filler.error] or 0)
    fact("eaters-killed", eater.stop())
    subprocess.run(["umount", FOLDER], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")
    checked = subprocess.run(["e2fsck", "-f", "-n", device], capture_output=True, text=True)
    fact("fsck", f"{checked.returncode} {checked.stdout.strip().splitlines()[-1:]}")
    subprocess.run(["mount", "-t", "ext4", "-o", "ro", device, FOLDER], check=True)
    fact("pressure-wrong", sum(filler.wrong() for filler in fillers))
    subprocess.run(["umount", FOLDER], check=True)
    fact("same-daemon", worker == daemon.children()[0])
