"""The model as something rich can draw, for any size from 80x24 on. Pure: nothing is asked or measured here.

Colour repeats what the signs say: ``!!`` (red) wants somebody now, ``!`` (yellow) wants looking at. So a terminal
without colour, a log and a colour-blind reader miss nothing. The thresholds are those of the alerts.

The rows of a screen are dealt out one by one, to waits, snapshots, hosts and I/O in turn: each gets what it needs as
long as there is room, and the longest is cut first, saying how much is missing. A wide terminal shows more columns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from snapd.cli.top import words
from snapd.cli.top.model import HostLine, IoLine, Model, StoreLine
from snapd.cli.top.observation import Wait

WIDE = 110
"""Columns from which on more is shown."""

ORDERS = ("trouble", "age", "full", "name", "load")
"""What the key ``s`` goes through: what is marked comes first; as the daemon tells it (waits: the oldest first,
snapshots: the newest); the fullest first; by name; the busiest first."""

FINE, LOOK, NOW = "", "!", "!!"
STYLES = {FINE: "", LOOK: "yellow", NOW: "bold red"}

WAIT_LOOK = 1.0  # seconds; NOW: more than a lease lives
OLD_LOOK, OLD_NOW = 1.0, 15.0
COW_LOOK, COW_NOW = 80.0, 95.0  # percent
FULL_IN_LOOK, FULL_IN_NOW = 6 * 3600, 30 * 60  # seconds
BAR = 12
NOTICES_MOST = 5


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    right: bool = False
    wide: bool = False  # shown on wide terminals only


@dataclass(frozen=True, slots=True)
class Section:
    """A table: each row begins with its mark."""

    columns: tuple[Column, ...]
    rows: Sequence[tuple[str, ...]]
    empty: str
    hidden: int = 0
    """Rows that the daemon has not told."""


def draw(model: Model, width: int, height: int | None, order: str = ORDERS[0], keys: bool = True) -> RenderableType:
    """``height`` None: as many lines as it takes (``--once``)."""
    wide = width >= WIDE
    top = [_title(model, width), _requests(model, wide), *_notices(model, width)]
    sections = [_io(model, order), _hosts(model, order), _stores(model, order), _waits(model, order)]
    if order == "trouble":
        sections = [replace(section, rows=sorted(section.rows, key=_gravity)) for section in sections]
    bottom = [Text(_footer(model, order, width, keys), style="dim", no_wrap=True, overflow="ellipsis")]
    needs = [max(1, len(section.rows) + bool(section.hidden)) for section in sections]
    shares = needs if height is None else deal(needs, height - len(top) - len(bottom) - len(sections))
    spare = None if height is None else height - len(top) - len(bottom) - len(sections) - sum(shares)
    parts: list[RenderableType] = [*top]
    for section, share in zip(sections, shares, strict=True):
        if spare is None or spare > 0:
            parts.append(Text(""))
            spare = spare if spare is None else spare - 1
        parts.append(_table(section, share, wide))
    return Group(*parts, *bottom)


def _gravity(row: tuple[str, ...]) -> int:
    return -len(row[0])


def deal(needs: Sequence[int], room: int) -> list[int]:
    """Give each section rows, one by one from the last section (the waits) on, until needs or room end."""
    shares = [0] * len(needs)
    while room > 0 and shares != list(needs):
        for at in reversed(range(len(needs))):
            if room > 0 and shares[at] < needs[at]:
                shares[at] += 1
                room -= 1
    return shares


def _table(section: Section, share: int, wide: bool) -> Table:
    """The header and at most ``share`` lines."""
    shown = [number for number, column in enumerate(section.columns) if wide or not column.wide]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True, width=2)
    for number in shown:
        column = section.columns[number]
        table.add_column(column.name, no_wrap=True, overflow="ellipsis", justify="right" if column.right else "left")
    total = len(section.rows) + section.hidden
    fits = len(section.rows) if total <= share else max(0, share - 1)
    for row in section.rows[:fits]:
        table.add_row(row[0], *(row[1:][number] for number in shown), style=STYLES[row[0]])
    if share > 0 and not section.rows:
        table.add_row("", section.empty, style="dim")
    elif share > 0 and fits < total:
        table.add_row("", f"… {total - fits} more", style="dim")
    return table


# ---- what stands above the tables


def _title(model: Model, width: int) -> Text:
    state = _state_mark(model.state)
    lease = _lease_mark(model)
    text = Text("csnap top ", style="bold", no_wrap=True, overflow="ellipsis", end="")
    text.append(f" {model.volume} on {model.node}  ", style="")
    text.append(_marked(state, model.state), style=STYLES[state] or "green")
    text.append("  ", style="")
    text.append(
        _marked(lease, f"lease {model.lease_remaining:.1f}/{model.lease_ttl:.0f}s"), style=STYLES[lease] or "not bold"
    )
    text.append("  ", style="")
    unsafe = LOOK if model.fencing == "unsafe" else FINE
    text.append(_marked(unsafe, f"fencing {model.fencing}"), style=STYLES[unsafe] or "not bold")
    clock = time.strftime("%H:%M:%S", time.localtime(model.taken))
    room = width - text.cell_len - len(clock)
    text.truncate(width - len(clock) - 1, overflow="ellipsis")
    text.append(" " * max(1, room) + clock, style="not bold")
    text.end = "\n"
    return text


def _requests(model: Model, wide: bool) -> Text:
    old = NOW if model.oldest > OLD_NOW else LOOK if model.oldest > OLD_LOOK else FINE
    failed = NOW if model.errors_per_second else FINE
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{model.inflight} under way, {model.waiting} waiting, ")
    text.append(_marked(old, f"oldest {words.duration(model.oldest) if model.oldest else '-'}"), style=STYLES[old])
    text.append(f"  {model.clients} clients  ")
    text.append(_marked(failed, f"errors {words.count(model.errors_per_second)}/s"), style=STYLES[failed])
    text.append(f"  copies {words.count(model.copies_per_second)}/s {words.size(model.copy_bytes_per_second)}/s")
    if wide:
        text.append(f"  {words.count(model.entries_per_commit)} exceptions a commit")
    return text


def _notices(model: Model, width: int) -> list[Text]:
    """One line each, the gravest first."""
    found: list[tuple[str, str]] = []
    if model.silent_since is not None:
        since = time.strftime("%H:%M:%S", time.localtime(model.silent_since))
        taken = time.strftime("%H:%M:%S", time.localtime(model.taken))
        found.append((NOW, f"not answering since {since}, figures of {taken}: {model.silent_why}"))
    if model.stalled:
        found.append((NOW, "the worker stands at the lease's deadline: requests wait until etcd is back"))
    if model.why:
        found.append((LOOK, f"{model.state}: {model.why}"))
    for wait in model.fencing_waits:
        found.append(
            (
                NOW,
                f"fencing of {wait.node} by {wait.by} waited for since {words.duration(wait.seconds)}: it holds locks",
            )
        )
    found += [(LOOK, warning) for warning in model.warnings if not warning.startswith("fencing is unsafe")]
    lines = [
        Text(_marked(mark, text), style=STYLES[mark], no_wrap=True, overflow="ellipsis")
        for mark, text in found[:NOTICES_MOST]
    ]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _footer(model: Model, order: str, width: int, keys: bool) -> str:
    span = f"rates over {model.span:.1f}s" if model.span is not None else "no rates yet"
    left = f"q quit  s sort:{order}  space now  " if keys else ""
    rest = "-: not known here, see csnap top there" if width >= WIDE or not keys else "-: see csnap top there"
    return f"{left}{span}  {rest}"


def _marked(mark: str, text: str) -> str:
    return f"{mark} {text}" if mark else text


# ---- the tables


def _io(model: Model, order: str) -> Section:
    lines = list(model.io)
    if order == "load":
        lines.sort(key=lambda line: -(line.per_second or 0))
    elif order == "name":
        lines.sort(key=lambda line: (line.group, line.op))
    columns = (
        Column("I/O"), Column("OP"), Column("OPS/S", right=True), Column("BYTES/S", right=True),
        Column("P50", right=True), Column("P99", right=True), Column("TOTAL", right=True),
    )  # fmt: skip
    return Section(columns, [_io_row(line) for line in lines], "no I/O yet")


def _io_row(line: IoLine) -> tuple[str, ...]:
    mark = LOOK if line.p99 is not None and line.p99 > OLD_LOOK else FINE
    return (
        mark,
        line.group,
        line.op,
        words.count(line.per_second),
        words.size(line.bytes_per_second),
        words.duration(line.p50),
        words.duration(line.p99),
        words.count(line.total),
    )


def _hosts(model: Model, order: str) -> Section:
    lines = list(model.hosts)
    if order == "load":
        lines.sort(key=lambda line: (-line.waits - line.blocks, -(line.per_second or 0)))
    columns = (
        Column("HOST"), Column("STATE"), Column("LEASE", right=True), Column("OPS/S", right=True),
        Column("BYTES/S", right=True, wide=True), Column("LOCKS", right=True), Column("WAITS", right=True),
        Column("BLOCKS", right=True), Column("VERSION"),
    )  # fmt: skip
    return Section(columns, [_host_row(line) for line in lines], "no members")


def _host_row(line: HostLine) -> tuple[str, ...]:
    state = line.state + (f" by {line.by}" if line.by else "")
    return (
        _state_mark(line.state),
        line.node + (" *" if line.here else ""),
        state,
        words.UNKNOWN if line.lease is None else f"{line.lease:.1f}s",
        words.count(line.per_second),
        words.size(line.bytes_per_second),
        words.count(line.held),
        words.count(line.waits),
        words.count(line.blocks),
        line.version or words.UNKNOWN,
    )


def _stores(model: Model, order: str) -> Section:
    lines = list(model.stores)
    sorts: dict[str, Callable[[StoreLine], tuple[float, str]]] = {
        "full": lambda line: (-(line.percent or 0), line.name),
        "load": lambda line: (-(line.fill or 0), line.name),
        "name": lambda line: (0, line.name),
    }
    if order in sorts:
        lines.sort(key=sorts[order])
    columns = (
        Column("SNAPSHOT"), Column("STATE"), Column("FULL"), Column("", right=True), Column("FILL/S", right=True),
        Column("FULL IN", right=True), Column("EXCEPTIONS", right=True), Column("USED", right=True, wide=True),
        Column("SIZE", right=True, wide=True),
    )  # fmt: skip
    return Section(columns, [_store_row(line) for line in lines], "no snapshots")


def _store_row(line: StoreLine) -> tuple[str, ...]:
    return (
        _store_mark(line),
        line.name,
        line.state,
        words.bar(line.percent, BAR),
        words.percent(line.percent),
        words.size(line.fill),
        words.duration(line.full_in),
        words.count(line.exceptions),
        words.size(line.used),
        words.size(line.size),
    )


def _waits(model: Model, order: str) -> Section:
    waits = list(model.waits)
    if order == "name":
        waits.sort(key=lambda wait: (wait.resource, -wait.seconds))
    columns = (Column("WAITS FOR"), Column("HOST"), Column("MODE"), Column("SINCE", right=True), Column("HELD BY"))
    hidden = max(0, model.waits_total - len(waits))
    return Section(columns, [_wait_row(wait, model.lease_ttl) for wait in waits], "nobody waits for a lock", hidden)


def _wait_row(wait: Wait, ttl: float) -> tuple[str, ...]:
    mark = NOW if wait.seconds > max(ttl, WAIT_LOOK) else LOOK if wait.seconds > WAIT_LOOK else FINE
    held = [f"{node} {mode}" for node, mode in wait.holders]
    behind = f"behind {', '.join(wait.behind)}" if wait.behind else ""
    by = "; ".join(filter(None, (", ".join(held), behind))) or "nobody any more"
    return (mark, wait.resource, wait.node, wait.mode, words.duration(wait.seconds), by)


# ---- marks


def _state_mark(state: str) -> str:
    if state == "active":
        return FINE
    return NOW if state in ("fenced", "fencing", "dead", "stalled", "unknown") else LOOK


def _lease_mark(model: Model) -> str:
    if model.lease_remaining <= 0:
        return NOW if model.lease_ttl else FINE
    return LOOK if model.lease_remaining < model.lease_ttl / 2 else FINE


def _store_mark(line: StoreLine) -> str:
    percent, full_in = line.percent or 0.0, line.full_in
    if line.state in ("invalid", "overflow") or percent >= COW_NOW or (full_in is not None and full_in < FULL_IN_NOW):
        return NOW
    if line.state != "active" or percent >= COW_LOOK or (full_in is not None and full_in < FULL_IN_LOOK):
        return LOOK
    return FINE
