"""The kernel's NBD client against a real worker process: ext4 on the origin, a snapshot of it mounted beside it."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from snapd.exstore.check import check
from snapd.exstore.content import Content
from snapd.exstore.image import Read
from snapd.units import KIB, MIB
from tests.kernel.support import relay
from tests.kernel.support.vm import SERVICE, SERVICE_PORT, run_vm
from tests.support.worker_process import WorkerProcess, make_cow

pytestmark = pytest.mark.timeout(240)

ORIGIN_SIZE = 48 * MIB
CHUNK = 16 * KIB

SCRIPT = f"""
. /lib/guest.sh
load virtio_net nbd ext4
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
attach() {{ /usr/sbin/nbd-client {SERVICE} {SERVICE_PORT} $1 -N $2 -b 512 -C $3 -t 30 >/tmp/nbd.log 2>&1; }}
attach /dev/nbd0 origin 2 || {{ cat /tmp/nbd.log; die attach; }}
echo "@@SIZE origin $(blockdev --getsize64 /dev/nbd0) $(blockdev --getss /dev/nbd0)"
mkfs.ext4 -q -E nodiscard,lazy_itable_init=0 /dev/nbd0 || die mkfs
mount -t ext4 /dev/nbd0 /mnt || die mount
dd if=/dev/urandom of=/mnt/kept bs=64k count=40
dd if=/dev/urandom of=/mnt/removed bs=64k count=20
# An unmount brings everything to its place: a read-only mount of the snapshot replays no journal.
umount /mnt; mount -t ext4 /dev/nbd0 /mnt || die mount again
echo "@@FILE kept $(md5sum </mnt/kept | cut -c1-32)"
echo "@@FILE removed $(md5sum </mnt/removed | cut -c1-32)"

# Writes go on while the snapshot is taken: to new files, over the old one, over freed blocks.
( n=0; while [ ! -e /tmp/enough ]; do
    dd if=/dev/urandom of=/mnt/other$((n % 3)) bs=32k count=20 conv=fsync || echo "@@DIE write $(tail -1 /tmp/dd.err)"
    n=$((n + 1)); done; echo $n >/tmp/rounds ) &
writer=$!
until [ -s /mnt/other1 ]; do sleep 0.1; done
echo "@@TAKE s1"
until attach /dev/nbd1 snapshot/s1 1; do sleep 0.1; done
dd if=/dev/urandom of=/mnt/kept bs=64k count=40 conv=notrunc,fsync
rm /mnt/removed
touch /tmp/enough; wait $writer
dd if=/dev/urandom of=/mnt/filling bs=64k count=100 conv=fsync
echo "@@ROUNDS writer $(cat /tmp/rounds)"

echo "@@READONLY s1 $(blockdev --getro /dev/nbd1)"
mkdir /s1; mount -t ext4 -o ro,noload /dev/nbd1 /s1 || die mount the snapshot
echo "@@THEN kept $(md5sum </s1/kept | cut -c1-32)"
echo "@@THEN removed $(md5sum </s1/removed | cut -c1-32)"
echo "@@NOW kept $(md5sum </mnt/kept | cut -c1-32)"
umount /s1; umount /mnt
echo "@@WHOLE s1 $(md5sum </dev/nbd1 | cut -c1-32)"
/usr/sbin/nbd-client -d /dev/nbd1; /usr/sbin/nbd-client -d /dev/nbd0
dmesg | grep -iE "nbd.*(error|timed)|I/O error|EXT4-fs error" | sed 's/^/@@COMPLAINT kernel /'
"""


def read_file(path: Path) -> tuple[Read, int]:
    data = path.read_bytes()
    return (lambda offset, length: data[offset : offset + length]), len(data)


def test_ext4_on_the_origin_and_its_snapshot(tmp_path: Path) -> None:
    """A file system is made, mounted and written through the kernel's client on two connections; a snapshot is taken
    while writes go on; mounted read-only it holds the files as they were; so do the raw devices, and they are sound."""
    origin, cow = tmp_path / "origin", tmp_path / "cow"
    origin.write_bytes(b"")
    with origin.open("r+b") as file:
        file.truncate(ORIGIN_SIZE)
    with WorkerProcess(tmp_path, origin, CHUNK) as worker:

        def told(kind: str, rest: str) -> None:
            if kind == "TAKE":
                worker.take(make_cow(cow, rest, ORIGIN_SIZE, CHUNK, ORIGIN_SIZE))

        result = run_vm(
            SCRIPT,
            programs=["/usr/sbin/nbd-client", "/usr/sbin/mkfs.ext4"],
            modules=["nbd", "ext4"],
            service=f"{sys.executable} {relay.__file__} {worker.socket}",
            told=told,
            deadline=150,
        )
        assert worker.stop() == 0
    assert result.named("COMPLAINT") == {} and result.code == 0
    assert result.named("SIZE")["origin"] == f"{ORIGIN_SIZE} 512"
    assert result.named("READONLY")["s1"] == "1"
    before, then = result.named("FILE"), result.named("THEN")
    assert len(before) == 2 and then == before != result.named("NOW")
    raw = read_file(cow)
    assert check(*raw).problems == []
    content = hashlib.md5(b"".join(Content([raw], read_file(origin)).chunks())).hexdigest()
    assert content == result.named("WHOLE")["s1"]
