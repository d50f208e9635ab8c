"""The model of the protocol holds, and notices when a rule is taken away. The whole of it: ``make model``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from model import check, scenarios

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "model").glob("*.pml"))
TIMEOUT = 600  # seconds: a compiler and a search beside whatever else this machine does


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("scenario", [each for each in scenarios.HOLDS if each.quick], ids=lambda each: each.name)
def test_a_scenario_holds(scenario: scenarios.Scenario) -> None:
    """No order of events damages a snapshot, loses a write or stops a member for ever."""
    row = check.check_scenario(scenario)
    assert row.good, row.result
    assert row.outcome.states > 10


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("mutation", [each for each in scenarios.MUTATIONS if each.quick], ids=lambda each: each.name)
def test_a_mutation_is_caught(mutation: scenarios.Mutation) -> None:
    """Without this rule of the protocol something breaks."""
    row = check.check_mutation(mutation)
    assert row.good, row.result


@pytest.mark.timeout(TIMEOUT)
def test_a_counterexample_is_told_step_by_step() -> None:
    """``--explain`` prints the steps of the model that lead to the damage."""
    text = check.explain("GONE_BEFORE_HEADER")
    assert text.startswith("ending: assertion violated")
    assert re.search(r"^ *\d+ mem\[\d\]  .*RUNS\(m\)", text, re.MULTILINE)


def test_every_mutation_and_probe_of_a_source_is_run() -> None:
    """A rule that can be taken away in a source is taken away by some run; what runs exists."""
    for source in SOURCES:
        text = source.read_text()
        run = {each.name for each in scenarios.MUTATIONS if _source(each) == source.stem}
        run |= set(
            re.findall(r"MUT_(\w+)", " ".join(m.extra for m in scenarios.MUTATIONS if _source(m) == source.stem))
        )
        assert run == set(re.findall(r"\bMUT_(\w+)", text)), source.name
        probes = {each.flags.rpartition("=")[2] for each in scenarios.PROBES if each.source == source.stem}
        assert probes == set(re.findall(r"PROBE==(\d+)", text)), source.name


def test_what_the_readme_names_exists() -> None:
    """Mutations and files that model/README.md names are there; every source is described."""
    text = (ROOT / "model" / "README.md").read_text()
    for name in re.findall(r"`([A-Z][A-Z_]{5,})`", text):
        assert name in {each.name for each in scenarios.MUTATIONS}, name
    for path in re.findall(r"`((?:tests|docs)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
    for source in SOURCES:
        assert f"`{source.name}`" in text


def _source(mutation: scenarios.Mutation) -> str:
    return next(each.source for each in scenarios.HOLDS if each.name == mutation.scenarios[0])
