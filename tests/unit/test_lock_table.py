"""``csnap locks``: what the daemon tells of every lock, and how people are shown it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from snapd import trace
from snapd.cli import locking
from snapd.cli.main import main
from snapd.daemon.locktable import report
from snapd.lockspace.records import FormatRecord
from snapd.messages import CR, EX
from snapd.trace import Page
from snapd.units import MIB
from tests.support.lock_rig import LockRig
from tests.unit.test_config import GOOD


def contended() -> LockRig:
    """Host a uses region 3 and the table; b waits for the region, c behind b."""
    rig = LockRig("host-a", "host-b", "host-c")
    rig.a.want("region/3", EX)
    rig.settle()
    rig.a.worker.in_use.add("region/3")
    rig.b.want("region/3", EX)
    rig.run(1)
    rig.c.want("region/3", CR)
    rig.run(1)
    return rig


def rows_of(rig: LockRig, node: str, page: memoryview | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    rows = report(rig.hosts[node].member, page, rig.scheduler.now())
    return {(row["resource"], row["node"]): row for row in rows}


def test_holders_and_waiters_know_one_another() -> None:
    """The holder: since when it is wanted and, on its own host, was asked back. Waiters: their place, and for whom."""
    rig = contended()
    own = rows_of(rig, "host-a")
    holder = own["region/3", "host-a"]
    assert (holder["state"], holder["mode"], holder["own"], holder["waits_for"]) == ("held", "EX", True, [])
    assert 1.5 <= holder["wanted_seconds"] <= 2.5 and 1.5 <= holder["asked_back_seconds"] <= 2.5
    second, third = own["region/3", "host-b"], own["region/3", "host-c"]
    assert (second["state"], second["mode"], second["position"], second["waits_for"]) == (
        "waiting",
        "EX",
        1,
        ["host-a"],
    )
    assert (third["mode"], third["position"], third["waits_for"]) == ("CR", 2, ["host-a", "host-b"])
    elsewhere = rows_of(rig, "host-c")
    assert elsewhere["region/3", "host-c"]["own"] and elsewhere["region/3", "host-c"]["waits_for"] == [
        "host-a",
        "host-b",
    ]
    assert elsewhere["region/3", "host-a"]["asked_back_seconds"] is None  # only the host that was asked knows
    assert elsewhere["region/3", "host-a"]["wanted_seconds"] is not None
    table = own["table", "host-b"]
    assert (table["mode"], table["use"], table["wanted_seconds"], table["position"]) == ("CR", None, None, None)


def test_resources_in_words() -> None:
    """A region's number and bytes."""
    rig = contended()
    record = FormatRecord(1, 1 << 40, "wwn", 16384, 64 * MIB)
    rig.put("format", record.to_bytes())
    row = rows_of(rig, "host-a")["region/3", "host-a"]
    assert (row["kind"], row["region"], row["bytes"]) == ("region", 3, [192 * MIB, 256 * MIB])


def test_cached_or_in_use() -> None:
    """As the worker said last, of this host's own holds; a worker that says nothing for two seconds is silent."""
    rig = contended()
    words = memoryview(bytearray(trace.PAGE_BYTES)).cast("Q")
    use = lambda: [rows_of(rig, "host-a", words)[name, "host-a"]["use"] for name in ("table", "region/3")]  # noqa: E731
    assert use() == ["worker silent"] * 2
    Page(words).used(rig.scheduler.now(), 1, [3], [])
    assert use() == ["in use", "in use"]
    Page(words).used(rig.scheduler.now(), 0, [2], [])
    assert use() == ["cached", "cached"]
    rig.run(3)
    assert use() == ["worker silent"] * 2


def lock(resource: str, node: str, mode: str = "EX", **changes: Any) -> dict[str, Any]:
    return {
        "resource": resource, "snapshot": "s1" if "tail" in resource else None, "bytes": None, "node": node,
        "own": node == "host-a", "mode": mode, "state": "held", "position": None, "since_seconds": 300.0, "use": None,
        "wanted_seconds": None, "asked_back_seconds": None, "waits_for": [], **changes,
    }  # fmt: skip


def test_people_see_first_what_is_waited_for() -> None:
    """Then one line for all that a host has in one mode; everything within 80 columns."""
    rows = [
        *(lock(f"region/{number}", "host-a", use="cached") for number in (*range(12), *range(14, 4000, 2))),
        lock("table", "host-a", "CR", use="in use", since_seconds=7300.0),
        lock("tail/x", "host-b"),
        lock("region/12", "host-b", bytes=[768 * MIB, 832 * MIB], since_seconds=12.3, wanted_seconds=4.0),
        lock("region/12", "host-a", state="waiting", position=1, since_seconds=4.0, waits_for=["host-b"]),
    ]
    shown = locking.text(rows)
    assert shown.splitlines()[:8] == [
        "region 12 (bytes 768MiB to 832MiB): waited for",
        "  host-b  EX  held 12.3 s, wanted by others 4.0 s",
        "  host-a  EX  waits 4.0 s, 1. in the queue, for host-b",
        "",
        "NODE    MODE  SINCE  USE     NOBODY WAITS FOR",
        "host-a  CR    2.0 h  in use  table",
        "host-b  EX    5 min  -       tail of s1",
        "host-a  EX    5 min  cached  2005 regions: 0-11, 14, 16, 18, 20, 22, 24, 26, ...",
    ]
    assert "2008 held, 1 waiting. Ages are since host-a has seen them" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert len(locking.text(rows, every=True).splitlines()) > 2000
    assert locking.text([]) == "no locks"


def test_a_long_story_goes_on_in_the_next_line() -> None:
    """A holder that was asked back and is silent, waiters behind many others, names as long as they may be."""
    nodes = [f"host-{number}" for number in range(12)]
    told = locking.text(
        [
            lock("table", "n" * 63, use="worker silent", wanted_seconds=400.0, asked_back_seconds=399.0),
            lock("table", "host-a", state="waiting", position=12, waits_for=nodes, since_seconds=399.0),
        ]
    ).splitlines()
    assert max(len(line) for line in told if "nnn" not in line) <= 80
    assert " ".join("\n".join(told).split()).count("host-11") == 1


def test_a_lock_of_an_older_daemon_is_shown_as_far_as_it_goes() -> None:
    """Fields that it does not know are left out."""
    old = {"resource": "region/1", "node": "host-b", "mode": "EX", "state": "waiting", "since_seconds": 0.25}
    shown = locking.text([old, {**old, "resource": "table", "state": "held"}])
    assert "  host-b  EX  waits 0.2 s" in shown and "1 held, 1 waiting" in shown


def test_for_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The daemon's array as it is."""
    (tmp_path / "c.toml").write_text(GOOD)
    rows = [lock("table", "host-a")]
    monkeypatch.setattr(locking, "ask", lambda path, request: rows)
    assert main(["locks", str(tmp_path / "c.toml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows


def test_every_field_is_documented() -> None:
    """docs/operations.md has each one of ``locks --json``."""
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text().partition("### `csnap locks --json`")[2]
    rig = contended()
    for name in next(iter(rows_of(rig, "host-a").values())):
        assert f"`{name}`" in text, name
