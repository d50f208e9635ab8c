"""Fencing against a real kernel: SCSI-3 reservations over LIO's iSCSI target with two initiators, and a watchdog.

Target and initiators are one guest, with one iSCSI session for each host: what tells them apart at the target is the
session (the I_T nexus), as on two machines. The helper's own code does every ioctl, asked over its socket.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from snapd.units import MIB
from tests.kernel.support import initiator, python
from tests.kernel.support.vm import VmError, run_vm
from tests.kernel.support.watchdog import LEASE, TIMEOUT

pytestmark = pytest.mark.timeout(200)

TARGET = f"""
. /lib/guest.sh
load {" ".join(initiator.MODULES)}
ip link set lo up
mkdir -p /etc/target /var/target/pr; mount -t configfs none /sys/kernel/config
core=/sys/kernel/config/target/core; target=/sys/kernel/config/target/iscsi/iqn.2026-01.test:lun/tpgt_1
mkdir -p $target "$target/np/0.0.0.0:3260" || die target
for n in 0 1; do
  lun=$core/iblock_$n/lun; mkdir -p $lun
  echo "udev_path=/dev/vd$(echo $n | tr 01 ab)" >$lun/control; echo "serial$n" >$lun/wwn/vpd_unit_serial
  echo 1 >$lun/enable || die enable
  mkdir -p $target/lun/lun_$n; ln -s $lun $target/lun/lun_$n/port || die lun
done
for host in 1 2; do for n in 0 1; do
  acl=$target/acls/iqn.2026-01.host:$host/lun_$n
  mkdir -p $acl; ln -s $target/lun/lun_$n $acl/lun || die acl
done; done
echo 0 >$target/attrib/authentication; echo 1 >$target/enable || die enable the target
# Two addresses: iscsistart takes a second session to the same portal for the first one.
for host in 1 2; do
  iscsistart -i iqn.2026-01.host:$host -t iqn.2026-01.test:lun -g 1 -a 127.0.0.$host || die login
done
n=0; until [ -b /dev/sdd ]; do sleep 0.1; n=$((n + 1)); [ $n -gt 200 ] && die no disks; done
{python.RUN} -m tests.kernel.support.reservations /dev/sda /dev/sdb /dev/sdc /dev/sdd || die python
"""


def test_a_fenced_host_writes_nothing_more(tmp_path: Path) -> None:
    """Two hosts write; one preempts the other's key on origin and COW device, with abort: the victim's next write gets
    EBADE, nothing of it reaches the disk afterwards, its registration is gone, and the survivor writes on. What the
    daemon relies on besides: preempting twice, a new incarnation, the holder of the reservation, leaving."""
    disks = [tmp_path / "origin", tmp_path / "cow"]
    for disk in disks:
        disk.write_bytes(bytes(16 * MIB))
    files = {**initiator.files(), **python.files("tests.kernel.support.reservations")}
    result = run_vm(TARGET, disks, modules=initiator.MODULES, files=files, deadline=150)
    assert result.code == 0
    facts = result.named("FACT")

    assert facts["foreign"] == "CsnapError"  # a device that is neither the origin nor a COW device of this volume
    assert facts["trial"] == "register=True reserve=True preempt=True unregister=True (and abort)"
    assert facts["after-trial"] == "0 0"  # it has left nothing behind

    assert facts["a-registers"] == "holder=True holder=True"
    assert facts["stranger"] == "52 52"  # who has not registered may not write
    assert facts["b-registers"] == "holder=False holder=False"
    assert facts["both-write"] == "0 0 0"
    assert facts["verified"] == " ".join(["registered=True"] * 4) + " 0 0"  # as csnap doctor does, and nothing changes
    assert facts["live-trial"] == "register=True reserve=True preempt=True (and abort)"

    assert facts["b-preempted"] == "found=True,aborted=True found=True,aborted=True"
    assert facts["victim"] == "52 1"
    assert facts["victim-late"] == "0"
    assert facts["survivor"] == "0 True"
    assert facts["fenced-writes"] == "52 52"
    assert facts["fenced-verifies"] == " ".join(["registered=False"] * 2 + ["registered=True"] * 2)
    assert facts["fenced-preempts"] == "Fenced Fenced"
    assert facts["again"] == "found=False,aborted=True found=False,aborted=True"

    assert facts["b-returns"] == "holder=False holder=False 0"
    assert facts["old-key"] == "found=False,aborted=True found=False,aborted=True 0"
    assert facts["holder-preempted"] == "found=True,aborted=True found=True,aborted=True"
    assert facts["holder-writes"] == "52 52 0"

    assert facts["holder-leaves"] == "kept=True kept=True"
    assert facts["handed-over"] == "found=True,aborted=False found=True,aborted=False"
    assert facts["no-gap"] == "52 0"
    assert facts["last-leaves"] == "kept=False kept=False"
    assert facts["free"] == "0 0"


def test_a_host_whose_lease_ends_resets() -> None:
    """softdog in the helper's hands: disarmed in order it does nothing; petted it lets the host live for much longer
    than its timeout; after the deadline it resets the host, within the timeout."""
    facts: list[tuple[str, str]] = []

    def told(kind: str, rest: str) -> None:
        if kind == "FACT":
            facts.append((rest.partition(" ")[0], rest.partition(" ")[2]))

    files = python.files("tests.kernel.support.watchdog")
    script = f". /lib/guest.sh; load softdog; {python.RUN} -m tests.kernel.support.watchdog"
    with pytest.raises(VmError) as reset:
        run_vm(script, modules=["softdog"], files=files, told=told, deadline=120)
    assert "did not end" not in str(reset.value), "never reset"
    named = dict(facts)
    assert "Software Watchdog" in named["look"] and f"'timeout': {TIMEOUT}" in named["look"]
    assert (named["disarmed"], named["lives"]) == ("True", "on")
    lived = float(named["alive"])
    assert TIMEOUT + 2 < lived < LEASE + TIMEOUT + 1
