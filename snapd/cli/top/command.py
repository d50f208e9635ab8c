"""``csnap top CONFIG``: its options, and which of its three forms is wanted.

A terminal gets a screen. Anything else (a file, a pipe, a dumb terminal), ``--once`` and ``--json`` get frames or lines
of JSON one after the other.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

from snapd import config as configuration
from snapd.cli.top.model import History, Model
from snapd.cli.top.sampler import Observe, observing
from snapd.errors import CsnapError, Refused
from snapd.printable import one_line

INTERVAL = 2.0
INTERVAL_LEAST, INTERVAL_MOST = 0.2, 3600.0
"""Seconds. Below, the daemon would be asked more often than it needs to be."""


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--once", action="store_true", help="print one frame, of two samples, and end")
    command.add_argument("--json", action="store_true", help="a line of JSON for each frame")
    command.add_argument(
        "--interval", type=_seconds, default=INTERVAL, metavar="SECONDS", help="between two samples (2)"
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not INTERVAL_LEAST <= value <= INTERVAL_MOST:
        raise argparse.ArgumentTypeError(f"{text}: expected {INTERVAL_LEAST:g} to {INTERVAL_MOST:g} seconds")
    return value


def top(arguments: argparse.Namespace) -> int:
    """Raises NoDaemon or Refused; only the screen outlives a daemon that stops answering."""
    config = configuration.load(configuration.find(arguments.config))
    observe = observing(config.export.admin)
    if arguments.json:
        _frames(observe, arguments, lambda model: print(json.dumps(model.to_json()), flush=True))
        return 0
    from snapd.cli.top.screen import Screen, is_full, make_console, print_frame  # rich takes a tenth of a second

    console = make_console()
    if arguments.once or not is_full(console):
        _frames(observe, arguments, lambda model: print_frame(console, model))
        return 0
    Screen(console, observe, arguments.interval).run()
    return 0


def _frames(observe: Observe, arguments: argparse.Namespace, show: Callable[[Model], None]) -> None:
    """Show a frame after every sample but the first, which has no rates. Silence after that is shown, not raised."""
    history = History()
    history.answered(observe(), time.time())
    while True:
        time.sleep(arguments.interval)
        try:
            history.answered(observe(), time.time())
        except CsnapError as error:
            if arguments.once or isinstance(error, Refused):
                raise
            history.silent(one_line(error), time.time())
        model = history.model()
        assert model is not None
        show(model)
        if arguments.once:
            return
