"""``csnap trace``: what the daemon answers from the page, and what people and programs are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from snapd import trace
from snapd.cli import tracetext, tracing
from snapd.cli.main import main
from snapd.cli.tracetext import Summary
from snapd.daemon.admin import Reply
from snapd.daemon.loop import Loop
from snapd.daemon.tracing import ASKED_FOR, Tracing
from snapd.errors import NoDaemon, Refused
from snapd.messages import EX, Grant, Message, Trace, Want
from snapd.trace import IO, LIVE, REGION, STAGES, Page
from snapd.units import MIB, SECOND
from tests.support.lock_rig import LockRig
from tests.support.virtual_time import Scheduler
from tests.unit.test_config import GOOD

MS = SECOND // 1000


class Asked:
    """The daemon's end over a page of its own, in virtual time."""

    def __init__(self, scheduler: Scheduler | None = None) -> None:
        self.scheduler = scheduler or Scheduler()
        self.words = memoryview(bytearray(trace.PAGE_BYTES)).cast("Q")
        self.page = Page(self.words)
        self.sent: list[Message] = []
        self.tracing = Tracing(cast(Loop, self.scheduler), "host-a", "vol")
        self.tracing.attach(self.words, self.sent.append)
        self.values: list[Any] = []

    def result(self, value: Any) -> None:
        self.values.append(value)

    def ask(self, **fields: object) -> dict[str, Any]:
        self.tracing.command({"command": "trace", **fields}, cast(Reply, self))
        return cast(dict[str, Any], self.values[-1])

    def note(self, took: int, region: int = -1, region_ms: int = 0, io: int = 0) -> None:
        """A write that ended now; times in ms."""
        stages = [{REGION: region_ms, IO: io}.get(stage, 0) * MS for stage in range(len(STAGES))]
        self.page.note([self.scheduler.now(), took * MS, 1, 16384, 4096, 0, region + 1, 0, IO, *stages])


def test_an_answer_has_what_is_behind_the_numbers_that_were_seen() -> None:
    """The first question gets everything, the next ones what came since; other rings' numbers are apart."""
    asked = Asked()
    asked.note(150, io=150)
    first = asked.ask()
    assert [row["took_ms"] for row in first["requests"]] == [150.0] and first["heads"] == {"kept": 1, "live": 0}
    assert asked.ask(after=first["heads"])["requests"] == []
    asked.note(20, io=20)
    asked.scheduler.run_for(MS)
    asked.note(300, io=300)
    second = asked.ask(after=first["heads"], threshold_ns=10 * MS)
    assert [(row["ring"], row["took_ms"]) for row in second["requests"]] == [("live", 20.0), ("kept", 300.0)]
    assert second["lost"] == 0 and second["node"] == "host-a" and second["format"] == 1
    for _ in range(trace.SIZES[LIVE] + 5):
        asked.note(20)
    assert asked.ask(after=second["heads"], threshold_ns=10 * MS)["lost"] >= 5


def test_the_beginning_of_a_long_incident_is_told_by_its_worst() -> None:
    """Two minutes of slow requests, more than the ring holds: the first answer has the slowest of each ten seconds too,
    none twice; later ones have only what is new."""
    asked = Asked()
    for _ in range(120):
        for index in range(20):
            asked.note(150 + index, io=150 + index)
        asked.scheduler.run_for(SECOND)
    first = asked.ask()
    rings = [row["ring"] for row in first["requests"]]
    assert rings.count("kept") == 1024 and 4 * 7 - 4 <= rings.count("worst") <= 4 * 8
    assert rings[0] == "worst" and first["requests"][0]["took_ms"] == 169.0
    assert asked.ask(after=first["heads"])["requests"] == []


