"""The live tests' rules are the project's, but for durations."""

from __future__ import annotations

from pathlib import Path

from tests.monitoring.hurried import DURATION, hurried
from tests.monitoring.promtool import RULES, promtool


def test_durations_are_divided_within_bounds() -> None:
    """Of ``for:``, ranges and offsets; numbers, thresholds and texts stay."""
    text = 'for: 1h\nexpr: rate(a[5m]) > 3600 unless a offset 10m\nexpr: b[1m] < 0.5\ndescription: "in 10m"\nfor: 5m\n'
    assert hurried(text) == (
        'for: 30s\nexpr: rate(a[10s]) > 3600 unless a offset 20s\nexpr: b[5s] < 0.5\ndescription: "in 10m"\nfor: 10s\n'
    )


def test_nothing_else_is_changed_and_prometheus_takes_it(tmp_path: Path) -> None:
    """Each rule file is the same with its durations blotted out."""
    for path in RULES:
        rules = path.read_text()
        assert DURATION.sub("_", rules) == DURATION.sub("_", hurried(rules))
        (tmp_path / path.name).write_text(hurried(rules))
        assert "SUCCESS" in promtool("check", "rules", tmp_path / path.name)
