"""The demo's judge and its tools: a judge that accepts everything would prove nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.history import NEVER, Write, judge, read_stamp, stamp
from demo.host import Metrics, environment
from demo.nbd import NbdClient, NbdError
from demo.raw import rebuild
from demo.writer import GONE, read_journal
from snapd.units import KIB, MIB
from tests.support.etcd_server import wait_for
from tests.support.worker_process import WorkerProcess, make_cow

SIZE = 512
BEGAN, RETURNED = 10.0, 11.0


def image(*stamps: tuple[int, int, int] | None) -> bytes:
    """Return blocks with these (host, block, sequence)."""
    return b"".join(bytes(SIZE) if one is None else stamp(*one, SIZE) for one in stamps)


def verdict(content: bytes, *writes: Write) -> str:
    return "; ".join(judge(content, SIZE, writes, BEGAN, RETURNED))


def test_a_stamp_is_read_back() -> None:
    """A block shows its stamp; zeros show none; a torn block and foreign bytes are refused."""
    assert read_stamp(stamp(1, 2, 3, SIZE)) == (1, 2, 3)
    assert read_stamp(bytes(SIZE)) is None
    with pytest.raises(ValueError, match="torn"):
        read_stamp(stamp(1, 2, 3, SIZE // 2) + stamp(1, 2, 4, SIZE // 2))
    with pytest.raises(ValueError, match="no stamp"):
        read_stamp(b"x" * SIZE)


def test_a_good_history_is_accepted() -> None:
    """What was acknowledged before is there, what was issued after is not, what was in between may be."""
    before, after = Write(0, 0, 1, 1.0, 2.0), Write(0, 0, 2, 11.5, 12.0)
    between = Write(1, 1, 1, 10.2, 10.8)
    assert not verdict(image((0, 0, 1), (1, 1, 1)), before, after, between)
    assert not verdict(image((0, 0, 1), None), before, after, between)


def test_an_unanswered_write_may_or_may_not_be_there() -> None:
    """A write that was never acknowledged is right either way."""
    write = Write(0, 0, 1, 5.0, NEVER)
    assert not verdict(image((0, 0, 1)), write)
    assert not verdict(image(None), write)


def test_a_write_of_a_host_that_was_fenced_comes_too_late() -> None:
    """Nothing of a host may appear over what others wrote after it was fenced."""
    dead, living = Write(0, 0, 1, 1.0, NEVER, latest=4.0), Write(1, 0, 1, 5.0, 6.0)
    assert "lacks a write" in verdict(image((0, 0, 1)), dead, living)
    assert not verdict(image((1, 0, 1)), dead, living)
    assert not verdict(image((0, 0, 1)), dead)
    assert not verdict(image(None), dead)


def test_either_of_two_overlapping_writes_may_win() -> None:
    """Two hosts write one block at once: either order is right, also when both are old."""
    one, two = Write(0, 0, 1, 1.0, 3.0), Write(1, 0, 1, 2.0, 4.0)
    assert not verdict(image((0, 0, 1)), one, two)
    assert not verdict(image((1, 0, 1)), one, two)


def test_a_lost_write_is_found() -> None:
    """A write acknowledged before the command, but not in the snapshot; or an older one in its place."""
    first, second = Write(0, 0, 1, 1.0, 2.0), Write(0, 0, 2, 3.0, 4.0)
    assert "lacks a write acknowledged 8.0000 s" in verdict(image(None), first)
    assert "lacks a write acknowledged 6.0000 s" in verdict(image((0, 0, 1)), first, second)


def test_a_late_write_is_found() -> None:
    """A write issued after the command returned, in the snapshot."""
    assert "0.5000 s after the command returned" in verdict(image((0, 0, 1)), Write(0, 0, 1, 11.5, 12.0))


def test_an_image_of_two_moments_is_found() -> None:
    """Between begin and return everything is allowed, but not a later write without an earlier one."""
    early, late = Write(0, 0, 1, 10.1, 10.2), Write(1, 1, 1, 10.3, 10.4)
    assert "not one moment" in verdict(image(None, (1, 1, 1)), early, late)
    assert not verdict(image((0, 0, 1), None), early, late)


def test_an_invented_write_is_found() -> None:
    """A stamp that nobody wrote, or that belongs to another block."""
    assert "nobody made" in verdict(image((0, 0, 7)), Write(0, 0, 1, 1.0, 2.0))
    assert "content of block 1" in verdict(image((0, 1, 1)), Write(0, 1, 1, 1.0, 2.0))


def test_the_raw_devices_are_put_together(tmp_path: Path) -> None:
    """Old chunks come from the COW file, others from the origin; the last one may be cut off."""
    (tmp_path / "origin").write_bytes(b"a" * SIZE + b"b" * SIZE + b"c" * (SIZE // 2))
    (tmp_path / "cow").write_bytes(bytes(2 * SIZE) + b"A" * SIZE + b"C" * SIZE)
    dump = {"chunk_size": 1, "exceptions": [[0, 2], [2, 3]]}
    whole = rebuild(tmp_path / "origin", tmp_path / "cow", dump)
    assert whole == b"A" * SIZE + b"b" * SIZE + b"C" * (SIZE // 2)


def test_metrics_are_summed() -> None:
    """Sums and quantiles go over the samples with the labels asked for."""
    metrics = Metrics(
        "# TYPE w histogram\n"
        'w_bucket{k="a",le="0.1"} 3\nw_bucket{k="a",le="+Inf"} 4\nw_count{k="a"} 4\nw_sum{k="a"} 2\n'
        'w_bucket{k="b",le="0.1"} 6\nw_bucket{k="b",le="+Inf"} 6\nw_count{k="b"} 6\nw_sum{k="b"} 1\n'
    )
    assert metrics.sum("w_count") == 10
    assert metrics.sum("w_count", k="b") == 6
    assert metrics.quantile("w", 0.9) == 0.1
    assert metrics.quantile("w", 0.99, k="a") == float("inf")
    assert metrics.quantile("absent", 0.99) == 0


def test_a_worker_under_a_writer(tmp_path: Path) -> None:
    """Writer, journal, client and judge together, on a real worker: a snapshot of one moment, that stays."""
    origin, journal = tmp_path / "origin", tmp_path / "journal"
    with open(origin, "wb") as file:
        file.truncate(4 * MIB)
    with WorkerProcess(tmp_path, origin) as worker:
        arguments = [str(worker.socket), str(journal), "0", "4096", "0", "1024", "7"]
        writer = subprocess.Popen([sys.executable, "-m", "demo.writer", *arguments], env=environment())

        def written(count: int) -> None:
            wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= count, f"{count} writes")

        written(500)
        began = time.monotonic()
        worker.take(make_cow(tmp_path / "cow", "s1", 4 * MIB, 16 * KIB, 8 * MIB))
        wait_for(lambda: _exists(worker.socket, "snapshot/s1"), "the snapshot is exported")
        returned = time.monotonic()
        with NbdClient(worker.socket, "snapshot/s1") as client:
            first = client.read_all()
            written(journal.read_bytes().count(b"\n") + 500)
            assert hashlib.sha256(client.read_all()).digest() == hashlib.sha256(first).digest()
            with pytest.raises(NbdError):
                client.write(0, bytes(4096))
        writer.terminate()
        assert writer.wait(10) == 0
        assert judge(first, 4096, read_journal(journal, 0), began, returned) == []
        assert worker.stop() == 0
    gone = subprocess.run(
        [sys.executable, "-m", "demo.writer", *arguments], env=environment(), capture_output=True, check=False
    )
    assert gone.returncode == GONE


def _exists(path: Path, export: str) -> bool:
    try:
        NbdClient(path, export).close()
    except NbdError:
        return False
    return True
