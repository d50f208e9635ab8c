"""``csnap top``: what is computed from the daemon's answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from snapd.cli.top import words
from snapd.cli.top.model import History, quantile
from snapd.cli.top.observation import parse
from snapd.errors import CsnapError
from tests.support.top_scenes import TAKEN, answer, busy, host, modelled, row, silenced, snapshot, wait


def test_rates_are_differences_by_the_daemons_own_clock() -> None:
    """2,000 writes in two seconds of the daemon are 1,000 a second, whenever the answers arrived."""
    model = busy()
    write = next(line for line in model.io if (line.group, line.op) == ("origin", "write"))
    assert (write.per_second, write.bytes_per_second, write.total) == (1000, 4096000, 3000)
    assert (model.copies_per_second, model.entries_per_commit, model.span) == (50, 10, 2)
    assert model.hosts[0].per_second == 1500


def test_one_answer_has_no_rates() -> None:
    """Unknown is not zero."""
    model = modelled(answer(100.0, row("origin", "write", 10, 40960, k18=10)))
    assert model.span is None
    assert model.io[0].per_second is None and model.io[0].p99 is None
    assert model.errors_per_second is None and model.stores[0].fill is None


@pytest.mark.parametrize(
    "after",
    [
        answer(102.0, row("origin", "write", 2000, 0), incarnation="two"),
        answer(102.0, row("origin", "write", 5, 0)),
        answer(99.0, row("origin", "write", 2000, 0)),
    ],
    ids=["another incarnation", "counters went back", "another boot"],
)
def test_a_restarted_daemon_is_not_compared_with_the_one_before(after: dict[str, Any]) -> None:
    """However the restart shows itself."""
    model = modelled(answer(100.0, row("origin", "write", 1000, 0)), after)
    assert model.span is None and model.io[0].per_second is None


def test_quantiles_lie_inside_their_bucket() -> None:
    """Linear between half the bound and the bound; nothing has no quantile."""
    assert quantile([0] * 44, 0.5) is None
    only_k10 = [0] * 10 + [100]
    assert quantile(only_k10, 0.5) == pytest.approx(768e-9)
    assert quantile(only_k10, 0.99) == pytest.approx(1018.88e-9)
    two = [0] * 10 + [99, 0, 0, 1]
    assert quantile(two, 0.99) == pytest.approx(1024e-9)
    assert quantile(two, 1.0) == pytest.approx(8192e-9)


def test_time_to_full_is_what_is_left_by_the_fill_rate() -> None:
    """Over the window, not over the last two answers alone; a snapshot that does not grow is never full."""
    used = [1 << 30, 2 << 30, 2 << 30]
    answers = [answer(100.0 + 10 * n, snapshots=[snapshot("s1", value)]) for n, value in enumerate(used)]
    store = modelled(*answers).stores[0]
    assert store.fill == pytest.approx((1 << 30) / 20)
    assert store.full_in == pytest.approx((14 << 30) / ((1 << 30) / 20))
    assert store.percent == 12.5
    still = modelled(*(answer(100.0 + n, snapshots=[snapshot("s1", 1 << 30)]) for n in range(3))).stores[0]
    assert (still.fill, still.full_in) == (0, None)


def test_a_snapshot_that_is_not_loaded_is_named_and_nothing_more() -> None:
    """No percentage of a device that this host has not opened."""
    store = modelled(answer(100.0, snapshots=[snapshot("s1", None, None)])).stores[0]
    assert (store.name, store.percent, store.fill, store.full_in) == ("s1", None, None, None)


def test_the_history_ends_a_minute_ago() -> None:
    """A burst of an hour ago does not fill a snapshot now."""
    answers = [answer(100.0 + 30 * n, snapshots=[snapshot("s1", (1 << 30) if n else 0)]) for n in range(5)]
    assert modelled(*answers).stores[0].fill == 0


def test_who_blocks_whom_is_counted_per_host() -> None:
    """Waits of each host, and tickets that wait for its holds."""
    waits = [wait("region/1", "host-a", 2.0, "host-b"), wait("region/2", "host-c", 1.0, "host-b")]
    hosts = {line.node: line for line in modelled(answer(100.0, waits=waits)).hosts}
    assert [(hosts[f"host-{letter}"].waits, hosts[f"host-{letter}"].blocks) for letter in "abc"] == [
        (1, 0), (0, 2), (1, 0),
    ]  # fmt: skip


def test_of_other_hosts_only_what_etcd_says_is_told() -> None:
    """Neither lease nor I/O nor, without a record of it, a version."""
    here, other, _ = busy().hosts
    assert here.here and here.lease == 8.1 and here.version == "0.1.0"
    assert (other.lease, other.per_second, other.version) == (None, None, "")


def test_silence_keeps_the_figures_and_says_since_when() -> None:
    """The first silence counts; the next answer of the same daemon ends it."""
    model = silenced()
    assert (model.silent_since, model.taken) == (TAKEN + 4, TAKEN)
    assert "nobody listens" in model.silent_why and model.io[0].total == 1000
    history = History()
    history.silent("gone", TAKEN)
    assert history.model() is None and history.silence == (TAKEN, "gone")
    history.answered(parse(answer(100.0)), TAKEN)
    assert history.silence is None


def test_the_model_is_json() -> None:
    """What ``--json`` prints."""
    assert json.loads(json.dumps(busy().to_json()))["io"][0]["group"] == "origin"


@pytest.mark.parametrize(
    "value", [None, [], {}, {"format": 2}, {"format": 1}, {**answer(1.0), "waits": [{}]}, {**answer(1.0), "held": []}]
)
def test_what_is_no_answer_is_refused_in_words(value: Any) -> None:
    """A daemon of another version: no traceback."""
    with pytest.raises(CsnapError, match="the daemon's figures"):
        parse(value)


def test_names_from_etcd_are_made_printable() -> None:
    """An escape sequence in a node's name does nothing to a terminal."""
    model = modelled(answer(100.0, members=[host("host-\x1b[2J\x9b")]))
    assert model.hosts[0].node == r"host-\x1b[2J\x9b"


def test_numbers_for_people() -> None:
    """Three figures and a unit."""
    assert [words.count(value) for value in (None, 0, 0.44, 9.96, 17, 999.6, 1234, 12345678)] == [
        "-", "0", "0.4", "10.0", "17", "1.0k", "1.2k", "12M",
    ]  # fmt: skip
    assert [words.size(value) for value in (None, 0, 512, 4096, 1 << 20, 34 << 30)] == [
        "-", "0", "512B", "4.0K", "1.0M", "34G",
    ]  # fmt: skip
    assert [words.duration(value) for value in (None, 85e-6, 0.0013, 0.24, 2.5, 840, 11160, 9 * 86400, 1e10)] == [
        "-", "85us", "1.3ms", "240ms", "2.5s", "14m", "3.1h", "9d", ">999d",
    ]  # fmt: skip
    assert [words.bar(value, 4) for value in (None, 0, 50, 100, 120)] == [
        "[....]",
        "[....]",
        "[##..]",
        "[####]",
        "[####]",
    ]
