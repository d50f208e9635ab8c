"""A client in a host: it writes stamped blocks and reads them back until it is told to stop, and says what came of it.

``Load`` is for tests; the rest runs in the host, where libnbd's module is, as ``python3 load.py AREA``.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

SOCKET = "/run/csnap/vmstore/nbd.sock"
STARTED, RESULT = "/run/load.started", "/run/load.json"
BLOCK = 4096
AREA = 4 << 20  # bytes; each load has one of its own
STRIDE = 7 * BLOCK  # so that chunks and regions are come back to
BEGUN = 10  # requests, after which it says that it is at work
LIMIT = 10  # errors, after which it gives up
PATIENCE = 20  # seconds until it is at work


@dataclass(frozen=True)
class Result:
    requests: int
    errors: list[str]
    longest: float  # seconds that one write and its read took


class Load:
    """On one host, in an area of its own: begins with the context, and ``result`` is there when it ends."""

    def __init__(self, host: Any, area: int) -> None:
        self._host = host
        self._area = area
        self.result = Result(0, ["it has not ended"], 0.0)

    def __enter__(self) -> Load:
        self._host.write("/root/load.py", Path(__file__).read_text())
        self._host.run("rm", "-f", RESULT, STARTED)
        self._host.run("systemd-run", "--quiet", "--unit=load", "python3", "/root/load.py", str(self._area))
        end = time.monotonic() + PATIENCE
        while not (self._host.root / STARTED.lstrip("/")).exists():
            assert time.monotonic() < end, self._host.journal("load")
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._host.run("systemctl", "stop", "load", check=False)
        found = self._host.call("cat", RESULT)
        if kind is None:
            assert found.returncode == 0, self._host.journal("load")
            self.result = Result(**json.loads(found.stdout))
            print(f"{self._host.name}: {self.result}")


def main(area: int) -> None:
    import nbd  # type: ignore[import-not-found]  # the distribution's, in the host

    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    client = nbd.NBD()
    client.set_export_name("origin")
    client.connect_unix(SOCKET)
    requests, longest, errors = 0, 0.0, []
    while not stopped and len(errors) < LIMIT:
        begun = time.monotonic()
        offset = area * AREA + requests * STRIDE % AREA
        data = f"{area} {requests} {offset}".encode().ljust(BLOCK, b".")
        try:
            client.pwrite(data, offset)
            if client.pread(BLOCK, offset) != data:
                errors.append(f"at {offset}: not what was written")
        except nbd.Error as error:
            errors.append(str(error))
        requests += 1
        longest = max(longest, time.monotonic() - begun)
        if requests == BEGUN:
            Path(STARTED).touch()
    Path(RESULT).write_text(json.dumps({"requests": requests, "errors": errors, "longest": round(longest, 3)}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
