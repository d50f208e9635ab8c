"""Have a root file system for the test hosts: ``python -m tests.hosts.build``. Does nothing if it is there."""

from __future__ import annotations

import os
import sys

from tests.hosts import rootfs


def main() -> int:
    if os.getuid() != 0:
        print("hosts for the tests: need root, their tests are skipped", file=sys.stderr)
        return 0
    if rootfs.cached() is None:
        print("hosts for the tests: making a root file system, a minute", file=sys.stderr)
    try:
        root = rootfs.build()
    except rootfs.RootError as error:
        print(f"hosts for the tests: {error}", file=sys.stderr)
        return 1
    print(f"hosts for the tests: {root.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
