"""The simulated disks under the engines' contract: all of its tests but those about metrics, they have none."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from snapd.blockdev.arena import Arena
from snapd.units import MIB
from tests.contract import test_engine as contract
from tests.sim.disk import Disk, Handle
from tests.sim.polled import PolledWay
from tests.support.disks import SIZE
from tests.support.engine_rig import Make, Rig, page

ABOUT_METRICS = {
    "test_every_operation_is_counted_once_in_its_row",
    "test_what_waits_for_a_slot_or_the_gate_is_timed_from_the_kernels_having_it",
}

globals().update(
    {name: test for name, test in vars(contract).items() if name.startswith("test_") and name not in ABOUT_METRICS}
)
rig = contract.rig


@pytest.fixture
def make() -> Make:
    def simulated(stack: ExitStack, depth: int) -> Rig:
        engine = PolledWay(Arena(8 * MIB), gate=lambda: rig.gate())
        stack.callback(engine.close)
        rig = Rig(engine, Handle(Disk(SIZE, "simulated")), page())  # type: ignore[arg-type]
        return rig

    return simulated