def test_a_threshold_is_in_force_until_nobody_asks_for_it() -> None:
    """The lowest of those that somebody asks for; a command that dies leaves nothing behind."""
    asked = Asked()
    asked.ask(threshold_ns=10 * MS)
    asked.ask(threshold_ns=50 * MS)
    assert asked.sent == [Trace(10 * MS)]
    asked.scheduler.run_for(ASKED_FOR // 2)
    asked.ask(threshold_ns=50 * MS)
    asked.scheduler.run_for(ASKED_FOR * 3 // 4)
    assert asked.sent == [Trace(10 * MS), Trace(50 * MS)]
    asked.scheduler.run_for(2 * ASKED_FOR)
    assert asked.sent == [Trace(10 * MS), Trace(50 * MS), Trace(trace.KEPT_FROM)]


@pytest.mark.parametrize(
    "fields",
    [{"threshold_ns": -1}, {"threshold_ns": "1"}, {"threshold_ns": True}, {"after": 3}, {"after": {"kept": -1}}],
)
def test_a_question_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    """And nothing is told to the worker."""
    asked = Asked()
    with pytest.raises(Refused, match="expected"):
        asked.ask(**fields)
    assert asked.sent == []


def test_who_was_in_the_way_is_remembered() -> None:
    """A wait for a region that another host held: the request that waited then names that host, an earlier one not."""
    rig = LockRig("host-a", "host-b")
    rig.a.want("region/7", EX)
    rig.settle()
    asked = Asked(rig.scheduler)
    waits = asked.tracing.waits
    waits.member = rig.b.member
    asked.note(200, region=7, region_ms=200)
    rig.run(1)
    waits.received(Want("region/7", EX))
    rig.run(1)
    waits.sending(asked.sent.append)(Grant("region/7", EX, 1))
    asked.note(900, region=7, region_ms=900)
    rows = asked.ask()["requests"]
    assert [(row["region"], row["longest"], row["waited_for"]) for row in rows] == [
        (7, "region", []), (7, "region", ["host-a"]),
    ]  # fmt: skip
    assert asked.sent == [Grant("region/7", EX, 1)]  # passed on


def test_what_was_answered_since_the_worker_looked_is_not_under_way() -> None:
    """Its list is a quarter of a second old at worst."""
    asked = Asked()
    rows = [[asked.scheduler.now() - 5, took * MS, 1, offset, 4096, 0, 0, 0, REGION, *[0] * len(STAGES)]
            for offset, took in ((0, 300), (8192, 200))]  # fmt: skip
    asked.page.under_way(rows)
    assert [row["offset"] for row in asked.ask()["under_way"]] == [0, 8192]
    asked.page.note(rows[0])
    assert [(row["offset"], row["stage"], row["ended"]) for row in asked.ask()["under_way"]] == [(8192, "region", None)]


# ---- what people see


def row(took: float = 1223.9, **changes: Any) -> dict[str, Any]:
    spent = changes.pop("spent", {"region": took - 10, "io": 10.0})
    return {
        "ring": "kept", "number": 1, "ended": 1_700_000_000.5, "took_ms": took, "op": "write", "error": "",
        "export": "origin", "offset": 1 << 40, "length": 32 * MIB, "stages_ms": {**dict.fromkeys(STAGES, 0.0), **spent},
        "longest": max(spent, key=spent.get), "stage": None, "region": 16383, "region_bytes": [0, 1], "snapshot": "s1",
        "waited_for": ["host-b"], **changes,
    }  # fmt: skip


ROWS = [
    row(),
    row(0.3, region=None, waited_for=[], spent={"io": 0.3}, snapshot=None),
    row(99_999.0, export="snapshot/a-snapshot-with-a-long-name-of-sixty-three-characters-in-all", error="EIO"),
    row(700_000.0, ended=None, stage="write_cow", spent={"write_cow": 700_000.0}, waited_for=[]),
    row(5000.0, spent={"tail": 4000.0, "table": 1000.0}, waited_for=["host-b", "host-c", "host-d"]),
    row(5000.0, spent={"lease": 5000.0}),
]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_every_line_fits(width: int) -> None:
    """80 columns; from 120 on export, offset and length are there too. Columns stand below their names."""
    head = tracetext.head(width)
    assert len(head) <= width
    for each in ROWS:
        line = tracetext.line(each, width)
        assert len(line) <= width, line
        assert line[head.index("QUEUE") - 1] == line[head.index("WAIT") - 2] == " "
        assert ("1099511627776" in line) == (width >= 120)
    assert tracetext.line(ROWS[0], 80).endswith("region 16383: host-b")
    assert "etcd (lease)" in tracetext.line(ROWS[5], 80)
    assert tracetext.line(ROWS[3], 80).startswith("write_co   12m+ write")


def test_durations() -> None:
    """At most five signs, whatever it is."""
    shown = [tracetext.duration(value) for value in (0, 0.085, 1.26, 99.4, 999.6, 59_940, 99_960, 599_000, 3_600_000)]
    assert shown == ["-", "85us", "1.3ms", "99ms", "1.0s", "59.9s", "100s", "599s", "60m"]


def test_the_summary_says_where_the_time_went_and_what_to_look_at() -> None:
    """Shares of the whole, the largest first; whose lock it was; one sentence on what to do."""
    summary = Summary(100.0)
    assert summary.text() == "no request that is answered took 100ms or longer"
    summary.add([row(1000.0), row(3000.0, spent={"write_cow": 2000.0, "region": 1000.0})])
    summary.lost = 3
    lines = summary.text().splitlines()
    assert lines[0].startswith("2 requests of 100ms or longer, ") and lines[0].endswith("slowest 3.0s")
    assert [line.split()[:3] for line in lines[3:6]] == [
        ["write_cow", "50%", "2.0s"], ["region", "50%", "2.0s"], ["io", "0%", "10ms"],
    ]  # fmt: skip
    assert "waited for: region 16383: host-b (2.0s)" in lines
    assert lines[-2].startswith("3 more were overwritten") and lines[-1].startswith("write_cow: the COW device is slow")
    assert max(map(len, lines)) <= 80
    value = summary.to_json()
    assert value["stages"]["write_cow"] == {"total_ms": 2000.0, "share": 0.5, "requests": 1, "longest_ms": 2000.0}
    for stage in STAGES:
        assert len(f"{stage}: {tracetext.ADVICE[stage]}") <= 100


@pytest.mark.parametrize(
    ("text", "expected"), [("10ms", 10.0), ("2s", 2000.0), ("15m", 900_000.0), ("1.5h", 5_400_000.0), ("3", 3000.0)]
)
def test_times_as_people_write_them(text: str, expected: float) -> None:
    """A bare number is of seconds."""
    assert tracing.milliseconds(text) == expected


@pytest.mark.parametrize("option", [
    ("--threshold", "fast"), ("--threshold", "-1s"), ("--threshold", "2h"), ("--since", "3d"), ("--slowest", "0"),
    ("--interval", "1ms"), ("--interval", "10s"),
])  # fmt: skip
def test_options_that_make_no_sense_are_usage_errors(
    capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    """One line, exit code 2."""
    with pytest.raises(SystemExit) as end:
        main(["trace", "x", *option])
    assert end.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


class Daemon:
    """Plays answers; NoDaemon where there is None."""

    def __init__(self, *answers: list[dict[str, Any]] | None) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.count = 0
        self.incarnation = "one"

    def ask(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if found is None:
            self.count, self.incarnation = 0, "two"
            raise NoDaemon("nobody listens")
        self.count += len(found)
        return {
            "requests": found, "under_way": [], "lost": 0, "heads": {"kept": self.count, "live": 0},
            "now": 1_700_000_001.0, "incarnation": self.incarnation,
        }  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "vmstore.toml"
    path.write_text(GOOD)
    return str(path)


def test_once_in_json(config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each request that ended after --since, the slowest first if asked for; then the summary of all."""
    daemon = Daemon([row(200.0), row(400.0), row(300.0), row(900.0, ended=1_699_990_000.0)])
    monkeypatch.setattr(tracing, "ask", daemon.ask)
    assert main(["trace", config, "--once", "--json", "--slowest", "2", "--threshold", "150ms"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["event"], line.get("took_ms")) for line in lines] == [
        ("request", 400.0), ("request", 300.0), ("summary", None),
    ]  # fmt: skip
    assert lines[-1]["requests"] == 3
    assert daemon.asked == [{"command": "trace", "after": {}, "threshold_ns": 150 * MS}]


def test_following_survives_a_restart_of_the_daemon(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said once that nobody answers; another daemon's numbers begin anew."""
    again = [row(500.0)]
    daemon = Daemon([row(200.0)], [], None, None, again, again, [])
    monkeypatch.setattr(tracing, "ask", daemon.ask)
    passed = iter(range(100))
    monkeypatch.setattr(tracing.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(tracing.time, "monotonic", lambda: next(passed))
    assert main(["trace", config, "--duration", "6s"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("nobody listens; waiting for it") == 1
    assert "200ms write" in captured.out and captured.out.count("500ms write") == 1
    assert "2 requests of 100ms or longer" in captured.out
    assert {} in [request["after"] for request in daemon.asked[4:]]


def test_nobody_answers_at_first(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the configuration is wrong, or the daemon is not there: exit code 3."""
    monkeypatch.setattr(tracing, "ask", Daemon(None).ask)
    assert main(["trace", config]) == 3


def test_every_field_and_stage_is_documented() -> None:
    """docs/operations.md has each one of ``trace --json``, and a row for each stage."""
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    fields = text.partition("### `csnap trace --json`")[2].partition("\n## ")[0]
    asked = Asked()
    asked.note(150, io=150)
    for name in ("event", *asked.ask()["requests"][0], *Summary(100.0).to_json()):
        assert f"`{name}`" in fields, name
    for stage in STAGES:
        assert f"| `{stage}` |" in text, stage
