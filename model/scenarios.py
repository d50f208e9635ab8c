"""What is checked: scenarios that must hold, situations that must be reachable, mutations that must be caught.

A scenario is a source and its bounds. ``core.pml`` has one fault of each kind at most in a scenario: two of them
take it beyond what a few seconds can search; the smaller models take what they can get.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scenario:
    """``flags`` are for spin; ``quick`` belongs to the subset that every test run checks."""

    name: str
    source: str
    flags: str
    what: str
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Mutation:
    """One rule of the protocol taken away, and the scenarios one of which must notice, likeliest first."""

    name: str
    scenarios: tuple[str, ...]
    what: str
    extra: str = ""
    quick: bool = False


def _core(
    *, crash: int = 0, pause: int = 0, expire: int = 0, rejoin: int = 0, reads: int = 0, r: int = 1, **more: int
) -> str:
    """R: regions; WMASK, RMASK: bit ``member * C + chunk`` says who writes, and reads, which chunk of the two."""
    numbers = {"READS": reads, "R": r, "CRASH": crash, "PAUSE": pause, "EXPIRE": expire, "REJOIN": rejoin, **more}
    return " ".join(f"-D{name}={value}" for name, value in numbers.items())


LIVENESS = " -DLIVENESS"

HOLDS = (
    Scenario("two-write", "core", _core(WMASK=15), "both members write both chunks of one region", quick=True),
    Scenario("two-regions", "core", _core(reads=1, r=2, WMASK=7, RMASK=13), "writes and reads, a region each"),
    Scenario("write-read", "core", _core(reads=1, WMASK=14, RMASK=7), "writes and reads in one region"),
    Scenario(
        "stopped-reader",
        "core",
        _core(reads=1, WMASK=5, RMASK=1, pause=1, expire=1, K=3),
        "stopped, its lease ends; revived or recovered",
        quick=True,
    ),
    Scenario(
        "crash-restart", "core", _core(WMASK=7, crash=1, rejoin=1, K=3), "crash, recovery or own clean-up, restart"
    ),
    Scenario("crash-restart-2", "core", _core(r=2, WMASK=11, crash=1, rejoin=1, K=4), "the same over two regions"),
    Scenario(
        "stopped-restart", "core", _core(WMASK=6, pause=1, expire=1, rejoin=1, K=4), "stopped, recovered, restarted"
    ),
    Scenario("stopped-regions", "core", _core(r=2, WMASK=5, pause=1, expire=1, K=4), "stopped between two regions"),
    Scenario(
        "crash-reader", "core", _core(reads=1, r=2, WMASK=3, RMASK=5, crash=1, expire=1, K=3), "crash beside a reader"
    ),
    Scenario("crash-write", "core", _core(WMASK=13, crash=1, K=4), "crash at each step of a batch of two"),
    Scenario("extents", "core", _core(r=2, WMASK=7, crash=1, K=4, X=2), "chunks reserved two at once"),
    Scenario(
        "marked-twice", "core", _core(WMASK=7, crash=1, K=3, REMARK=1), "the coordinator of a recovery is replaced"
    ),
    Scenario(
        "three-chunks",
        "core",
        _core(C=3, r=2, WMASK=23, crash=1, VICTIMS=2, K=3, X=3),
        "a batch of two beside a region that was a dead member's",
    ),
    Scenario("live-write", "core", _core(WMASK=15) + LIVENESS, "nobody waits for ever: no fault"),
    Scenario("live-crash", "core", _core(r=2, WMASK=7, crash=1, K=4) + LIVENESS, "nobody waits for ever: a crash"),
    Scenario("live-stop", "core", _core(WMASK=5, pause=1, expire=1, rejoin=1, K=4) + LIVENESS, "... a stop, a restart"),
    Scenario("three-write", "core", _core(M=3, WMASK=21, K=4) + LIVENESS, "three members write one chunk"),
    Scenario("three-read", "core", _core(M=3, reads=1, WMASK=5, RMASK=16, K=4), "two write, a third reads"),
    Scenario("three-crash", "core", _core(M=3, WMASK=9, crash=1, K=3), "three members, one dies, either recovers it"),
    Scenario("stack", "stack", "", "reading through two snapshots", quick=True),
    Scenario("take", "table", "-DFENCE=1", "a snapshot is taken, one member crashes or stops", quick=True),
    Scenario("take-no-fence", "table", "-DFENCE=0", "the same, and fencing never works"),
    Scenario("take-hang", "table", "-DFENCE=1 -DHANG=1", "the coordinator hangs, its lease renewed"),
    Scenario("take-late", "table", "-DFENCE=1 -DLATE=1", "a member joins meanwhile"),
    Scenario(
        "take-no-device",
        "table",
        "-DFENCE=1 -DLATE=1 -DNODEVICE=1 -DWAIT=0",
        "one member cannot open the COW device, and nobody waited for it",
    ),
    Scenario("take-refused", "table", "-DNODEVICE=1", "one cannot open it: refused, all go on"),
    Scenario(
        "ending", "ending", "", "one deletes, a copy fails, a header write fails, a crash or stop, restart", quick=True
    ),
    Scenario("ending-three", "ending", "-DM=3 -DBAD=0", "the same with three members"),
    Scenario("ending-faults", "ending", "-DFAULTS=2 -DBAD=0 -DZEROES=0", "two faults"),
    Scenario(
        "deletes", "ending", "-DDELETES=2 -DLOSSES=0 -DZEROES=0", "both snapshots are deleted, one fault", quick=True
    ),
    Scenario("create", "create", "", "two hosts create on one device", quick=True),
    Scenario("create-force", "create", "-DFORCE=1", "... with --force"),
    Scenario(
        "versions", "versions", "", "hosts come, go and come back as any version, the protocol is raised", quick=True
    ),
    Scenario("versions-again", "versions", "-DSTARTS=3", "... three times each"),
    Scenario(
        "processes", "processes", "", "each process killed or stopped, lease lost, answers lost, restart", quick=True
    ),
    Scenario("processes-no-fence", "processes", "-DFENCE=0 -DDOUBTS=2 -DWANTS=4", "fencing never works"),
    Scenario("processes-twice", "processes", "-DSTOPS=2 -DOUTAGES=2 -DDOUBTS=2 -DKILLS=0", "two of each but kills"),
    Scenario("restore", "restore", "", "a backup made and restored at any moment", quick=True),
    Scenario("restore-absent", "restore", "-DCOUNTERS_DELETED", "the counters are gone instead of marked"),
    Scenario(
        "restore-coordinator",
        "restore",
        "-DCOORDINATOR_SEALS",
        "the taker raises the sidecars before the grant; half-made snapshots are not restored",
    ),
    Scenario("no-restore", "restore", "-DRESTORES=0", "no backup: hosts leave and come, generations rise"),
)

PROBES = (
    Scenario("two-write 1", "core", _core(WMASK=15) + " -DPROBE=1", "all written, both took extents"),
    Scenario(
        "crash-write 2", "core", _core(WMASK=15, crash=1, K=4) + " -DPROBE=2", "a survivor appends after a zeroed tail"
    ),
    Scenario(
        "stopped-reader 3",
        "core",
        _core(reads=1, WMASK=5, RMASK=1, pause=1, expire=1, K=3) + " -DPROBE=3",
        "revived with a hold kept",
    ),
    Scenario(
        "crash-restart 4", "core", _core(WMASK=7, crash=1, rejoin=1, K=3) + " -DPROBE=4", "committed after a restart"
    ),
    Scenario(
        "crash-write 5", "core", _core(WMASK=15, crash=1, K=4) + " -DPROBE=5", "a batch torn: a hole on the device"
    ),
    Scenario(
        "stopped-reader 6",
        "core",
        _core(reads=1, WMASK=5, RMASK=1, pause=1, expire=1, K=3) + " -DPROBE=6",
        "fenced, and wakes with a copy under way",
    ),
    Scenario(
        "stopped-reader 7",
        "core",
        _core(reads=1, WMASK=5, RMASK=1, pause=1, expire=1, K=3) + " -DPROBE=7",
        "stopped with a read in flight whose region another has",
    ),
    Scenario(
        "crash-write 8",
        "core",
        _core(WMASK=15, crash=1, K=4) + " -DPROBE=8",
        "a region had while the tail's release is under way",
    ),
    Scenario("take 1", "table", "-DFENCE=1 -DPROBE=1", "taken after a dead member was fenced"),
    Scenario("take 2", "table", "-DHANG=1 -DPROBE=2", "thawed by force, everybody writes on"),
    Scenario("take 3", "table", "-DLATE=1 -DNODEVICE=1 -DWAIT=0 -DPROBE=3", "taken beside a member without the device"),
    Scenario("ending 1", "ending", "-DPROBE=1", "deleted by another than who began"),
    Scenario("ending 2", "ending", "-DPROBE=2", "a restarted member met valid=0 and made an end of it"),
    Scenario("ending 3", "ending", "-DPROBE=3", "`deleting` is read while its deleter is dead"),
    Scenario("deletes 4", "ending", "-DDELETES=2 -DLOSSES=0 -DZEROES=0 -DPROBE=4", "both gone, written without a copy"),
    Scenario("create 1", "create", "-DPROBE=1", "refused, taken back, the device used by the other"),
    Scenario("create 2", "create", "-DPROBE=2", "the lease was lost while formatting, and the creation goes on"),
    Scenario("create 3", "create", "-DPROBE=3", "the device used after the creator was fenced"),
    Scenario("versions 1", "versions", "-DPROBE=1", "upgraded hosts, and the newest protocol in force"),
    Scenario("versions 2", "versions", "-DPROBE=2", "refused, and the newest protocol in force"),
    Scenario("versions 3", "versions", "-DPROBE=3", "csnap 0.1 is a member under protocol 2"),
    Scenario("processes 1", "processes", "-DPROBE=1", "a revoke crossed an upgrade"),
    Scenario("processes 2", "processes", "-DPROBE=2", "revived, and the worker writes on"),
    Scenario("processes 3", "processes", "-DPROBE=3", "a worker wakes with a read that has become wrong"),
    Scenario("processes 4", "processes", "-DPROBE=4", "restarted by the proof of the lock file alone"),
    Scenario("processes 5", "processes", "-DPROBE=5", "control is dead, the worker writes before its deadline"),
    Scenario("restore 1", "restore", "-DPROBE=1", "a sidecar tells of a snapshot that the backup has not"),
    Scenario("restore 2", "restore", "-DPROBE=2", "after a restore both write, another snapshot is taken"),
    Scenario("restore 3", "restore", "-DPROBE=3", "a header tells of a deletion that the backup has not"),
)

MUTATIONS = (
    Mutation("BUMP_BEFORE_FLUSH", ("two-write",), "entries are counted before they are durable"),
    Mutation("REL_BEFORE_COMMIT", ("two-write",), "a region is given back while its entry is being written"),
    Mutation("REL_BEFORE_PUBLISH", ("two-write",), "... before its entry is in the map and counted"),
    Mutation("NO_REREAD", ("two-write",), "a moved counter is noted, nothing is read", quick=True),
    Mutation("LEASE_HOLDS", ("stopped-reader",), "holds go with the lease"),
    Mutation("READ_WITHOUT_LOCK", ("two-regions",), "a miss is believed without the region's lock", quick=True),
    Mutation("NO_EXT_REC", ("two-write",), "extents are not recorded when the tail is given back"),
    Mutation("EXT_ON_LEASE", ("stopped-reader",), "extents go with the lease"),
    Mutation("ZERO_WITHOUT_TAIL", ("crash-restart",), "a restarted member zeroes behind the list at once"),
    Mutation("ZERO_MIDBATCH", ("three-chunks",), "a tail is zeroed beside one's own append"),
    Mutation("REREAD_MIDBATCH", ("two-regions", "crash-restart-2"), "the list is re-read beside one's own append"),
    Mutation("NO_FENCE", ("stopped-reader",), "recovery does not fence", quick=True),
    Mutation("NO_UNTRUST", ("crash-write", "crash-restart"), "recovery does not mark the counters"),
    Mutation("NO_TAIL_FLAG", ("crash-write", "crash-restart"), "... moves them, but nobody zeroes the tail"),
    Mutation("HOLDS_BEFORE_MARKS", ("crash-write", "crash-restart"), "... marks them after the holds are gone"),
    Mutation("REJOIN_NO_UNTRUST", ("crash-restart",), "a restarted member deletes its old holds only"),
    Mutation(
        "RELEASE_WITHOUT_COUNTER",
        ("stopped-restart", "stopped-reader"),
        "a voided release is made anew without its counter",
    ),
    Mutation(
        "TAIL_OWES_ALONE",
        ("two-write", "two-regions"),
        "a region's release does not owe what the tail's does that is under way",
    ),
    Mutation(
        "COUNT_OF_AN_OLDER_TAIL",
        ("crash-write", "extents"),
        "a release puts a count from an older grant of the tail",
    ),
    Mutation("UPCONV_NODRAIN", ("stopped-reader",), "CR is given up for EX beside a read"),
    Mutation("NO_DEADLINE_AFTER_READ", ("stopped-reader",), "a late read is answered", quick=True),
    Mutation("NO_READ_DRAIN", ("write-read", "two-regions"), "an origin write does not wait for reads of that chunk"),
    Mutation("DRAIN_AFTER_PUBLISH", ("three-read", "write-read"), "... waits for them after the commit"),
    Mutation("HIT_BELOW_IS_FREE", ("stack",), "a hit in a newer store needs no lock"),
    Mutation("TWO_STEP_CREATE", ("take-no-fence",), "the table's EX is held while the snapshot is put"),
    Mutation("NO_FORCE", ("take-hang",), "nobody deletes a ticket that is too old"),
    Mutation(
        "NO_WITHDRAW",
        ("take-no-fence",),
        "the coordinator never withdraws, and nobody else does",
        extra="-DMUT_NO_FORCE",
    ),
    Mutation("NO_DRAIN", ("take",), "the table is given back beside a write"),
    Mutation("NO_TABLE_REREAD", ("take",), "the table is not read again"),
    Mutation("LEASE_HOLDS", ("take",), "the table's holds go with the lease"),
    Mutation("GRANT_FROM_MEMORY", ("take",), "the grant is no comparison in the transaction"),
    Mutation("ADMIT_WITHOUT_DEVICE", ("take-no-device",), "a member without the COW device admits writes", quick=True),
    Mutation("ZEROES_BESIDE_TABLE", ("ending",), "zeroing a tail is no use of the table", quick=True),
    Mutation("NO_DRAIN", ("ending",), "the table is given back beside a copy"),
    Mutation(
        "AFFECTED_SKIPS_DELETING", ("ending",), "an older snapshot in `deleting` is not invalidated with a newer one"
    ),
    Mutation("OLDER_SKIPS_DELETING", ("deletes",), "a newer one may be deleted beside an older one in `deleting`"),
    Mutation("ANY_MAY_BE_DELETED", ("ending",), "any snapshot may be deleted"),
    Mutation("SKIP_WHEN_LOST", ("ending",), "who cannot copy writes all the same"),
    Mutation("NOBODY_DELETES_ANEW", ("ending",), "a half-done delete is left so"),
    Mutation("GONE_BEFORE_HEADER", ("ending",), "the record is deleted before valid=0 is written"),
    Mutation("RECORD_BEFORE_HEADER", ("ending",), "the record says invalid before the header does"),
    Mutation("DOWN_BEFORE_HEADER", ("ending",), "the EX is given up while valid=0 is being written"),
    Mutation("RECORD_AFTER_DOWN", ("ending",), "... before the record is changed"),
    Mutation("LEASE_HOLDS", ("ending",), "holds go with the lease"),
    Mutation("NO_FENCE", ("ending",), "recovery does not fence"),
    Mutation("CREATION_ON_LEASE", ("create",), "the reservation of a creation goes with the lease", quick=True),
    Mutation("UNDO_AFTER_RELEASE", ("create-force",), "formatting is taken back after the reservation was given up"),
    Mutation("CREATION_CLEARED_BEFORE_FENCE", ("create",), "recovery deletes the reservation first"),
    Mutation(
        "JOIN_UNCOMPARED", ("versions",), "a join does not compare the protocol that it was decided by", quick=True
    ),
    Mutation("RAISE_UNCOMPARED", ("versions",), "the raise does not compare that no member has come since", quick=True),
    Mutation("CLEANS_AS_ITS_PREDECESSOR", ("versions",), "who cleans up is judged by what its predecessor spoke"),
    Mutation("NO_FENCE", ("create",), "recovery does not fence"),
    Mutation("NO_DEADLINE", ("processes",), "the worker does not look at the deadline"),
    Mutation("NO_DEADLINE_AFTER_READ", ("processes",), "... not after a read"),
    Mutation("DONE_WITHOUT_DRAIN", ("processes",), "a lock is given back beside its uses"),
    Mutation("NO_RESYNC", ("processes",), "after a doubt control believes its memory"),
    Mutation("NO_EPOCH", ("processes",), "a transaction in flight is not voided by a doubt"),
    Mutation("LEASE_HOLDS", ("processes",), "holds go with the lease"),
    Mutation("STALE_REVOKE_ANSWERED", ("processes",), "a revoke that crossed is answered again"),
    Mutation("NO_FENCE", ("processes",), "recovery does not fence"),
    Mutation("HOLDS_BEFORE_FENCE", ("processes",), "holds are deleted before the fence"),
    Mutation("NO_LOCK_FILE", ("processes",), "a new incarnation does not wait for the old processes"),
    Mutation("LOCK_OF_CONTROL_ONLY", ("processes",), "... for their I/O in flight"),
    Mutation("CREATING_EXPLAINS", ("restore",), "a newer sidecar is excused by a record in `creating`"),
    Mutation("GENERATION_IGNORED", ("restore",), "a newer sidecar is accepted", quick=True),
    Mutation("NOT_SEALED", ("restore",), "sidecars are not raised when a snapshot is taken"),
    Mutation("SEALED_BY_ONE", ("restore",), "one host raises them, the others do not wait"),
    Mutation("RECORDS_NOT_RAISED", ("restore",), "the grant does not raise the older records"),
    Mutation("DELETED_WITHOUT_HEADER", ("restore",), "deleted in etcd only"),
    Mutation("COUNTERS_AS_SAVED", ("restore",), "the counters of the backup are believed"),
    Mutation("ABSENT_MOVES_NOTHING", ("restore",), "an absent counter tells nothing new"),
    Mutation("HOST_FORGOTTEN", ("restore",), "a host was not stopped for the restore"),
)

SURVIVORS = {
    "COUNT_OF_AN_OLDER_TAIL": "three regions, a death and a restarted reader: too large; unit tests",
    "REREAD_MIDBATCH": "a re-read is one step here, and never lowers what is known",
}
"""Mutations that no scenario notices, and why that is right."""
