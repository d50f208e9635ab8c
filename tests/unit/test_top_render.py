"""``csnap top``: what it looks like, at 80x24 and larger. The screens are files in tests/terminal/screens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from snapd.cli.top.render import ORDERS, deal
from tests.support.top_scenes import SCENES, answer, host, modelled, snapshot, wait
from tests.terminal.screens import SIZES, drawn, golden

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scene", SCENES)
def test_screens_are_as_they_were_looked_at(scene: str, size: tuple[int, int]) -> None:
    """Drawn anew by ``python -m tests.terminal.screens``; then a person looks."""
    assert drawn(SCENES[scene](), *size) == golden(scene, *size).read_text()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [(80, 24), (100, 30), (200, 60), (80, 10), (20, 5)])
@pytest.mark.parametrize("scene", SCENES)
def test_no_screen_is_larger_than_its_terminal(scene: str, size: tuple[int, int], order: str) -> None:
    """From 80x24 on, in every order; smaller ones are cut by the terminal, and nothing fails."""
    width, height = size
    lines = drawn(SCENES[scene](), width, height, order).splitlines()
    assert all(len(line) <= width for line in lines)
    if height >= 24:
        assert len(lines) <= height


def test_what_colour_says_signs_say_too() -> None:
    """Red lines carry !!, yellow ones !: without colour nothing is lost."""
    text = drawn(SCENES["troubled"](), 80, 24, colour=True)
    red = re.findall(r"\x1b\[1;31m([^\x1b]*)", text)
    yellow = re.findall(r"\x1b\[33m([^\x1b]*)", text)
    assert any("!!" in part for part in red) and any(part.startswith("!") for part in yellow)
    assert "\x1b" not in drawn(SCENES["troubled"](), 80, 24)
    for line in drawn(SCENES["troubled"](), 80, 24, colour=True).splitlines():
        if "\x1b[1;31m" in line:
            assert "!!" in line


def test_trouble_comes_first_and_is_not_what_is_cut() -> None:
    """The lost snapshot is the oldest of twenty; the dead host the last of nine."""
    stores = [*(snapshot(f"s{n}", 1 << 30) for n in range(20)), snapshot("lost", None, None, "invalid")]
    hosts = [*(host(f"host-{letter}") for letter in "abcdefgh"), host("host-z", "dead")]
    text = drawn(modelled(answer(100.0, snapshots=stores, members=hosts)), 80, 24)
    assert re.search(r"^!!  lost +invalid", text, re.MULTILINE)
    assert re.search(r"^!!  host-z +dead", text, re.MULTILINE)
    assert "more" in text


def test_orders_are_orders() -> None:
    """The key s: by how full, by name, by load."""
    stores = [snapshot("b", 1 << 30), snapshot("a", 8 << 30), snapshot("c", 2 << 30)]
    waits = [wait("region/2", "host-a", 9.0, "host-b"), wait("region/1", "host-a", 3.0, "host-b")]
    model = modelled(answer(100.0, snapshots=stores, waits=waits, waits_total=2))

    def order(name: str, pattern: str) -> list[str]:
        return re.findall(pattern, drawn(model, 80, 24, name))

    assert order("age", r"  ([abc])  +active") == ["b", "a", "c"]
    assert order("full", r"  ([abc])  +active") == ["a", "c", "b"]
    assert order("name", r"  ([abc])  +active") == ["a", "b", "c"]
    assert order("age", r"region/(\d)") == ["2", "1"]
    assert order("name", r"region/(\d)") == ["1", "2"]


def test_room_is_dealt_out_in_turn() -> None:
    """Nobody gets more than it needs, nobody starves, the rest is left."""
    assert deal([3, 2, 1, 50], 20) == [3, 2, 1, 14]
    assert deal([9, 9, 9, 9], 10) == [2, 2, 3, 3]
    assert deal([1, 1, 1, 1], 100) == [1, 1, 1, 1]
    assert deal([5, 5], 0) == deal([5, 5], -3) == [0, 0]


def test_rich_is_loaded_by_top_alone() -> None:
    """Neither the other commands nor the daemon and its worker load it."""
    program = (
        "import sys, snapd.cli.main, snapd.daemon.serve, snapd.worker.main; assert 'rich' not in sys.modules;"
        "import snapd.cli.top.screen; assert 'rich' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
