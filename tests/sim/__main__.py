"""Play histories: ``python -m tests.sim --seed N [--trace]``, ``--seeds A-B``, ``--seconds S``.

A failing seed is printed with the command that replays it. Exit code 1 if any failed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
import traceback
from collections import Counter

if os.environ.get("PYTHONHASHSEED") != "0":  # sets of names are walked in the order of their hashes
    os.execve(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})

from tests.sim.play import Result, play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--seed", type=int, help="one history")
    parser.add_argument("--seeds", default="0-99", help="A-B, both included; B may be left out with --seconds")
    parser.add_argument("--seconds", type=float, default=0, help="begin no history after so long")
    parser.add_argument("--trace", action="store_true", help="tell what happens")
    parser.add_argument("--keep-going", action="store_true", help="do not end at the first failure")
    parser.add_argument("--kinds", help="faults to choose from, with commas; empty: none")
    arguments = parser.parse_args()
    kinds = None if arguments.kinds is None else [kind for kind in arguments.kinds.split(",") if kind]
    if arguments.seed is not None:
        seeds = iter([arguments.seed])
    else:
        first, _, last = arguments.seeds.partition("-")
        seeds = iter(range(int(first), int(last) + 1)) if last else itertools.count(int(first))
    end = time.monotonic() + arguments.seconds if arguments.seconds else None
    begun = time.process_time()
    results: list[Result] = []
    failed = []
    for seed in seeds:
        if end is not None and time.monotonic() > end:
            break
        try:
            results.append(play(seed, print if arguments.trace else None, kinds))
        except Exception:
            failed.append(seed)
            print(f"seed {seed} failed; replay it: python -m tests.sim --seed {seed} --trace")
            traceback.print_exc(limit=-4, file=sys.stdout)
            if not arguments.keep_going:
                break
    print(report(results, time.process_time() - begun))
    if arguments.seed is not None and results:
        print("digest", *results[0].digest)
    if failed:
        print("failed:", *failed)
    return 1 if failed else 0


def report(results: list[Result], seconds: float) -> str:
    """What was done, in figures."""
    count = max(1, len(results))
    kinds = Counter(kind for result in results for kind in result.faults)
    sums = {
        name: sum(getattr(result, name) for result in results)
        for name in ("requests", "snapshots", "snapshot_reads", "entries", "begun", "fences", "power_losses")
    }
    return (
        f"{len(results)} histories in {seconds:.1f} s of CPU ({count / max(seconds, 0.001):.1f} a second): "
        f"{sums['requests']} requests, {sums['snapshots']} snapshots begun, "
        f"{sums['snapshot_reads']} snapshot reads and {sums['entries']} exceptions checked, {sums['begun']} faults of "
        f"{len(kinds)} kinds, {sums['fences']} fencings, {sums['power_losses']} power losses of the array"
    )


if __name__ == "__main__":
    sys.exit(main())
