"""The data path end to end: fio over NBD to a real worker on a real disk, beside another server in the same run.

    python -m bench.datapath [--rw randread] [--depth 16] [--block 4096] [--rounds 15] [--seconds 1]
                             [--snapshot] [--export origin] [--directory DIR] [--against "COMMAND"]

Both servers have an origin of 1 GiB of random bytes, written out, on the file system of DIR, opened with O_DIRECT. fio
(nbd engine, one job, one connection) loads them in turn, round by round, so that what else the machine does meets both.
Printed: the median and the range of requests per second, processor time of the server per request, and the worker's
memory; with --against the median of the rounds' ratios: a round's two halves are a second apart, so they meet the same
machine, which two medians on a shared one do not.

COMMAND is run by the shell, with ``{socket}`` and ``{directory}`` (which has ``origin.img`` and an empty ``cow.img``)
replaced; it serves an export ``origin``. --snapshot: a snapshot of 16 KiB chunks is taken first.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from snapd.units import GIB, KIB, MIB
from tests.support.worker_process import WorkerProcess, make_cow

SIZE = GIB
CHUNK = 16 * KIB
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """One of the two, and what was measured of it."""

    name: str
    socket: Path
    pid: int
    export: str
    rates: list[float] = field(default_factory=list)  # requests a second
    count: int = 0
    user: float = 0.0  # seconds of processor time
    system: float = 0.0

    def cpu(self) -> tuple[float, float]:
        """Seconds of processor time used so far: user, system."""
        text = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(text[11]) / TICKS, int(text[12]) / TICKS


def make_origin(path: Path) -> None:
    with open(path, "wb") as file:
        for _ in range(SIZE // MIB):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())


def make_other(directory: Path, origin: Path, command: str, stack: ExitStack) -> Server:
    os.link(origin, directory / "origin.img")
    with open(directory / "cow.img", "wb") as file:
        file.truncate(2 * SIZE)
    path = directory / "other.sock"
    filled = command.replace("{socket}", shlex.quote(str(path))).replace("{directory}", shlex.quote(str(directory)))
    process = subprocess.Popen(f"exec {filled}", shell=True, start_new_session=True)

    def end() -> None:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()

    stack.callback(end)
    deadline = time.monotonic() + 20
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{filled}: does not serve {path}")
        time.sleep(0.05)
    return Server("other", path, process.pid, "origin")


def load(server: Server, arguments: argparse.Namespace, seconds: float) -> None:
    """One round."""
    user, system = server.cpu()
    result = subprocess.run(
        [
            "fio", "--output-format=json", "--name=load", "--ioengine=nbd",
            f"--uri=nbd+unix:///{server.export}?socket={server.socket}", f"--rw={arguments.rw}",
            f"--bs={arguments.block}", f"--iodepth={arguments.depth}", f"--size={SIZE}", "--norandommap=1",
            "--time_based=1", f"--runtime={seconds}", "--randrepeat=0", "--random_generator=tausworthe64",
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    job = json.loads(result.stdout[result.stdout.index("{") :])["jobs"][0]
    count = job["read"]["total_ios"] + job["write"]["total_ios"]
    server.rates.append(job["read"]["iops"] + job["write"]["iops"])
    after = server.cpu()
    server.count += count
    server.user += after[0] - user
    server.system += after[1] - system


def show(server: Server) -> None:
    rates = sorted(server.rates)
    user, system = server.user / server.count * 1e6, server.system / server.count * 1e6
    print(
        f"{server.name:8} {statistics.median(rates):9.0f} requests/s (from {rates[0]:.0f} to {rates[-1]:.0f}), "
        f"{user:.1f} + {system:.1f} us of user and system time a request"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rw", default="randread")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--block", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--snapshot", action="store_true")
    parser.add_argument("--export", default="origin")
    parser.add_argument("--directory", type=Path, default=Path.cwd())
    parser.add_argument("--against", default="")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.directory, prefix="bench-")))
        origin = directory / "origin"
        make_origin(origin)
        worker = stack.enter_context(WorkerProcess(directory, origin, CHUNK, region=64 * MIB))
        if arguments.snapshot:
            worker.take(make_cow(directory / "cow", "s1", SIZE, CHUNK, 2 * SIZE, writable=True))
        servers = [Server("csnap-io", worker.socket, worker.process.pid, arguments.export)]
        if arguments.against:
            servers.append(make_other(directory, origin, arguments.against, stack))
        for server in servers:
            load(server, arguments, 1)  # warm up
            server.rates.clear()
            server.count, server.user, server.system = 0, 0.0, 0.0
        for round_ in range(arguments.rounds):
            for server in servers if round_ % 2 == 0 else servers[::-1]:
                load(server, arguments, arguments.seconds)
        print(f"{arguments.rw}, {arguments.block} bytes, depth {arguments.depth}, {arguments.export}")
        for server in servers:
            show(server)
        if arguments.against:
            ratios = sorted(mine / other for mine, other in zip(*(server.rates for server in servers), strict=True))
            print(f"ratio    {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")
        print(f"memory   {worker.resident() / MIB:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
