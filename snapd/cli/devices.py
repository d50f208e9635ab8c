"""``csnap check`` and ``csnap dump``: a COW device without any daemon, opened read-only."""

from __future__ import annotations

import argparse
import json
import sys

from snapd.errors import CsnapError, FormatError
from snapd.printable import one_line, printable


def check(arguments: argparse.Namespace) -> int:
    """Exit code 0: sound; 1: problems, each named; 2: cannot be read."""
    from snapd.blockdev.device import open_device
    from snapd.blockdev.sync import pread
    from snapd.exstore import check as checks

    try:
        device = open_device(arguments.device, exclusive=False, read_only=True)
        try:
            report = checks.check(lambda offset, length: pread(device, offset, length), device.size)
        finally:
            device.close()
    except CsnapError as error:
        print("csnap:", one_line(error), file=sys.stderr)
        return checks.UNREADABLE
    if arguments.json:
        print(json.dumps(report.to_json()))
    else:
        for problem in report.problems:
            print(printable(f"{arguments.device}: {problem}"))
        if not report.problems and report.image is not None:
            print(f"{arguments.device}: sound: {report.image.status}, {len(report.image.exceptions)} exceptions")
    return report.verdict


def dump(arguments: argparse.Namespace) -> int:
    """What is on the device, as JSON; also of an invalid one."""
    from snapd.blockdev.device import open_device
    from snapd.blockdev.sync import pread
    from snapd.exstore.image import Image

    device = open_device(arguments.device, exclusive=False, read_only=True)
    try:
        image = Image.load(lambda offset, length: pread(device, offset, length), device.size)
    except FormatError as error:
        raise CsnapError(f"{arguments.device}: {error}") from None
    finally:
        device.close()
    print(json.dumps(image.to_json()))
    return 0
