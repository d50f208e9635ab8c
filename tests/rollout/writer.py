"""Runs in a host: writes stamped blocks by one NBD connection until SIGTERM, reads them back, says how it went.

    python3 writer.py SOCKET FIRST COUNT RESULT

Blocks FIRST to FIRST + COUNT - 1 are this writer's own. A connection that breaks is not made again: it is an error.
"""

import json
import random
import signal
import sys
import time
from pathlib import Path

import nbd

BLOCK = 4096
PACE = 0.002  # seconds between requests: the hosts share two cores with Ansible


def main(socket: str, first: int, count: int, result: Path) -> None:
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    handle = nbd.NBD()
    handle.set_export_name("origin")
    handle.connect_unix(socket)
    written = {}
    requests = errors = 0
    longest = 0.0
    said = []

    def timed(call, *arguments):
        nonlocal requests, errors, longest
        begun = time.monotonic()
        try:
            return call(*arguments)
        except nbd.Error as error:
            errors += 1
            said.append(str(error))
            stopped.append(True)
        finally:
            requests += 1
            longest = max(longest, time.monotonic() - begun)

    def check(block):
        nonlocal errors
        found = timed(handle.pread, BLOCK, block * BLOCK)
        if found is not None and bytes(found) != written[block]:
            errors += 1
            said.append(f"block {block}: not what was acknowledged")

    sequence = 0
    result.with_suffix(".started").touch()
    while not stopped:
        sequence += 1
        block = first + random.randrange(count)
        content = f"{block} {sequence};".encode().ljust(BLOCK, b"\n")
        timed(handle.pwrite, content, block * BLOCK)
        if not errors:
            written[block] = content
            check(block if sequence % 2 else random.choice(list(written)))
        time.sleep(PACE)
    if not errors:
        for block in written:
            check(block)
    result.write_text(json.dumps({"requests": requests, "errors": errors, "longest": longest, "said": said[:5]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
