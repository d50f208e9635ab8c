"""promtool, of Debian's package prometheus, and what the texts it reads say of metrics."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from snapd.daemon.families import COUNTER, FAMILIES, HISTOGRAM, INFO, PREFIX, Family

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "grafana" / "rules").glob("*.yml"))
TARGET_LABELS = {"cluster", "volume", "host", "job", "instance"}  # the scrape configuration's
SUFFIXES = {COUNTER: ("_total",), HISTOGRAM: ("_bucket", "_count", "_sum"), INFO: ("_info",)}

SELECTOR = re.compile(r"\b(csnap_[a-z0-9_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'([a-z_]+)\s*(?:=~|!~|!=|=)\s*"')
GROUPING = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")
RECORDED = re.compile(r"\bcsnap:[a-z0-9_:]+")


def promtool(*arguments: str | Path) -> str:
    """Return what it says; it must succeed."""
    done = subprocess.run(
        ["promtool", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def series() -> dict[str, Family]:
    """Return the names under which samples of the registry's families are stored."""
    return {PREFIX + family.name + suffix: family for family in FAMILIES for suffix in SUFFIXES.get(family.kind, ("",))}


def strangers(text: str, *, prose: bool = False) -> list[str]:
    """Return the metrics and labels in ``text`` that no daemon exposes. Prose may name a histogram by its family."""
    known = series() | ({PREFIX + family.name: family for family in FAMILIES} if prose else {})
    found = []
    for name, matchers in SELECTOR.findall(text):
        if name not in known:
            found.append(name)
            continue
        labels = set(known[name].labels) | TARGET_LABELS | ({"le"} if name.endswith("_bucket") else set())
        found += [f"{name}{{{label}}}" for label in MATCHER.findall(matchers) if label not in labels]
    everything = {label for family in FAMILIES for label in family.labels} | TARGET_LABELS | {"le", "alertname"}
    for labels in GROUPING.findall(text):
        found += [f"by ({label})" for label in re.findall(r"[a-z_]+", labels) if label not in everything]
    return found


def recorded() -> set[str]:
    """Return the names that the recording rules make."""
    return set(re.findall(r"- record: (\S+)", "".join(path.read_text() for path in RULES)))
