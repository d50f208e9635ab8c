"""Checks the model: ``python -m model.check [--quick] [--explain NAME] [words ...]``.

Every scenario must hold, every probe must be reached, every mutation must be caught, or be listed with the reason why
not. Words select by name. ``--explain`` prints how a mutation or probe comes about, a line a step.
The generated checkers are built and run in a temporary directory, two at a time.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from model.scenarios import HOLDS, MUTATIONS, PROBES, SURVIVORS, Mutation, Scenario

HERE = Path(__file__).parent

JOBS = 2

LIMIT = 300
"""Seconds for one search; on a machine of its own the longest takes some twenty."""

MEMORY = 6000
"""MiB for one search."""

DEPTH = 2_000_000

BUILD = ("gcc", "-O1", "-w", "-DHC4", "-DSAFETY", f"-DMEMLIM={MEMORY}", "-o", "pan", "pan.c")
"""HC4: hash compaction, some 36 bits a state: a missed state is possible, and very unlikely. SAFETY: no cycles.
O1: what O2 gains in the searches it costs in compiling."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``error``: what was violated; "" if everything that can be reached is well."""

    error: str
    states: int
    seconds: float


class CheckFailed(Exception):
    """The search itself went wrong: no spin, a model that does not compile, no memory, no time."""


def search(source: str, flags: str, directory: Path) -> Outcome:
    """Build the checker of ``source`` in ``directory`` and run it to the first error or the end."""
    begun = time.monotonic()
    _run(("spin", *flags.split(), "-a", str(HERE / f"{source}.pml")), directory)
    _run(BUILD, directory)
    text = _run(("./pan", f"-m{DEPTH}"), directory)
    errors = re.search(r"errors: (\d+)", text)
    states = re.search(r"([\d.e+]+) states, stored", text)
    trouble = re.search(r"max search depth too small|out of memory|reached -DMEMLIM", text)
    if errors is None or states is None or trouble is not None:
        raise CheckFailed(f"{source} {flags}: {text[-500:]}")
    found = re.search(r"pan:\d*:? ?((?:assertion violated|invalid end state).*?)(?: \(at depth|$)", text, re.MULTILINE)
    error = "" if errors[1] == "0" else (found[1] if found else "an error")
    return Outcome(error, int(float(states[1])), time.monotonic() - begun)


def _run(command: tuple[str, ...], directory: Path) -> str:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CheckFailed(f"{' '.join(command)}: {error}") from error
    if done.returncode and command[0] != "./pan":
        raise CheckFailed(f"{' '.join(command)}: {done.stdout[-500:]}{done.stderr[-500:]}")
    return done.stdout


def search_apart(source: str, flags: str) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="csnap-model-") as directory:
        return search(source, flags, Path(directory))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    good: bool
    name: str
    result: str
    outcome: Outcome
    what: str

    def __str__(self) -> str:
        seconds, states = f"{self.outcome.seconds:.1f}", f"{self.outcome.states:,}"
        mark = "  " if self.good else "! "
        return f"{mark}{self.name:38} {self.result:28} {states:>12} {seconds:>6}  {self.what}"


def check_scenario(scenario: Scenario) -> Row:
    outcome = search_apart(scenario.source, scenario.flags)
    return Row(not outcome.error, scenario.name, outcome.error or "holds", outcome, scenario.what)


def check_probe(probe: Scenario) -> Row:
    outcome = search_apart(probe.source, probe.flags)
    result = "reached" if outcome.error else "NEVER REACHED"
    return Row(bool(outcome.error), f"probe {probe.name}", result, outcome, probe.what)


def check_mutation(mutation: Mutation) -> Row:
    """Look in its scenarios, one after the other, until one notices; in all of its source if it may survive."""
    by_name = {scenario.name: scenario for scenario in HOLDS}
    last = Outcome("", 0, 0.0)
    for name in mutation.scenarios:
        scenario = by_name[name]
        last = search_apart(scenario.source, f"{scenario.flags} -DMUT_{mutation.name} {mutation.extra}")
        if last.error:
            expected = mutation.name not in SURVIVORS
            return Row(expected, mutation.name, f"caught by {name}", last, mutation.what)
    survives = SURVIVORS.get(mutation.name)
    return Row(survives is not None, mutation.name, "survives", last, survives or mutation.what)


def explain(name: str) -> str:
    """How a mutation is caught, or a probe reached: the steps of the shortest way that was found."""
    for source, flags in _errors(name):
        with tempfile.TemporaryDirectory(prefix="csnap-model-") as directory:
            outcome = search(source, flags, Path(directory))
            if outcome.error:
                trail = next(Path(directory).glob("*.trail"))
                command = ("spin", *flags.split(), "-k", str(trail), "-t", "-p", str(HERE / f"{source}.pml"))
                text = _run(command, Path(directory))
                return "\n".join([f"{source}: {outcome.error}", *_steps(source, text)])
    return f"{name}: nothing to explain"


def _errors(name: str) -> Iterable[tuple[str, str]]:
    by_name = {scenario.name: scenario for scenario in HOLDS}
    for probe in PROBES:
        if probe.name == name:
            yield probe.source, probe.flags
    for mutation in MUTATIONS:
        if mutation.name == name:
            for scenario in (by_name[each] for each in mutation.scenarios):
                yield scenario.source, f"{scenario.flags} -DMUT_{name} {mutation.extra}"


def _steps(source: str, text: str) -> Iterable[str]:
    lines = (HERE / f"{source}.pml").read_text().splitlines()
    seen = set()
    for step, process, kind, line in re.findall(r"^ *(\d+):\s+proc +(\d+) \((\w+):1\) \S+?:(\d+) ", text, re.MULTILINE):
        if step not in seen and kind not in (":init:", "stuck", "probe"):
            seen.add(step)
            yield f"{step:>4} {kind}[{process}]  {lines[int(line) - 1].strip()[:150]}"


def selected(quick: bool, words: list[str]) -> list[tuple[Callable[..., Row], Scenario | Mutation]]:
    everything: list[tuple[Callable[..., Row], Scenario | Mutation]] = [
        *((check_scenario, scenario) for scenario in HOLDS),
        *((check_probe, probe) for probe in PROBES),
        *((check_mutation, mutation) for mutation in MUTATIONS),
    ]
    return [
        (check, what)
        for check, what in everything
        if (not quick or what.quick) and (not words or any(word in what.name for word in words))
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="model.check", description="Check the model of the protocol.")
    parser.add_argument("--quick", action="store_true", help="the subset that the tests run")
    parser.add_argument("--explain", metavar="NAME", help="print how a mutation or probe comes about")
    parser.add_argument("words", nargs="*", help="only what has one of these in its name")
    options = parser.parse_args(arguments)
    try:
        if options.explain:
            print(explain(options.explain))
            return 0
        return run(options.quick, options.words)
    except CheckFailed as error:
        print(error, file=sys.stderr)
        return 2


def run(quick: bool, words: list[str]) -> int:
    """Check what is selected, two at a time; print the table; return the exit code."""
    begun = time.monotonic()
    unexpected = states = 0
    print(f"  {'scenario':38} {'result':28} {'states':>12} {'s':>6}")
    with ThreadPoolExecutor(min(JOBS, os.cpu_count() or 1)) as pool:
        for row in pool.map(lambda pair: pair[0](pair[1]), selected(quick, words)):
            print(row, flush=True)
            unexpected += not row.good
            states += row.outcome.states
    print(f"{unexpected} unexpected; {states:,} states, {time.monotonic() - begun:.0f} s")
    return int(unexpected != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
