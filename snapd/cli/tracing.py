"""``csnap trace CONFIG``: the slow requests of this host, by stage; those that were, and those that come.

The daemon keeps the last ones of 100 ms and longer by itself, so after an incident they are there. A lower threshold is
in force while a command asks for it. Nothing in it is content of anybody's data.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from snapd import config as configuration
from snapd.cli import tracetext
from snapd.cli.client import ask
from snapd.cli.tracetext import Row, Summary
from snapd.errors import NoDaemon
from snapd.printable import printable_value

THRESHOLD = 100.0  # ms: what the daemon keeps by itself
SINCE = 900.0
INTERVAL = 0.5
INTERVAL_LEAST, INTERVAL_MOST = 0.1, 3.0
"""Seconds. A threshold is forgotten after 5 s without a question."""

_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}
EXAMPLES = """example: csnap trace vmstore
  what was slow in the last 15 minutes, then what comes
example: csnap trace vmstore --once --slowest 10
  the ten slowest of them, and where the time of all of them went
example: csnap trace vmstore --threshold 10ms --duration 30s
  what takes 10 ms or longer in the next half minute
example: csnap trace vmstore --once --json
  for programs; the fields are in docs/operations.md"""


def milliseconds(text: str) -> float:
    """10ms, 2s, 15m; a bare number is of seconds."""
    match = re.fullmatch(r"(\d{1,7}(?:\.\d{1,3})?)(us|ms|s|m|h)?", text, re.ASCII)
    if match is None or float(match[1]) * _UNITS[match[2] or "s"] > 3_600_000 * 24:
        raise argparse.ArgumentTypeError(f"{text[:20]}: expected a time like 10ms, 2s, 15m, at most a day")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _threshold(text: str) -> float:
    value = milliseconds(text)
    if value > 3_600_000:
        raise argparse.ArgumentTypeError(f"{text[:20]}: expected at most an hour")
    return value


def _interval(text: str) -> float:
    value = milliseconds(text) / 1000
    if not INTERVAL_LEAST <= value <= INTERVAL_MOST:
        raise argparse.ArgumentTypeError(f"{text[:20]}: expected {INTERVAL_LEAST:g}s to {INTERVAL_MOST:g}s")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text[:20]}: expected 1 to 10000")
    return int(text)


def add_options(command: argparse.ArgumentParser) -> None:
    option = command.add_argument
    option("--once", action="store_true", help="show what there is, where its time went, and end")
    option(
        "--threshold", type=_threshold, default=THRESHOLD, metavar="TIME", help="from what on a request is slow (100ms)"
    )
    option("--since", type=milliseconds, default=SINCE * 1000, metavar="TIME", help="how far back to begin (15m)")
    option("--slowest", type=_count, metavar="N", help="only the N slowest: of all, or of each interval")
    option("--duration", type=milliseconds, metavar="TIME", help="end after so long")
    option("--interval", type=_interval, default=INTERVAL, metavar="TIME", help="between two looks (0.5s)")
    option("--json", action="store_true", help="a line of JSON for each request, and one for the summary")
    command.epilog = EXAMPLES
    command.formatter_class = argparse.RawDescriptionHelpFormatter


class Follower:
    """Asks the daemon for what is new; survives its restart."""

    def __init__(self, path: str, threshold_ms: float) -> None:
        self._path = path
        self._threshold = int(threshold_ms * 1_000_000)
        self._after: dict[str, int] = {}
        self._incarnation = ""

    def look(self) -> dict[str, Any]:
        """Return the daemon's answer. Raises NoDaemon, CsnapError."""
        value = self._ask()
        heads: dict[str, int] = value["heads"]
        if self._after and (
            value["incarnation"] != self._incarnation or any(heads[ring] < self._after[ring] for ring in heads)
        ):
            self._after = {}  # another daemon: its numbers begin anew
            value = self._ask()
        self._after, self._incarnation = value["heads"], value["incarnation"]
        return value

    def _ask(self) -> dict[str, Any]:
        value: dict[str, Any] = ask(
            self._path, {"command": "trace", "after": self._after, "threshold_ns": self._threshold}
        )
        return value


class Printer:
    """Lines for people or for programs; remembers which requests under way were shown in which stage."""

    def __init__(self, as_json: bool, slowest: int | None) -> None:
        self._json, self._slowest = as_json, slowest
        self._shown: dict[tuple[str, str, int, int], str] = {}
        self._headed = False
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._mark: Callable[[str], str] = lambda text: f"\x1b[1;31m{text}\x1b[0m" if colour else text

    def requests(self, rows: list[Row]) -> None:
        for row in tracetext.slowest(rows, self._slowest) if self._slowest else rows:
            self._line("request", row)

    def under_way(self, rows: list[Row]) -> None:
        """Those that are new, or in another stage than before."""
        shown = {}
        for row in rows:
            key = row["export"], row["op"], row["offset"], row["length"]
            shown[key] = row["stage"]
            if self._shown.get(key) != row["stage"]:
                self._line("under_way", row)
        self._shown = shown

    def summary(self, summary: Summary) -> None:
        if self._json:
            print(json.dumps(summary.to_json()), flush=True)
        else:
            print(("\n" if self._headed else "") + summary.text(), flush=True)

    def _line(self, event: str, row: Row) -> None:
        if self._json:
            print(json.dumps({"event": event, **row}), flush=True)
            return
        width = shutil.get_terminal_size((80, 24)).columns
        if not self._headed:
            self._headed = True
            print(tracetext.head(width))
        print(tracetext.line(printable_value(row), width, self._mark), flush=True)


def trace(arguments: argparse.Namespace) -> int:
    """Raises NoDaemon if none answers at first; later it is waited for."""
    path = configuration.load(configuration.find(arguments.config)).export.admin
    follower = Follower(path, arguments.threshold)
    printer, summary = Printer(arguments.json, arguments.slowest), Summary(arguments.threshold)
    end = time.monotonic() + arguments.duration / 1000 if arguments.duration is not None else None
    earliest: float | None = None
    silent = False
    try:
        while True:
            try:
                value = follower.look()
                silent = False
            except NoDaemon as error:
                if earliest is None:
                    raise
                if not silent:
                    print(f"csnap: {error}; waiting for it", file=sys.stderr)
                silent = True
            else:
                if earliest is None:
                    earliest = value["now"] - arguments.since / 1000
                rows = [row for row in value["requests"] if row["ended"] >= earliest]
                printer.requests(rows)
                under_way = [row for row in value["under_way"] if row["took_ms"] >= arguments.threshold]
                printer.under_way(under_way)
                summary.under_way = len(under_way)
                summary.add(rows)
                summary.lost += value["lost"]
            if arguments.once or (end is not None and time.monotonic() >= end):
                break
            time.sleep(arguments.interval)
    except KeyboardInterrupt:
        print(file=sys.stderr)
    printer.summary(summary)
    return 0
