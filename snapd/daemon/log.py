"""The log: an event and key=value, to the journal with structured fields, else to standard error.

    journal:  MESSAGE="fence_failed target=host-b attempt=3" MESSAGE_ID=3a21... PRIORITY=3 VOLUME=vmstore NODE=host-a
              CSNAP_EVENT=fence_failed CSNAP_TARGET=host-b ...; SNAPSHOT=s1, if it is about one
    stderr:   csnap[host-a] error fence_failed target=host-b attempt=3

The journal is used when standard error is connected to it (systemd says so in JOURNAL_STREAM). Not the handler of
Python's logging: that one also sends a record's arguments, and here only what is passed as a field is sent.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable
from typing import TextIO

from snapd.daemon.door import is_open
from snapd.daemon.events import MESSAGE_IDS
from snapd.printable import printable

Log = Callable[[int, str, dict[str, object]], None]
"""``log(priority, event, fields)``; priorities are syslog's."""

WORDS = ("emergency", "alert", "critical", "error", "warning", "notice", "info", "debug")
JOURNAL = "/run/systemd/journal/socket"
KEPT = 1000
"""Lines kept for a journal that does not read; then the oldest go."""

VALUE_MOST = 1000
"""Characters of one value."""

_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,\[\]-]+", re.ASCII)


def plain(value: object) -> str:
    """Return the value's text as UTF-8 can have it: a key in etcd or a file's name may hold other bytes."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def line(event: str, fields: dict[str, object]) -> str:
    """Return ``event key=value ...`` on one line, whatever the values hold."""
    return " ".join([event, *(f"{key}={_quoted(plain(value))}" for key, value in fields.items())])


def _quoted(text: str) -> str:
    text = text if len(text) <= VALUE_MOST else text[:VALUE_MOST] + "..."
    return text if _PLAIN.fullmatch(text) else printable(json.dumps(text, ensure_ascii=False))


def to_stream(stream: TextIO, node: str) -> Log:
    """Return a log that writes lines; a stream that is gone is no reason to stop."""

    def log(priority: int, event: str, fields: dict[str, object]) -> None:
        try:
            stream.write(f"csnap[{node}] {WORDS[priority]} {line(event, fields)}\n")
            stream.flush()
        except (OSError, ValueError):
            return

    return log


def to_journal(send: Callable[..., None], node: str, volume: str, is_open: Callable[[], bool] = lambda: True) -> Log:
    """Return a log that calls systemd's ``journal.send``, when the journal has room; until then lines are kept."""
    always = {"SYSLOG_IDENTIFIER": "csnap", "VOLUME": volume, "NODE": node, "CSNAP_NODE": node}
    waiting: deque[tuple[str, dict[str, object]]] = deque(maxlen=KEPT)

    def log(priority: int, event: str, fields: dict[str, object]) -> None:
        named: dict[str, object] = {f"CSNAP_{key.upper()}": plain(value) for key, value in fields.items()}
        about: dict[str, object] = {**always, "PRIORITY": priority, "CSNAP_EVENT": event}
        if event in MESSAGE_IDS:
            about["MESSAGE_ID"] = MESSAGE_IDS[event]
        if "snapshot" in fields:
            about["SNAPSHOT"] = plain(fields["snapshot"])
        waiting.append((line(event, fields), {**about, **named}))
        while waiting and is_open():
            text, values = waiting.popleft()
            send(text, **values)

    return log


def open_log(node: str, volume: str) -> Log:
    """Return the log that fits how this process was started."""
    if connected(os.environ.get("JOURNAL_STREAM", "")):
        try:
            from systemd import journal
        except ImportError:
            pass
        else:
            return to_journal(journal.send, node, volume, lambda: is_open(JOURNAL))
    return to_stream(sys.stderr, node)


def connected(stream: str) -> bool:
    """Whether standard error is the stream ``device:inode`` that systemd names; the variable is inherited further."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"
