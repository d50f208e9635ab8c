"""The admin command ``observe``: what stands in the mirror and the counters page, as ``csnap top`` is told it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from snapd import config as configuration
from snapd import counters
from snapd.cli.top.observation import parse
from snapd.daemon import observe
from snapd.daemon.status import View
from snapd.lockspace.kv import KeyValue
from snapd.lockspace.member import Member
from snapd.lockspace.records import TicketRecord
from snapd.messages import CR, EX
from snapd.units import SECOND
from tests.unit.test_config import GOOD

NOW = 1000 * SECOND


def ticket(node: str, mode: int, place: int, key: str = "") -> tuple[str, KeyValue]:
    return node, KeyValue(key or f"q/{node}", TicketRecord(mode, "i").to_bytes(), place, place)


def member(holds: dict[str, Any], tickets: dict[str, dict[str, KeyValue]], seen: int = NOW - 3 * SECOND) -> Member:
    """As much of one as is looked at."""
    mirror = SimpleNamespace(holds=holds, tickets=tickets, seen_since=lambda key: seen)
    return cast(Member, SimpleNamespace(mirror=mirror))


def test_holds_are_counted_by_node_kind_and_mode() -> None:
    """Not told one by one: there may be tens of thousands."""
    holds = {
        "table": {("a", CR): 0, ("b", CR): 0},
        "region/1": {("a", EX): 0},
        "region/2": {("a", EX): 0},
        "tail/x": {("b", EX): 0},
    }
    assert observe._held(member(holds, {})) == {
        "a": {"table/CR": 1, "region/EX": 2},
        "b": {"table/CR": 1, "tail/EX": 1},
    }


def test_a_wait_names_who_is_in_the_way() -> None:
    """Holders whose mode excludes it, and older tickets; readers do not wait for readers."""
    holds = {"region/1": {("a", CR): 0, ("b", CR): 0}}
    tickets = {"region/1": dict([ticket("d", CR, 9), ticket("c", EX, 7), ticket("b", EX, 8)])}
    rows = {row["node"]: row for row in observe._waits(member(holds, tickets), NOW)}
    assert [holder["node"] for holder in rows["c"]["holders"]] == ["a", "b"] and rows["c"]["behind"] == []
    assert [holder["node"] for holder in rows["b"]["holders"]] == ["a"]  # not its own hold, which it wants to raise
    assert rows["b"]["behind"] == ["c"]
    assert rows["d"]["holders"] == [] and rows["d"]["behind"] == ["c", "b"]
    assert rows["c"]["since_seconds"] == 3.0


def test_a_ticket_that_makes_no_sense_excludes_everybody() -> None:
    """Of another version, or damaged: it is shown, and nothing breaks."""
    tickets = {"table": {"c": KeyValue("q/c", b"?", 1, 1)}}
    (row,) = observe._waits(member({"table": {("a", CR): 0}}, tickets), NOW)
    assert row["mode"] == "EX" and row["holders"] == [{"node": "a", "mode": "CR"}]


@pytest.fixture
def view(tmp_path: Path) -> View:
    path = tmp_path / "vol.toml"
    path.write_text(GOOD)
    return View(configuration.load(path))


def test_a_daemon_that_is_starting_answers_too(view: View) -> None:
    """Without member and worker: the command understands it."""
    value = json.loads(json.dumps(observe.report(view, NOW)))
    found = parse(value)
    assert (found.worker, found.waits, found.held, found.state) == (None, (), {}, "joining")


def test_counters_become_rows(view: View) -> None:
    """Totals and histograms by name; bytes of disk operations are not counted."""
    words = memoryview(bytearray(counters.PAGE_BYTES)).cast("q")
    counters.note(words, counters.IO["origin", "write"], 4096, 1000)
    counters.note(words, counters.IO["origin", "write"], 4096, 3_000_000)
    counters.note_together(words, counters.BACKEND["cow", "flush"], 3, 2000)
    words[counters.OLDEST] = NOW - SECOND // 2
    view.words = words
    worker = parse(json.loads(json.dumps(observe.report(view, NOW)))).worker
    assert worker is not None and worker.oldest_seconds == 0.5
    rows = {(row.group, row.op): row for row in worker.rows}
    write, flush = rows["origin", "write"], rows["disk cow", "flush"]
    assert (write.ops, write.bytes) == (2, 8192)
    assert [k for k, count in enumerate(write.log2_ns) if count] == [10, 22]
    assert (flush.ops, flush.bytes) == (3, None)
