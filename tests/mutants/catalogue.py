"""The mutants, and what must catch each.

``kinds``: the simulator's faults under which it shows; None: whatever each seed chooses. ``fencing``: the same.
"""

from __future__ import annotations

from dataclasses import dataclass

Changes = tuple[tuple[str, str], ...]
"""(text, what takes its place)"""


@dataclass(frozen=True, slots=True)
class Mutant:
    """``by``: "sim", within ``seeds`` histories; or the pytest node that must fail. ``quick``: in every test run."""

    name: str
    what: str
    module: str
    changes: Changes
    by: str = "sim"
    kinds: tuple[str, ...] | None = None
    fencing: str = ""
    seeds: int = 300
    quick: bool = False


QUIET: tuple[str, ...] = ()
OUTAGES = ("partition", "pause control", "outage", "freeze", "no space")

MUTANTS = (
    # ---- the COW device
    Mutant(
        "commit-without-flush",
        "the metadata is written without flushing the copies first",
        "snapd.exstore.persistent",
        (
            (
                "        self._run(zeroing, lambda error: self._flushed(entries, done, started, error))",
                "        self._flushed(entries, done, started, None)",
            ),
        ),
        kinds=("array power",),
        quick=True,
    ),
    Mutant(
        "metadata-without-fua",
        "entries are published while they are volatile",
        "snapd.exstore.persistent",
        (
            (
                "begin, end - begin, offset, self._appended, arg, True)",
                "begin, end - begin, offset, self._appended, arg)",
            ),
        ),
        kinds=("array power",),
        quick=True,
    ),
    Mutant(
        "no-next-area",
        "the next area is not zeroed before one fills",
        "snapd.exstore.persistent",
        (
            (
                "        if stop % layout.epa == 0:\n            zeroing.append",
                "        if False:\n            zeroing.append",
            ),
        ),
        kinds=QUIET,
        quick=True,
    ),
    Mutant(
        "no-tail-zeroing",
        "an untrusted tail is used without zeroing what lies behind the last entry",
        "snapd.exstore.clusterized",
        (
            (
                "            self.core.take_over(lambda failed: self._zeroed(target, failed))",
                "            self._zeroed(target, None)",
            ),
        ),
        by="tests/unit/test_clusterized.py::test_an_untrusted_counter_waits_for_the_tail_then_zeroes_what_is_stale",
        quick=True,
    ),
    Mutant(
        "extents-not-recorded",
        "others do not hear of the chunks that a member has reserved",
        "snapd.lockspace.locks",
        (('        if entry.kind == "tail" and done.reserved:', "        if False:"),),
        kinds=QUIET,
        quick=True,
    ),
    Mutant(
        "skips-copies-when-lost",
        "a snapshot that cannot be kept is skipped before the table says so",
        "snapd.volume.routing",
        (("        if stack:\n            missing", "        if stack and not stack[0].lost:\n            missing"),),
    ),
    # ---- counters
    Mutant(
        "early-bump",
        "the counter says entries that are not durable yet",
        "snapd.volume.volume",
        (
            (
                "            (uuid, snapshot.store.core.count)",
                "            (uuid, snapshot.store.core.count + len(snapshot.copies))",
            ),
        ),
        kinds=QUIET,
        quick=True,
    ),
    Mutant(
        "no-reread",
        "a counter that moved is not re-read",
        "snapd.exstore.clusterized",
        (
            (
                "        self._target = counter\n        self._step()",
                "        self._seen, self._value = counter.revision, counter.value\n        if not self.core.loaded:\n"
                "            self._target = counter\n            self._step()",
            ),
        ),
        kinds=QUIET,
        quick=True,
    ),
    Mutant(
        "recovery-marks-nothing",
        "the counters that a dead member owed are trusted",
        "snapd.lockspace.recovery",
        (("        elif marks:", "        elif False:"),),
    ),
    Mutant(
        "counts-without-the-tail",
        "a count is put although the tail is gone, only the answer to its release is late",
        "snapd.lockspace.locks",
        (
            (
                "                when.append(Compare(held, Target.CREATE, tail.token))",
                "                when.append(Compare(held + 'x', Target.CREATE, 0))",
            ),
        ),
        by="tests/unit/test_found_by_simulation.py",
    ),
    # ---- locks
    Mutant(
        "read-without-region",
        "a snapshot read falls through without the region's lock",
        "snapd.volume.routing",
        (("        if not volume.regions.usable(region, CR):", "        if False:"),),
        kinds=QUIET,
        quick=True,
    ),
    Mutant(
        "newer-hit-is-free",
        "a hit in a newer store needs no region lock",
        "snapd.volume.routing",
        (
            (
                "                misses.append(chunk)\n                device, start, _ = self.source(snapshot, chunk)",
                "                device, start, _ = self.source(snapshot, chunk)\n"
                "                if device is self._volume.origin:\n                    misses.append(chunk)",
            ),
        ),
        by="tests/unit/test_volume.py::test_a_miss_below_a_known_hit_of_a_newer_store_needs_the_region_too",
        quick=True,
    ),
    Mutant(
        "reads-not-tracked",
        "an exception is published while a read of this host still looks at the origin",
        "snapd.volume.copyout",
        (("            if copy.chunk in self._reading:", "            if False:"),),
        kinds=("slow disk",),
        seeds=600,
    ),
    Mutant(
        "region-without-drain",
        "a region is given back while a copy-out uses it",
        "snapd.volume.regions",
        (
            (
                "min(mode, self._revoked.get(region, mode))\n        if region not in self._uses:",
                "min(mode, self._revoked.get(region, mode))\n        if True:",
            ),
        ),
        kinds=QUIET,
        quick=True,
    ),
    Mutant(
        "table-without-drain",
        "the table is given back while requests run",
        "snapd.volume.volume",
        (
            (
                "        if self.frozen and not self.running:\n            self.on_drained()\n\n    # ---- the turn",
                "        if self.frozen:\n            self.on_drained()\n\n    # ---- the turn",
            ),
        ),
        kinds=QUIET,
        quick=True,
    ),
    Mutant(
        "leased-holds",
        "holds go with the lease",
        "snapd.lockspace.claims",
        (
            (
                "    return Put(who.keys.hold(resource, mode, who.node), who.incarnation.encode())",
                "    return Put(who.keys.hold(resource, mode, who.node), who.incarnation.encode(), who.lease)",
            ),
        ),
        quick=True,
    ),
    Mutant(
        "old-holds-believed",
        "a restarted member takes its older incarnation's holds for its own",
        "snapd.lockspace.locks",
        (("        self._running = True\n        self.resync()\n", "        self._running = True\n"),),
        by="tests/unit/test_found_by_simulation.py",
        quick=True,
    ),
    # ---- lease, epoch, fencing
    Mutant(
        "deadline-never-passes",
        "the worker is told a deadline that lies far behind the lease's end",
        "snapd.lockspace.session",
        (
            (
                "        self._effects.set_deadline(self.deadline)\n        if self._deadline_timer",
                "        self._effects.set_deadline(self.deadline + 3600 * SECOND)\n        if self._deadline_timer",
            ),
        ),
        kinds=OUTAGES,
        fencing="deadline",
        seeds=600,
    ),
    Mutant(
        "writes-ignore-the-deadline",
        "writes are handed to the kernel though the gate is shut",
        "snapd.blockdev.aio",
        (("len(writes) if writes and self._gate() else 0", "len(writes)"),),
        by="tests/unit/test_aio.py::test_gate_that_shuts_between_two_submits",
    ),
    Mutant(
        "reads-ignore-the-deadline",
        "a snapshot read that came late is answered",
        "snapd.volume.volume",
        (("        return not self._gate()", "        return False"),),
        kinds=("pause worker", "pause both"),
        fencing="pr",
        seeds=1000,
    ),
    Mutant(
        "recovery-without-fencing",
        "a dead member is taken to be fenced",
        "snapd.lockspace.recovery",
        (("            self._fencer.fence(record, done)", "            done()"),),
        by="tests/unit/test_recovery.py::test_holds_outlive_the_lease_until_the_member_is_fenced",
    ),
    Mutant(
        "transactions-without-epoch",
        "ALIVE stands in no transaction",
        "snapd.lockspace.session",
        (
            (
                "Txn((self.alive, *compare), success, (Range(key), *failure))",
                "Txn(compare, success, (Range(key), *failure))",
            ),
        ),
        by="tests/unit/test_locks.py::test_a_late_transaction_of_an_older_epoch_is_void",
        quick=True,
    ),
    Mutant(
        "no-epoch-bump",
        "after an unknown outcome the mirror is believed, and what is under way is not voided",
        "snapd.lockspace.session",
        (
            (
                "        self.phase = DOUBT\n        self._generation += 1\n        self._bump()",
                "        self._generation += 1\n        self._proven = True\n        self._owner.resync()\n"
                "        self._thaw()\n        self._owner.ready()",
            ),
        ),
        kinds=("noisy", "freeze", "leader"),
    ),
    Mutant(
        "join-under-another-protocol",
        "a join does not compare the protocol that it was decided by",
        "snapd.lockspace.joining",
        (
            (
                "conditions = (Compare(alive, Target.CREATE, 0), condition, self._protocol_unchanged())",
                "conditions = (Compare(alive, Target.CREATE, 0), condition)",
            ),
        ),
        by="tests/unit/test_protocol.py::test_a_join_that_is_under_way_while_the_protocol_is_raised_fails",
        quick=True,
    ),
    Mutant(
        "raise-beside-a-join",
        "the protocol is raised though a member has come since the others were judged",
        "snapd.lockspace.raising",
        (("self._mirror.revision + 1, prefix_end", "1 << 62, prefix_end"),),
        by="tests/unit/test_protocol.py::test_a_member_that_joins_while_the_protocol_is_raised_fails_the_raise",
        quick=True,
    ),
    # ---- a restart
    Mutant(
        "handed-over-unclean",
        "clients are left to the next daemon although not every lock was released",
        "snapd.daemon.ending",
        (("or not self.clean:", "or False:"),),
        by="tests/unit/test_ending.py::test_an_unclean_leave_keeps_nothing",
        quick=True,
    ),
    Mutant(
        "closed-not-shut",
        "a connection that does not fit is closed here, and stays open where somebody else has it",
        "snapd.worker.takeover",
        (("        sock.shutdown(socket.SHUT_RDWR)\n", "        pass\n"),),
        by="tests/unit/test_takeover.py::test_another_volume_is_refused",
        quick=True,
    ),
    Mutant(
        "export-by-name-alone",
        "a client goes on with another snapshot of the same name",
        "snapd.nbd.server",
        (("if ExportFacts.of(each) == state.export)", "if each.name == state.export.name)"),),
        by="tests/unit/test_nbd_handover.py::test_an_export_that_is_another_is_refused",
        quick=True,
    ),
    Mutant(
        "waiting-requests-lost",
        "requests that wait when a worker stops are handed on neither as bytes nor answered",
        "snapd.nbd.connection",
        (('b"".join([*talk.back, self._rest])', "bytes(self._rest)"),),
        by="tests/unit/test_nbd_handover.py::test_more_than_may_run_at_a_time_is_handed_over",
    ),
    Mutant(
        "rest-is-a-view",
        "what a client waits for memory with lies in the buffer that all clients are received into",
        "snapd.nbd.connection",
        (("data.obj is self._server.scratch.obj or end - position", "end - position"),),
        by="tests/unit/test_nbd_server.py::test_what_waits_for_memory_is_not_overwritten_by_what_others_send",
    ),
)
