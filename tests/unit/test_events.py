"""Events of the log, their ids, and the catalog that explains them: one cannot change without the others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from snapd.daemon.events import MESSAGE_IDS

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "systemd/catalog/csnap.catalog"
LOGGERS = {"log", "_log", "notice"}
COMPUTED = {
    "f'snapshot_{work.what}'": {"snapshot_take", "snapshot_delete", "snapshot_invalidate"},
    "event": {"etcd_no_space", "etcd_refused"},
    "message.event": set[str](),  # the worker's: they stand where they are said
}
"""Events that are no literals where they are logged."""

HOW = "an event needs a line in snapd/daemon/events.py, an entry in csnap.catalog, and a line in message_ids.txt"


@cache
def _calls() -> tuple[ast.Call, ...]:
    """Every call to log an event."""
    return tuple(_search())


def _search() -> Iterator[ast.Call]:
    for path in sorted((ROOT / "snapd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and len(node.args) >= 2:
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in LOGGERS:
                    yield node


def _events(call: ast.Call) -> set[str]:
    argument = call.args[1]
    branches = [argument.body, argument.orelse] if isinstance(argument, ast.IfExp) else [argument]
    events = set()
    for branch in branches:
        if isinstance(branch, ast.Constant) and isinstance(branch.value, str):
            events.add(branch.value)
        else:
            events |= COMPUTED[ast.unparse(branch)]
    return events


def _fields(call: ast.Call) -> set[str] | None:
    """The names of its fields; None if they cannot be read here."""
    keywords = {keyword.arg for keyword in call.keywords if keyword.arg}
    given = call.args[2] if len(call.args) > 2 else ast.Dict([], [])
    if not isinstance(given, ast.Dict) or not all(isinstance(key, ast.Constant) for key in given.keys):
        return None
    return keywords | {str(key.value) for key in given.keys if isinstance(key, ast.Constant)}


def _logged() -> set[str]:
    return {event for call in _calls() for event in _events(call)}


def _catalog() -> dict[str, tuple[str, str]]:
    """Event -> its id and text, by the comment that stands before each entry."""
    entries = re.findall(r"^# (\w+)\n-- ([0-9a-f]{32})\n(.*?)(?=^# |\Z)", CATALOG.read_text(), re.MULTILINE | re.DOTALL)
    return {event: (number, text) for event, number, text in entries}


def test_every_event_has_an_id_and_every_id_an_event() -> None:
    """The table holds what the source logs, and nothing else; no id twice."""
    assert _logged() == MESSAGE_IDS.keys(), HOW
    assert len(set(MESSAGE_IDS.values())) == len(MESSAGE_IDS)


def test_every_event_is_explained() -> None:
    """Its entry has the table's id, a subject, and says more than that."""
    catalog = _catalog()
    assert {event: number for event, (number, _) in catalog.items()} == MESSAGE_IDS, HOW
    assert CATALOG.read_text().count("\n-- ") == len(catalog)
    for event, (_, text) in catalog.items():
        subject, _, body = text.partition("\nDefined-By: csnap\n\n")
        assert re.fullmatch(r"Subject: \S.{9,}", subject), event
        assert len(body) > 20, event


def test_ids_never_change() -> None:
    """What people search for and alert on stays true: message_ids.txt only grows, with each new event."""
    golden = dict(reversed(line.split()) for line in (ROOT / "tests/golden/message_ids.txt").read_text().splitlines())
    assert {event: MESSAGE_IDS.get(event) for event in golden} == golden
    assert golden.keys() == MESSAGE_IDS.keys(), HOW


def test_texts_speak_of_fields_that_there_are() -> None:
    """@FIELD@ stands in every entry of the event, or journalctl would print its name; CSNAP_FIELD= in some."""
    texts = {event: text for event, (_, text) in _catalog().items()}
    seen: dict[str, list[set[str]]] = {}
    for call in _calls():
        fields = _fields(call)
        for event in _events(call) if fields is not None else ():
            assert fields is not None
            always = {"VOLUME", "NODE", *(["SNAPSHOT"] if "snapshot" in fields else [])}
            seen.setdefault(event, []).append(always | {f"CSNAP_{name.upper()}" for name in fields})
    for event, entries in seen.items():
        text = texts[event].replace("@@", "@")
        assert set(re.findall(r"@([A-Z_]+)@", text)) <= set.intersection(*entries), event
        assert set(re.findall(r"\b(CSNAP_[A-Z_]+)=", text)) <= set.union(*entries), event
    assert len(seen) > 50
