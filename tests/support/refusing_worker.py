"""The worker's command, on disks that refuse writes with EBADE while the file ``$REFUSE`` exists: a fenced host's.

The kernel's completions are changed after it has made them, so everything of the worker's own is what it always is.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import sys
from errno import EBADE
from pathlib import Path
from typing import Any

from snapd.blockdev import aio

_real: Any = aio._getevents_call


def _refusing(call: int, context: Any, least: int, most: int, events: int, timeout: Any) -> int:
    count = int(_real(call, context, least, most, events, timeout))
    if Path(os.environ["REFUSE"]).exists():
        for index in range(count):
            at = events + index * aio.EVENT.size
            slot, result = ctypes.c_uint64.from_address(at).value, ctypes.c_int64.from_address(at + 16)
            if slot >= most // 2 and result.value > 0:  # the second half of the slots is for writes
                result.value = -EBADE
    return count


if __name__ == "__main__":
    aio._getevents_call = _refusing
    sys.argv[0] = "snapd.worker"
    runpy.run_module("snapd.worker", run_name="__main__", alter_sys=True)
