"""Have a kernel, an iSCSI initiator and udev for the tests: ``python -m tests.kernel.support.build``. Does nothing
if they are there."""

from __future__ import annotations

import sys

from tests.kernel.support import initiator, udev
from tests.kernel.support.kernel import KernelError, build


def main() -> int:
    try:
        kernel = build()
        initiator.build()
        udev.build()
    except KernelError as error:
        print(f"kernel for the tests: {error}", file=sys.stderr)
        return 1
    print(f"kernel for the tests: {kernel.release} in {kernel.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
