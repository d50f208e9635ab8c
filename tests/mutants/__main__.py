"""Plant each bug and see it caught: ``python -m tests.mutants [--quick] [NAME ...]``. Exit code 1 if one survives."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.mutants.catalogue import MUTANTS, Mutant
from tests.mutants.loading import NotApplicable, check

LIMIT = 150  # seconds for one mutant


@dataclass(frozen=True, slots=True)
class Outcome:
    mutant: Mutant
    caught: bool
    seconds: float
    said: str


def hunt(mutant: Mutant) -> Outcome:
    begun = time.monotonic()
    try:
        check(mutant)
    except NotApplicable as error:
        return Outcome(mutant, False, 0, f"not applicable: {error}")
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "tests.mutants.hunt", mutant.name]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(mutant, False, LIMIT, "not within the time")
    lines = [line for line in result.stdout.splitlines() if line.startswith("caught: ")]
    said = lines[-1][8:] if lines else (result.stdout + result.stderr)[-200:].replace("\n", " ")
    return Outcome(mutant, bool(lines), time.monotonic() - begun, said)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--quick", action="store_true", help="only those that are part of every test run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    chosen = [
        mutant
        for mutant in MUTANTS
        if (not arguments.names or mutant.name in arguments.names) and (mutant.quick or not arguments.quick)
    ]
    survivors = 0
    print(f"{'mutant':32} {'seconds':>7}  caught by")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for outcome in pool.map(hunt, chosen):
            survivors += not outcome.caught
            verdict = outcome.said if outcome.caught else f"SURVIVES: {outcome.said}"
            print(f"{outcome.mutant.name:32} {outcome.seconds:7.1f}  {verdict}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
