"""What the NBD server itself costs: processor time per request, with a volume that completes at once.

    python -m bench.nbd_server [--depth 16] [--seconds 3] [--block 4096] [--write] [--structured] [--profile]

The server runs in a child; the parent is the client: it sends ``depth`` requests in one piece, reads all
their replies, and begins again. Printed is the child's processor time (user, system) per request: the
wall clock of two processes on a shared machine says little.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import resource
import socket
import struct
import sys
import tempfile
import time

from snapd import counters
from snapd.blockdev.arena import Arena, SlotPool
from snapd.clock import boottime
from snapd.nbd import wire
from snapd.nbd.listener import listen
from snapd.nbd.server import NbdServer
from snapd.units import GIB, KIB, MIB
from snapd.volume.request import Export, Request
from snapd.worker.loop import Loop


class NullExport:
    """1 GiB of whatever is in the slots."""

    name = "origin"
    size = GIB
    read_only = False
    minimum_block = 512
    preferred_block = 16 * KIB
    description = ""


class NullVolume:
    """Every request is done at once."""

    def exports(self) -> list[Export]:
        return [NullExport()]

    def settled(self) -> bool:
        return True

    def submit(self, request: Request) -> None:
        request.done(request, 0)


def serve(path: str, ready: int, profile: bool) -> None:
    """Serve one client; on its leaving print what was used."""
    arena = Arena(SlotPool.bytes_needed(256, 64 * KIB, 34, MIB))
    pool = SlotPool(arena, 256, 64 * KIB, 34, MIB)
    words = memoryview(bytearray(counters.PAGE_BYTES)).cast("Q")
    loop = Loop()
    server = NbdServer(listen(path, 0o600), loop, NullVolume(), pool, arena, words, boottime)
    server.open()
    os.write(ready, b"1")
    while not words[counters.CONNECTIONS]:
        loop.turn(1)
    profiler = cProfile.Profile()
    before = resource.getrusage(resource.RUSAGE_SELF)
    if profile:
        profiler.enable()
    again = False
    turns = 0
    while words[counters.CONNECTIONS]:
        loop.turn(0 if again else 1)
        again = server.end_turn(boottime())
        turns += 1
    profiler.disable()
    after = resource.getrusage(resource.RUSAGE_SELF)
    count = sum(words[counters.IO["origin", operation]] for operation in counters.OPERATIONS)
    user, system = (
        (getattr(after, field) - getattr(before, field)) * 1e6 / count for field in ("ru_utime", "ru_stime")
    )
    print(f"{count} requests, {count / turns:.1f} a turn: user {user:.2f} us, system {system:.2f} us a request")
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(14)


def load(path: str, arguments: argparse.Namespace) -> None:
    """Be the client."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    stream = sock.makefile("rwb")
    stream.read(wire.GREETING.size)
    stream.write(wire.CLIENT_FLAGS.pack(3))
    if arguments.structured:
        stream.write(wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_STRUCTURED_REPLY, 0))
    stream.write(wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_EXPORT_NAME, 0))
    stream.flush()
    stream.read((wire.OPTION_REPLY.size if arguments.structured else 0) + wire.EXPORT_SIZE.size)
    kind = wire.CMD_WRITE if arguments.write else wire.CMD_READ
    payload = bytes(arguments.block) if arguments.write else b""
    batch = b"".join(
        wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, kind, struct.pack(">Q", i), i * arguments.block, arguments.block)
        + payload
        for i in range(arguments.depth)
    )
    reply = wire.SIMPLE_REPLY.size + (0 if arguments.write else arguments.block)
    if arguments.structured and not arguments.write:
        reply = wire.DATA_CHUNK.size + arguments.block
    room = memoryview(bytearray(reply * arguments.depth))
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        sock.sendall(batch)
        left = len(room)
        while left:
            left -= sock.recv_into(room, left)
    sock.close()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--block", type=int, default=4096)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--structured", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/nbd.sock"
        ready, tell = os.pipe()
        child = os.fork()
        if not child:
            serve(path, tell, arguments.profile)
            sys.stdout.flush()
            os._exit(0)
        os.read(ready, 1)
        load(path, arguments)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
