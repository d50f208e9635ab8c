"""What counting costs on the I/O path: the same requests through the same code, with and without what counts them.

    python -m bench.metrics_cost [--depth 16] [--batches 1500] [--runs 11] [--rw read|write] [--structured]

Two copies of snapd are loaded into one process: one as it is, one with REMOVED taken out of its source. Each has an
NBD server, a volume without snapshots, the AIO engine and an origin in /dev/shm. A batch of ``depth`` requests of 4 KiB
is sent, and the thread's processor time of serving it is measured; the two take turns batch by batch, so that both meet
the same machine. Printed for each run, a process of its own because where things lie in memory matters: the medians
of a request, and their difference. --same loads the same code twice: what the method itself is worth.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import socket
import statistics
import struct
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
BLOCK = 4096
SIZE = 64 << 20
CHUNK = 16 << 10
FOREVER = 1 << 62

REMOVED: tuple[tuple[str, str, str], ...] = (
    # the NBD server: a request's time, its bytes, the oldest
    ("nbd/transmission.py", "        now = desk.now = desk.clock()\n", "        now = 1\n"),
    (
        "nbd/transmission.py",
        "                if length != lot_length or kind != lot_kind:\n"
        "                    lot_kind, lot_length = kind, length\n"
        "                    if lot is not None:\n"
        "                        lot.left += run\n"
        "                    lot, run = Lot(self._rows[operation], length, now), 0\n"
        "                    desk.lots.order.append(lot)\n",
        "",
    ),
    (
        "nbd/transmission.py",
        "            if lot is not None:\n                lot.left += run\n",
        "            desk.begun += run\n",
    ),
    (
        "nbd/transmission.py",
        "        self.lots = Lots(words)\n",
        "        self.lots = Lots(words)\n        self.begun = 0\n",
    ),
    ("nbd/transmission.py", "finish, lot, cookie)", "finish, None, cookie)"),
    (
        "nbd/transmission.py",
        "        lot = request.lot\n"
        "        answered = lot.answered\n"
        "        lot.answered = answered + 1\n"
        "        if not answered:\n"
        "            desk.lots.fresh.append(lot)\n",
        "        desk.begun -= 1\n",  # the lots say what is in flight: without them a stop needs a number of its own
    ),
    (
        "nbd/server.py",
        "        if desk.lots.fresh:\n            desk.lots.settle(desk.now)\n",
        "",
    ),
    # the volume: cached uses of locks
    (
        "volume/volume.py",
        "            if len(parts) > 1 and self.admitting:\n                self._others += len(parts) - 1\n",
        "",
    ),
    ("volume/volume.py", "        self._others += 1\n", ""),
    # the engine: operations on the devices
    ("blockdev/aio.py", "done, arg, length, self._kick, device.read_row\n", "done, arg, length\n"),
    ("blockdev/aio.py", "done, arg, length, self._write_kick, device.write_row\n", "done, arg, length\n"),
    (
        "blockdev/aio.py",
        "            self._kick[0] = now or self._clock()\n"
        "            if gated:\n"
        "                self._write_kick[0] = self._kick[0]\n"
        "                self._write_kick = [0]\n"
        "            self._kick = [0]\n",
        "",
    ),
    (
        "blockdev/aio.py",
        "        calls, half, now = self._calls, self._slots // 2, self._clock()\n",
        "        calls, half = self._calls, self._slots // 2\n",
    ),
    ("blockdev/aio.py", "        kick, row, same = self._kick, 0, 0\n", ""),
    (
        "blockdev/aio.py",
        "            done, arg, want, its_kick, its_row = calls[slot]\n",
        "            done, arg, want = calls[slot]\n",
    ),
    (
        "blockdev/aio.py",
        "            if its_kick is kick and its_row == row:\n"
        "                same += 1\n"
        "            else:\n"
        "                if same:\n"
        "                    self._count(row, same, now - kick[0])\n"
        "                kick, row, same = its_kick, its_row, 1\n",
        "",
    ),
    (
        "blockdev/aio.py",
        "        self._count(row, same, now - kick[0])\n        return count\n",
        "        return count\n",
    ),
)


def take_out(package: Path) -> None:
    """Change the copy in ``package``: REMOVED is gone. Raises LookupError for what is not there any more."""
    for name, text, instead in REMOVED:
        path = package / name
        source = path.read_text()
        if text not in source:
            raise LookupError(f"{name} has no {text!r}")
        path.write_text(source.replace(text, instead))


class Copy:
    """One copy of snapd: its modules by name."""

    def __init__(self, directory: Path, changed: bool) -> None:
        shutil.copytree(ROOT / "snapd", directory / "snapd", ignore=shutil.ignore_patterns("__pycache__"))
        if changed:
            take_out(directory / "snapd")
        before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "snapd"}
        for name in before:
            del sys.modules[name]
        sys.path.insert(0, str(directory))
        importlib.invalidate_caches()
        names = (
            "counters",
            "blockdev.aio",
            "blockdev.arena",
            "blockdev.device",
            "nbd.listener",
            "nbd.server",
            "nbd.wire",
        )
        names += ("volume.volume", "worker.loop", "clock")
        self._modules = {name: importlib.import_module(f"snapd.{name}") for name in names}
        sys.path.remove(str(directory))
        for name in [name for name in sys.modules if name.partition(".")[0] == "snapd"]:
            del sys.modules[name]
        sys.modules.update(before)

    def __getitem__(self, name: str) -> ModuleType:
        return self._modules[name]


class Served:
    """A volume of a copy, served; and its client. The turn is that of worker.main."""

    def __init__(self, copy: Copy, directory: Path, origin: Path, arguments: argparse.Namespace) -> None:
        counters, aio, arena, device, server, volume, loop, clock = (
            copy[name]
            for name in (
                "counters", "blockdev.aio", "blockdev.arena", "blockdev.device", "nbd.server", "volume.volume",
                "worker.loop", "clock",
            )
        )  # fmt: skip
        memory = arena.Arena(96 << 20)
        self.words = memoryview(bytearray(counters.PAGE_BYTES)).cast("Q")
        self._heartbeat = counters.HEARTBEAT
        self.engine = aio.AioEngine(memory, words=self.words)
        pool = arena.SlotPool(memory, 256, 64 << 10, 34, 1 << 20)
        self.device = device.open_device(str(origin), exclusive=False, backend="origin")
        geometry = volume.Geometry(CHUNK, SIZE, 16)
        self.volume = volume.Volume(
            self.engine, self.device, geometry, lambda message: None, lambda: True, clock.boottime, self.words
        )
        self.volume.held = True
        self.volume.thaw()
        self.loop = loop.Loop()
        self._listener = copy["nbd.listener"].listen(str(directory / "nbd.sock"), 0o600)
        self.server = server.NbdServer(self._listener, self.loop, self.volume, pool, memory, self.words, clock.boottime)
        self.loop.register(self.engine.fileno(), loop.READABLE, lambda events: None)
        self.server.open()
        self._clock = clock.boottime
        self._again = False
        self.sent = self._requests(arguments)
        self._reply = arguments.depth * (20 + 8 if arguments.structured else 16)
        if arguments.rw == "read":
            self._reply += arguments.depth * BLOCK
        self._buffer = bytearray(1 << 20)
        self._sock = self._connect(copy["nbd.wire"], str(directory / "nbd.sock"), arguments.structured)

    @staticmethod
    def _requests(arguments: argparse.Namespace) -> bytes:
        kind, payload = (0, b"") if arguments.rw == "read" else (1, bytes(BLOCK))
        heads = (
            struct.pack(">IHHQQI", 0x25609513, 0, kind, cookie, cookie * 37 % 16384 * BLOCK, BLOCK)
            for cookie in range(arguments.depth)
        )
        return b"".join(head + payload for head in heads)

    def _connect(self, wire: Any, path: str, structured: bool) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
        sock.connect(path)
        hello = wire.CLIENT_FLAGS.pack(3)
        if structured:
            hello += wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_STRUCTURED_REPLY, 0)
        sock.sendall(hello + wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_EXPORT_NAME, 0))
        left = wire.GREETING.size + wire.EXPORT_SIZE.size + (wire.OPTION_REPLY.size if structured else 0)
        sock.setblocking(False)
        while left:
            self.turn()
            try:
                left -= len(sock.recv(left))
            except BlockingIOError:
                continue
        return sock

    def turn(self) -> None:
        """As in worker.main."""
        volume, engine = self.volume, self.engine
        self.loop.turn(0)
        now = self.server.desk.now = self._clock()
        volume.set_stalled(now >= FOREVER)
        engine.kick(now)
        while engine.reap():
            volume.end_turn()
            engine.kick()
        volume.end_turn()
        engine.kick()
        self._again = self.server.end_turn(now)
        self.words[self._heartbeat] = now

    def batch(self) -> float:
        """Serve one batch; return the seconds of processor time that it took."""
        self._sock.sendall(self.sent)
        left, spent = self._reply, 0.0
        while left:
            begun = time.thread_time()
            self.turn()
            spent += time.thread_time() - begun
            try:
                left -= self._sock.recv_into(self._buffer)
            except BlockingIOError:
                continue
        return spent

    def close(self) -> None:
        self._sock.close()
        self.turn()
        self.engine.close()
        self.device.close()
        self.server.stop()


def measure(arguments: argparse.Namespace) -> list[tuple[float, float]]:
    """One run: microseconds of a request, counted and plain; of each the median and the first tenth."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        served = []
        for which, changed in (("counted", False), ("plain", not arguments.same)):
            (directory / which).mkdir()
            origin = directory / which / "origin"
            with open(origin, "wb") as file:
                file.write(bytes(SIZE))
            served.append(Served(Copy(directory / which, changed), directory / which, origin, arguments))
        for _ in range(300):
            for each in served:
                each.batch()
        times: tuple[list[float], list[float]] = ([], [])
        for index in range(arguments.batches):
            for which in (0, 1) if index % 2 else (1, 0):
                times[which].append(served[which].batch() * 1e6 / arguments.depth)
        for each in served:
            each.close()
        return [(statistics.median(each), statistics.quantiles(each, n=10)[0]) for each in times]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--batches", type=int, default=1500)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--rw", choices=("read", "write"), default="read")
    parser.add_argument("--structured", action="store_true")
    parser.add_argument("--same", action="store_true")
    arguments = parser.parse_args()
    found = []
    for _ in range(arguments.runs):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            counted, plain = process.submit(measure, arguments).result()
        found.append((counted[0] - plain[0], counted[1] - plain[1]))
        print(
            f"counted {counted[0]:6.3f} us, plain {plain[0]:6.3f} us: {found[-1][0]:6.3f} us; "
            f"of the quickest tenth {found[-1][1]:6.3f} us",
            flush=True,
        )
    print(f"depth {arguments.depth}, {arguments.rw}, of a request, medians of the runs:")
    for what, values in zip(("batches", "the quickest tenth"), zip(*found, strict=True), strict=True):
        print(f"  {what}: {statistics.median(values):.2f} us ({min(values):.2f} to {max(values):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
