#!/usr/bin/python3 -I
"""A fence agent for tests: SIGKILL to whoever has the lock file in ``directory`` open, which control and worker have.

Exit 0 only when the lock file can be had: then neither runs any more. ``delay``: seconds that it takes before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from pathlib import Path

LIMIT = 10.0  # seconds for the killed to end


def holders(path: Path) -> list[int]:
    """Return the processes that have this file open."""
    wanted = path.stat()
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            statuses = [descriptor.stat() for descriptor in (process / "fd").iterdir()]
        except OSError:  # gone meanwhile
            continue
        if any((status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino) for status in statuses):
            found.append(int(process.name))
    return found


def main() -> int:
    options = dict(line.rstrip("\n").split("=", 1) for line in sys.stdin)
    path = Path(options["directory"]) / "lock"
    if not path.exists():
        print(f"{path}: no such file", file=sys.stderr)
        return 1
    time.sleep(float(options.get("delay", "0")))
    for pid in holders(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + LIMIT
    with open(path) as file:
        while time.monotonic() < end:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.02)
            else:
                return 0
    print(f"{path}: still held", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
