"""``csnap locks``: first what is waited for, with everybody who has it or wants it; then what is merely held.

Values are the daemon's (daemon/locktable.py); of an older daemon, which has fewer, as far as they go.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import Any

from snapd import config as configuration
from snapd.cli.client import ask
from snapd.cli.text import age, table
from snapd.printable import printable_value
from snapd.units import format_size

WIDTH = 80
NODE_MOST = 24

Row = dict[str, Any]


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--all", action="store_true", help="a line for every lock, also for those nobody waits for")
    command.add_argument("--json", action="store_true", help="print JSON: an array with an object for each lock")


def locks(arguments: argparse.Namespace) -> int:
    rows = ask(configuration.load(configuration.find(arguments.config)).export.admin, {"command": "locks"})
    print(json.dumps(rows) if arguments.json else text(printable_value(rows), arguments.all))
    return 0


def text(rows: Sequence[Row], every: bool = False) -> str:
    """For people, within 80 columns as far as names allow."""
    if not rows:
        return "no locks"
    contended = {row["resource"] for row in rows if row["state"] == "waiting"}
    blocks = [_contended([row for row in rows if row["resource"] == resource]) for resource in _in_order(contended)]
    quiet = [row for row in rows if row["resource"] not in contended]
    if quiet:
        blocks.append(_every(quiet) if every else _quiet(quiet))
    waiting = sum(row["state"] == "waiting" for row in rows)
    here = next((row["node"] for row in rows if row.get("own")), "this host")
    blocks.append(
        f"{len(rows) - waiting} held, {waiting} waiting. Ages are since {here} has seen them;"
        "\nno clock of another host is asked."
    )
    return "\n\n".join(blocks)


def resource(row: Row) -> str:
    """The resource in words."""
    kind, _, rest = row["resource"].partition("/")
    if kind == "tail":
        return f"tail of {row.get('snapshot') or rest}"
    return f"{kind} {rest}".strip()


def _contended(rows: Sequence[Row]) -> str:
    head = resource(rows[0])
    if rows[0].get("bytes"):
        head += " (bytes {} to {})".format(*map(format_size, rows[0]["bytes"]))
    width = min(NODE_MOST, max(len(row["node"]) for row in rows))
    lines = [head + ": waited for"]
    for row in rows:
        first = f"  {row['node']:<{width}}  {row['mode']}  "
        lines += wrap(_told(row), WIDTH, initial_indent=first, subsequent_indent=" " * (width + 8))
    return "\n".join(lines)


def _told(row: Row) -> str:
    since = age(row["since_seconds"])
    if row["state"] == "waiting":
        position = f", {row['position']}. in the queue" if row.get("position") else ""
        ahead = f", for {', '.join(row['waits_for'])}" if row.get("waits_for") else ""
        return f"waits {since}{position}{ahead}"
    told = f"held {since}"
    if row.get("wanted_seconds") is not None:
        told += f", wanted by others {age(row['wanted_seconds'])}"
    if row.get("use"):
        told += f", {row['use']}"
    if row.get("asked_back_seconds") is not None:
        told += f", asked back {age(row['asked_back_seconds'])}"
    return told


def _quiet(rows: Sequence[Row]) -> str:
    """One line for all that a node has in one mode and use; SINCE is the oldest."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        kind = row["resource"].partition("/")[0]
        groups.setdefault((kind, row["node"], row["mode"], row.get("use") or "-"), []).append(row)
    order = {"table": 0, "tail": 1, "region": 2}
    shown = []
    for (kind, node, mode, use), group in sorted(groups.items(), key=lambda item: (order.get(item[0][0], 3), item[0])):
        since = age(max(row["since_seconds"] for row in group))
        if kind == "region":
            numbers = [int(row["resource"].partition("/")[2]) for row in group]
            what = f"region {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} regions: {_ranges(numbers)}"
            shown.append((node, mode, since, use, what))
        else:
            shown += [(node, mode, age(row["since_seconds"]), use, resource(row)) for row in group]
    lines = table(("NODE", "MODE", "SINCE", "USE", "NOBODY WAITS FOR"), shown).splitlines()
    return "\n".join(line if len(line) <= WIDTH else line[: WIDTH - 4] + " ..." for line in lines)


def _every(rows: Sequence[Row]) -> str:
    return table(
        ("RESOURCE", "BYTES", "NODE", "MODE", "SINCE", "USE"),
        [
            (
                resource(row),
                "{} to {}".format(*map(format_size, row["bytes"])) if row.get("bytes") else "-",
                row["node"],
                row["mode"],
                age(row["since_seconds"]),
                row.get("use") or "-",
            )
            for row in rows
        ],
    )


def _ranges(numbers: Iterable[int]) -> str:
    """0-11, 14"""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _in_order(resources: Iterable[str]) -> list[str]:
    """The table, tails, regions by number."""

    def place(name: str) -> tuple[int, int, str]:
        kind, _, rest = name.partition("/")
        return {"table": 0, "tail": 1}.get(kind, 2), int(rest) if rest.isdigit() else 0, rest

    return sorted(resources, key=place)
