"""What the simulator has found, each as small as it could be made."""

from __future__ import annotations

from snapd.lockspace.kv import Delete, Txn
from snapd.messages import CR, EX
from snapd.units import SECOND
from tests.support.lock_rig import UUID, LockRig


def test_a_restarted_member_believes_no_hold_of_its_older_incarnation() -> None:
    """What the mirror showed of old holds while they were cleaned up is forgotten: nothing of it is confirmed, and a CR
    that is not there is not converted for ever."""
    rig = LockRig("host-a", "host-b")
    rig.a.want("region/5", CR)
    rig.settle()
    rig.a.kill()  # frozen: it has given the table back
    gone = Txn((), (Delete(f"/csnap/{UUID}/h/table/CR/host-a"),))
    rig.etcd.client("test").txn(gone, SECOND, lambda result: None)
    rig.b.want("region/5", EX)
    again = rig.add("host-a")
    rig.until(lambda: again.member.state == "active")
    again.want("region/5", EX)
    rig.until(lambda: again.holds("region/5") == EX)
    assert not again.events("epoch_bump")
