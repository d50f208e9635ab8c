"""Histories for a while on every core: ``python -m tests.sim.soak --minutes 10 --from 100000``; 1 if any failed."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

SHARE = 10_000_000
"""Seeds between one process's first and the next one's: more than any of them plays."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.soak")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--from", dest="first", type=int, default=100_000)
    arguments = parser.parse_args()
    processes = []
    for job in range(os.cpu_count() or 1):
        seeds = ["--seeds", f"{arguments.first + job * SHARE}-", "--seconds", str(arguments.minutes * 60)]
        processes.append(subprocess.Popen([sys.executable, "-m", "tests.sim", *seeds, "--keep-going"]))
    return max(process.wait() for process in processes)


if __name__ == "__main__":
    sys.exit(main())
