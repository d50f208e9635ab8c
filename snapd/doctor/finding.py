"""One verdict of the doctor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """In rising gravity, but for the last one: that says nothing about the thing itself."""

    OK = "ok"
    NOTE = "note"  # worth knowing, nothing to do now
    WARNING = "warning"  # to be put right
    FAILED = "failed"  # does not work, or data are at stake
    UNCHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Finding:
    """``check`` names the check, the same in every version; ``about`` a device, an endpoint, a host, or nothing."""

    area: str
    check: str
    about: str
    level: Level
    text: str
    todo: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "area": self.area,
            "check": self.check,
            "about": self.about,
            "level": self.level.value,
            "text": self.text,
            "todo": self.todo,
        }


@dataclass(frozen=True, slots=True)
class Subject:
    """Makes the findings about one thing."""

    area: str
    about: str = ""

    def ok(self, check: str, text: str) -> Finding:
        return Finding(self.area, check, self.about, Level.OK, text)

    def note(self, check: str, text: str, todo: str = "") -> Finding:
        return Finding(self.area, check, self.about, Level.NOTE, text, todo)

    def warning(self, check: str, text: str, todo: str) -> Finding:
        return Finding(self.area, check, self.about, Level.WARNING, text, todo)

    def failed(self, check: str, text: str, todo: str) -> Finding:
        return Finding(self.area, check, self.about, Level.FAILED, text, todo)

    def unchecked(self, check: str, why: str, todo: str = "") -> Finding:
        return Finding(self.area, check, self.about, Level.UNCHECKED, why, todo)


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if anything failed; warnings and what could not be checked are for people to weigh."""
    return int(any(finding.level == Level.FAILED for finding in findings))
