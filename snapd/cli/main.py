"""``csnap``: the command line. Exit codes: 0 done, 1 refused or failed, 2 usage, 3 no daemon answers, 4 fenced.

Every error is one line on standard error. What a command needs is imported when it runs: ``status`` starts in a tenth
of a second, and only ``volume init`` and ``serve`` load gRPC.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from errno import EDQUOT, EFBIG, EIO, ENOSPC
from io import TextIOWrapper
from typing import NoReturn

from snapd import __version__
from snapd.cli import attaching, commands, devices, doctoring, fencing, locking, tracing
from snapd.cli.top import command as top
from snapd.errors import CsnapError, Fenced, NoDaemon
from snapd.printable import one_line

DONE, FAILED, USAGE, NO_DAEMON, FENCED = 0, 1, 2, 3, 4
INTERRUPTED = 130
NO_ROOM = (EDQUOT, EFBIG, EIO, ENOSPC)
"""Why output could not be written; every command opens its own files under errors of its own."""

EPILOG = """\
something is wrong:  csnap doctor vmstore
something is slow:   csnap top vmstore, then csnap trace vmstore

exit codes: 0 done, 1 refused or failed, 2 usage, 3 no daemon answers, 4 serve was fenced,
            5 reload: part of it needs a restart"""

Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (try {self.prog} --help)\n")


def make_parser() -> Parser:
    parser = Parser(
        prog="csnap",
        description="Cluster-wide copy-on-write snapshots of a shared disk.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"csnap {__version__}")
    groups = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    volume = _group(groups, "volume", "register volumes")
    init = _command(volume, "init", commands.volume_init, "register the volume in etcd, once", "vmstore")
    _config(init)
    _json(init)
    upgrade = _command(
        volume,
        "upgrade",
        commands.volume_upgrade,
        "raise the protocol, when every member speaks the next one; older ones cannot join again",
        "vmstore",
    )
    _config(upgrade)
    _json(upgrade)

    serve = _command(groups, "serve", commands.serve, "run the daemon in the foreground", "/etc/csnap/vmstore.toml")
    _config(serve)

    snapshot = _group(groups, "snapshot", "take, delete and list snapshots")
    create = _command(
        snapshot, "create", commands.snapshot_create, "take a snapshot online", "vmstore s1 --cow /dev/mapper/cow1"
    )
    _config(create)
    create.add_argument("name", metavar="NAME", help="of the snapshot: letters, digits, '.', '_', '-'")
    create.add_argument("--cow", metavar="DEVICE", required=True, help="its COW device, at the same path on every host")
    create.add_argument("--writable", action="store_true", help="let clients write to the snapshot")
    create.add_argument("--force", action="store_true", help="overwrite foreign content of the COW device")
    _json(create)
    delete = _command(
        snapshot, "delete", commands.snapshot_delete, "delete a snapshot; its COW device is free", "vmstore s1"
    )
    _config(delete)
    delete.add_argument("name", metavar="NAME")
    _json(delete)
    listing = _command(snapshot, "list", commands.snapshot_list, "list the snapshots, newest first", "vmstore --json")
    _config(listing)
    _json(listing)

    reload = _command(
        groups,
        "reload",
        commands.reload,
        "let the daemon read its configuration again; 5: part needs a restart",
        "vmstore",
    )
    _config(reload)
    _json(reload)
    status = _command(groups, "status", commands.status, "show the local daemon's state", "vmstore")
    _config(status)
    _json(status)
    live = _command(groups, "top", top.top, "watch a volume live: hosts, locks, snapshots, I/O", "vmstore")
    _config(live)
    top.add_options(live)
    health = _command(groups, "doctor", doctoring.doctor, "check everything that support would ask for", "vmstore")
    doctoring.add_options(health)
    locks = _command(groups, "locks", locking.locks, "show who holds and who waits for which lock", "vmstore")
    _config(locks)
    locking.add_options(locks)
    trace = _command(groups, "trace", tracing.trace, "follow this host's slowest requests, by stage", "vmstore")
    _config(trace)
    tracing.add_options(trace)

    fence = _group(groups, "fence", "try fencing, or stand in for it")
    trial = _command(fence, "test", fencing.test, "try this host's fencing method, with nobody fenced", "vmstore")
    _config(trial)
    _json(trial)
    confirm = _command(
        fence, "confirm", fencing.confirm, "say that a dead member writes no more, without fencing it", "vmstore host-b"
    )
    _config(confirm)
    confirm.add_argument("member", metavar="MEMBER", help="its node name, as in csnap status")
    confirm.add_argument("--yes", action="store_true", help="do not ask")
    _json(confirm)

    attach = _command(
        groups, "attach", attaching.attach, "attach the origin to this host's kernel, and keep it attached", "vmstore"
    )
    _config(attach)
    _json(attach)
    attaching.add_attach(attach)
    detach = _command(groups, "detach", attaching.detach, "undo attach, if nobody uses the device", "vmstore")
    _config(detach)
    attaching.add_detach(detach)

    check = _command(groups, "check", devices.check, "tell whether a COW device is sound", "/dev/mapper/cow1")
    check.add_argument("device", metavar="DEVICE")
    _json(check)
    dump = _command(groups, "dump", devices.dump, "print what is on a COW device", "/dev/mapper/cow1 --json")
    dump.add_argument("device", metavar="DEVICE")
    dump.add_argument("--json", action="store_true", required=True, help="as JSON, the only form there is")

    config = _group(groups, "config", "look at configurations")
    good = _command(config, "check", commands.config_check, "check a configuration file", "/etc/csnap/vmstore.toml")
    _config(good)
    _json(good)
    _json(_command(groups, "version", commands.version, "print the version", ""))
    completion = _command(groups, "completion", _completion, "print a completion script", "bash > csnap.bash")
    completion.add_argument("shell", choices=["bash"])
    return parser


def _group(groups: argparse._SubParsersAction[Parser], name: str, text: str) -> argparse._SubParsersAction[Parser]:
    group = groups.add_parser(name, help=text, description=text)
    return group.add_subparsers(dest="subcommand", required=True, metavar="COMMAND", parser_class=Parser)


def _command(
    group: argparse._SubParsersAction[Parser], name: str, run: Command, text: str, example: str
) -> argparse.ArgumentParser:
    command = group.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.epilog = f"example: {command.prog} {example}".rstrip()
    command.set_defaults(run=run)
    return command


def _config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG", help="a configuration file, or a volume's name under /etc/csnap")


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def _completion(arguments: argparse.Namespace) -> int:
    from snapd.cli.completion import bash

    print(bash(make_parser()), end="")
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is in our own one line
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a key in etcd may hold bytes that are no text
    try:
        arguments = make_parser().parse_args(argv)
        return _run(arguments)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except NoDaemon as error:
        return _fail(error, NO_DAEMON)
    except Fenced as error:
        return _fail(error, FENCED)
    except CsnapError as error:
        return _fail(error, FAILED)


def _run(arguments: argparse.Namespace) -> int:
    """Run the command; what becomes of its output is seen here."""
    try:
        code: int = arguments.run(arguments)
        if sys.stdout is not None:  # closed by whoever started this
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _give_up_output()
        return FAILED
    except OSError as error:
        if error.errno not in NO_ROOM or error.filename is not None or arguments.command == "serve":
            raise
        _give_up_output()
        return _fail(f"standard output: {error.strerror}", FAILED)


def _give_up_output() -> None:
    """Else the interpreter tries again when it ends, and complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail(error: object, code: int) -> int:
    print("csnap:", one_line(error), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
