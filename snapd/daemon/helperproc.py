"""The privileged helper of this volume: found at its socket, or, by a ``serve`` that runs as root, started as a child.

Started before gRPC exists in this process. It ends with this process (it asks the kernel for that itself): a watchdog
in its hands is then petted no more.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import snapd
from snapd.config import Config
from snapd.errors import CsnapError, NoDaemon, Refused
from snapd.helper.client import Helper

LOOK_LIMIT = 1.0  # seconds for one that listens to answer
START_LIMIT = 20.0  # ... for one that is started; a busy machine starts Python slowly
LOOK_AGAIN = 0.05
END_LIMIT = 2.0


class HelperProcess:
    """Raises Refused if there is none and none can be started."""

    def __init__(self, config: Config) -> None:
        self._helper = Helper(config.export.helper, LOOK_LIMIT)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._helper.ask("ping")
            return
        except NoDaemon as error:
            if os.geteuid():
                method = config.fencing.method
                raise Refused(f'fencing method "{method}" needs the helper (python -m snapd.helper): {error}') from None
        arguments = ["-P", "-m", "snapd.helper", str(config.path), f"--parent={os.getpid()}"]
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(Path(snapd.__file__).parent.parent)},
        )

    @property
    def shown(self) -> str:
        """For people."""
        return f"child of this daemon, process {self._process.pid}" if self._process is not None else "its own service"

    def wait(self) -> None:
        """In a thread: until it answers. Raises Refused."""
        end = time.monotonic() + START_LIMIT
        while True:
            try:
                self._helper.ask("ping")
                return
            except CsnapError as error:
                ended = self._process is not None and self._process.poll() is not None
                if ended or time.monotonic() > end:
                    raise Refused(f"the fencing helper does not start: {error}") from None
            time.sleep(LOOK_AGAIN)

    def close(self) -> None:
        process = self._process
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_LIMIT)
            return
        process.kill()
        process.wait()
