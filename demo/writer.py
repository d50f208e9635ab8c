"""A writer on one host: stamps blocks until told to stop, and notes every write in a journal.

usage: python -m demo.writer SOCKET JOURNAL HOST BLOCK_SIZE FIRST LAST SEED

Blocks are chosen at random in [FIRST, LAST). Each line of the journal is ``block sequence issued acknowledged``
(seconds on CLOCK_MONOTONIC); a last line may lack what did not happen any more. SIGTERM stops it at a request
boundary. Exit 0: told to stop; 1: a write failed; 3: the server is gone.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from pathlib import Path

from demo.history import NEVER, Write, stamp
from demo.nbd import NbdClient, NbdError

FAILED, GONE = 1, 3


def main(argv: list[str]) -> int:
    path, journal = argv[0], argv[1]
    host, size, first, last, seed = map(int, argv[2:])
    rng = random.Random(seed)
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    sequence = 0
    try:
        with NbdClient(path, "origin") as client, open(journal, "w", buffering=1) as notes:
            while not stopping:
                sequence += 1
                block = rng.randrange(first, last)
                issued = time.monotonic()
                notes.write(f"{block} {sequence} {issued:.9f} ")
                client.write(block * size, stamp(host, block, sequence, size))
                notes.write(f"{time.monotonic():.9f}\n")
    except NbdError as error:
        print(f"write {sequence}: {error}", file=sys.stderr)
        return FAILED
    except (ConnectionError, FileNotFoundError) as error:
        print(f"write {sequence}: {error}", file=sys.stderr)
        return GONE
    return 0


def read_journal(path: Path, host: int) -> list[Write]:
    """Return the writes of a journal; the last one may be unfinished."""
    writes = []
    for line in path.read_text().splitlines():
        fields = line.split()
        if len(fields) >= 3:
            acknowledged = float(fields[3]) if len(fields) > 3 else NEVER
            writes.append(Write(host, int(fields[0]), int(fields[1]), float(fields[2]), acknowledged))
    return writes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
