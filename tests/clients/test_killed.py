"""A worker that is killed under load, and its successor: nothing acknowledged is lost, no snapshot has changed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from snapd import counters
from snapd.messages import UNTRUSTED
from snapd.nbd import wire
from snapd.units import KIB, MIB
from tests.support.lock_sim import LockSim
from tests.support.nbd_client import NbdClient
from tests.support.worker_process import WorkerProcess, make_cow, wait_until

CHUNK = 16 * KIB
SIZE = 8 * MIB


def load(worker: WorkerProcess, rng: random.Random, copies: int, content: bytes) -> dict[int, list[bytes]]:
    """Write at depth 16 until so many chunks were copied, then kill the worker.

    Return what each written block may hold: what was acknowledged last, or what was under way since.
    """
    allowed: dict[int, list[bytes]] = {}
    running: dict[int, tuple[int, bytes]] = {}
    stamp = 0
    with NbdClient(worker.socket) as client:
        while worker.words[counters.COPIES] < copies:
            while len(running) < 16:
                offset = rng.randrange(SIZE // 4096) * 4096
                if any(offset == busy for busy, _ in running.values()):
                    continue
                stamp += 1
                data = stamp.to_bytes(8, "little") * 512
                allowed.setdefault(offset, [content[offset : offset + 4096]]).append(data)
                running[client.send(wire.CMD_WRITE, offset, data=data)] = (offset, data)
            reply = client.reply()
            assert not reply.error
            offset, data = running.pop(reply.cookie)
            allowed[offset] = [data]  # what was there before is gone
        worker.process.kill()
        worker.process.wait()
    return allowed


@pytest.mark.parametrize("seed", range(4))
def test_a_successor_finds_the_snapshot_unchanged_and_every_acknowledged_write(tmp_path: Path, seed: int) -> None:
    """Killed in the midst of copies and commits: the next incarnation re-reads, zeroes the stale tail, and goes on."""
    rng = random.Random(seed)
    content = rng.randbytes(SIZE)
    origin = tmp_path / "origin"
    origin.write_bytes(content)
    locks = LockSim()
    with WorkerProcess(tmp_path, origin, CHUNK, locks=locks) as worker:
        spec = make_cow(tmp_path / "cow", "s1", SIZE, CHUNK, 16 * MIB)
        worker.take(spec)
        allowed = load(worker, rng, rng.randrange(20, 300), content)
    locks.crash("host-a")
    assert locks.counters[spec.store][1] == UNTRUSTED
    with WorkerProcess(tmp_path, origin, CHUNK, locks=locks) as worker:
        with NbdClient(worker.socket) as client, NbdClient(worker.socket, "snapshot/s1") as snapshot:
            for offset in range(0, SIZE, 4096):
                assert client.read(offset, 4096) in allowed.get(offset, [content[offset : offset + 4096]]), offset
            for offset in range(0, SIZE, MIB):
                assert snapshot.read(offset, MIB) == content[offset : offset + MIB]
            for offset in range(0, SIZE, MIB):
                assert client.write(offset, bytes(MIB)) == 0
            for offset in range(0, SIZE, MIB):
                assert snapshot.read(offset, MIB) == content[offset : offset + MIB]
        assert worker.words[counters.REREADS["untrusted"]] == 1
        wait_until(lambda: worker.words[counters.INFLIGHT] == 0)
        assert worker.stop() == 0
