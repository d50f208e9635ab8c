"""Python in the guest: this interpreter, and exactly the modules that a program imports, already compiled.

Read from a Python that has imported them, so nothing is listed by hand; the guest compiles nothing (it is slow).
"""

from __future__ import annotations

import json
import marshal
import re
import subprocess
import sys
from importlib.util import MAGIC_NUMBER
from pathlib import Path

HOME = f"usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
PROJECT = Path(__file__).parents[3]
ALWAYS = ("runpy", "encodings.utf_8", "encodings.latin_1", "encodings.ascii", "encodings.aliases", "site", "traceback")
"""Imported by the interpreter itself, or when something goes wrong."""

RUN = "PYTHONHOME=/usr /usr/bin/python3 -s"
"""How the guest's script calls it."""

_LIST = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps({name: getattr(module, "__file__", None) for name, module in sys.modules.items()}))
"""


def files(*modules: str) -> dict[str, bytes]:
    """Return the guest's files for a Python that can import ``modules`` (of the project, or the standard library)."""
    command = [sys.executable, "-c", _LIST, json.dumps([*ALWAYS, *modules])]
    listed = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=PROJECT, text=True).stdout
    executable = Path(sys.executable).resolve()
    found = {"usr/bin/python3": executable.read_bytes(), **_libraries(executable), **_thread_exit()}
    for name, file in json.loads(listed).items():
        if file is None or name == "__main__":
            continue
        path, place = Path(file), name.replace(".", "/")
        if path.suffix == ".py":
            place += "/__init__" if path.name == "__init__.py" else ""
            found[f"{HOME}/{place}.pyc"] = compiled(path)
        else:
            found[f"{HOME}/{place.rpartition('/')[0]}/{path.name}"] = path.read_bytes()
            found |= _libraries(path)
    return found


def _thread_exit() -> dict[str, bytes]:
    """What libc opens only when a thread ends by pthread_exit, as a daemon thread does while the interpreter finishes;
    without it libc aborts the process ("libgcc_s.so.1 must be installed for pthread_exit to work")."""
    listed = subprocess.run(["/sbin/ldconfig", "-p"], stdout=subprocess.PIPE, check=True, text=True).stdout
    path = re.search(r"libgcc_s\.so\.1 .*x86-64.* => (\S+)", listed) or re.search(r"libgcc_s\.so\.1 .*=> (\S+)", listed)
    if path is None:
        raise RuntimeError("ldconfig knows no libgcc_s.so.1; it is in Debian's libgcc-s1")
    return {path[1]: Path(path[1]).read_bytes()}


def compiled(path: Path) -> bytes:
    """A module without its source: the importer looks at no date."""
    code = compile(path.read_bytes(), path.name, "exec", dont_inherit=True)
    return MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def _libraries(path: Path) -> dict[str, bytes]:
    listed = subprocess.run(["ldd", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return {name: Path(name).read_bytes() for name in re.findall(r"(/\S+) \(0x", listed.stdout)}
