"""``csnap serve``: the composition root of the control process, and its life.

    1. directory, lock file           waits, saying so, while an older process holds the lock
       helper                         for the fencing methods that need one: found, or started by root
    2. admin socket, metrics port     a dead socket file is replaced, a live one refused
    3. worker                         started by exec, before anything of gRPC is imported
    4. Hello -> etcd, its version, the volume's record compared with the origin (opening.py)
    5. member, cluster                joins; serves when the worker says so: READY=1
    6. SIGTERM, SIGINT                Stop -> Stopped -> member.leave -> exit 0, within 10 s whatever hangs (ending.py)
       SIGHUP                         the file is read again (reloading.py)

No module but lockspace.etcd* knows gRPC, and it is imported here only after the worker has been started.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

from prometheus_client.registry import CollectorRegistry

from snapd import __version__, counters
from snapd.cluster.cluster import Cluster
from snapd.cluster.volume import check_type
from snapd.config import Config
from snapd.daemon import endpoint, locktable, observe, status
from snapd.daemon.admin import AdminServer, Reply
from snapd.daemon.background import in_thread
from snapd.daemon.confirming import confirm
from snapd.daemon.effects import Outlet
from snapd.daemon.ending import Ending
from snapd.daemon.fdstore import find_store, inherited, shut_down
from snapd.daemon.fencing import Guard, described, make_guard
from snapd.daemon.helperproc import HelperProcess
from snapd.daemon.host import boot_id, machine_id
from snapd.daemon.lockfile import LockFile
from snapd.daemon.log import Log
from snapd.daemon.loop import Loop
from snapd.daemon.metrics import CsnapCollector, Observations, Sample
from snapd.daemon.notify import Freshness, Notifier, find_notify, watchdog_interval, watchdog_warning
from snapd.daemon.observed import ObservedKv
from snapd.daemon.opening import Opening
from snapd.daemon.outbox import Outbox
from snapd.daemon.reloading import Reloading
from snapd.daemon.snapshots import SnapshotCommands
from snapd.daemon.tracing import Tracing
from snapd.daemon.upgrading import upgrade
from snapd.daemon.workerproc import Worker
from snapd.errors import CsnapError, Fenced, Refused
from snapd.lockspace.fencing.agent import Agent
from snapd.lockspace.fencing.factory import make_fencer
from snapd.lockspace.member import Member
from snapd.lockspace.ports import ACTIVE, ERROR, FENCED, INFO, LEAVING, NOTICE, WARNING, Settings
from snapd.lockspace.records import FormatRecord
from snapd.messages import Fatal, Hello, Message, Notice, Stopped
from snapd.units import SECOND
from snapd.worker.launch import WorkerSettings

LOCK_AGAIN = SECOND // 10
EXIT_FENCED = 4
"""Of the worker: a device refused it a write, because its host's reservation key is gone."""

FENCED_LIMIT = 4 * SECOND
"""For a fenced worker to fail its requests and end."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Daemon:
    """One ``serve``, from its beginning to its end. Wiring: every decision is made elsewhere."""

    def __init__(self, config: Config, log: Log) -> None:
        check_type(config.volume.type)
        self._config = config
        self._journal = Outbox()
        self._log: Log = lambda priority, event, fields: self._journal.put(lambda: log(priority, event, fields))
        self._view = status.View(config)
        self._machine_id, self._boot_id = machine_id(config.node.machine_id), boot_id()
        _make_directory(config.export.directory)
        self._lock = LockFile(config.export.lock)
        self._loop = Loop()
        self._observations = Observations()
        self._freshness = Freshness()
        self._notifier = Notifier(
            self._loop, find_notify(), watchdog_interval(), self._stale, lambda: status.line(self._view)
        )
        self._reloading = Reloading(config, self._loop, self._log, self._view, self._notifier)
        self._inherited, self._store = inherited(), find_store()
        self._ending = Ending(self._loop, self._log, self._store)
        self._tracing = Tracing(self._loop, config.node.name, config.volume.name)
        self._closers: list[Callable[[], None]] = []
        self._worker: Worker | None = None
        self._hello: Hello | None = None
        self._opening: Opening | None = None
        self._kv: ObservedKv | None = None
        self._commands: SnapshotCommands | None = None
        self._helper: HelperProcess | None = None
        self._guard: Guard | None = None
        self._fatal = ""
        self._last_stale = ""
        self._ready = False
        self._error: CsnapError | None = None

    # ---- the beginning

    def run(self) -> None:
        """Serve until told to stop. Raises what ended it otherwise: Fenced, Refused, CsnapError."""
        before = {number: signal.signal(number, self._signalled) for number in STOP_SIGNALS}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._told_to_reload)
        self._loop.call_at(0, self._try_lock)
        try:
            self._loop.run()
            if self._error is None:
                self._ending.hand_over()
        except Refused as error:
            self._error = error
        finally:
            self._close()
            for number, handler in before.items():
                signal.signal(number, handler)
            self._loop.close()
        if self._error is not None:
            raise self._error
        self._log(NOTICE, "stopped", {"clean": self._ending.left})

    def _try_lock(self, waited: bool = False) -> None:
        if self._lock.take():
            self._locked()
            return
        if not waited:
            fields: dict[str, object] = {"lock_file": self._lock.path, "pid": self._lock.holder()}
            self._log(WARNING, "waiting_for_lock_file", fields)
            self._tell(self._view.state, f"waiting for the lock file {self._lock.path}, held by an older process")
        self._loop.call_later(LOCK_AGAIN, lambda: self._try_lock(True))

    def _locked(self) -> None:
        self._view.why = ""
        export = self._config.export
        admin = AdminServer(self._loop, export.admin, self._admin_commands(), self._stranger)
        self._closers.append(admin.close)
        if self._config.fencing.privileged:
            self._helper = HelperProcess(self._config)
            self._view.helper = self._helper.shown
            self._closers.append(self._helper.close)
        self._closers.append(self._unguard)
        door = endpoint.open_door(self._config.metrics)
        worker = self._worker = Worker(
            self._loop, self._settings(), self._lock.fd, self._receive, self._worker_ended, self._taken()
        )
        self._closers.append(worker.close)
        self._journal.start()
        if warning := watchdog_warning(watchdog_interval(), self._config.lockspace.lease_ttl, self._config.volume.name):
            self._warn(warning)
        self._view.words = worker.words
        self._tracing.attach(worker.trace, worker.send)
        self._expose(door, worker.words)
        self._log(NOTICE, "started", {"version": __version__, "volume": self._config.volume.name, "worker": worker.pid})

    def _expose(self, door: endpoint.Door | None, words: memoryview) -> None:
        """Metrics, to scrapers and to the text file, if either is configured."""
        textfile, volume = self._config.metrics.textfile, self._config.volume.name
        if door is None and not textfile:
            return
        registry = CollectorRegistry()
        CsnapCollector(registry, self._observations, words, endpoint.Sampler(self._loop, self._sample))

        def complain(text: str) -> None:
            with contextlib.suppress(RuntimeError):  # the daemon is ending
                self._loop.call_soon_threadsafe(lambda: self._log(WARNING, "warning", {"text": text}))

        self._view.metrics = door.address if door is not None else ""
        self._closers.append(endpoint.Endpoint(registry, door, textfile, volume, complain).close)

    def _taken(self) -> list[int]:
        """What the process before this one has left of its clients."""
        taken, self._inherited = self._inherited, []
        if taken and (self._store is None or not self._store.forget()):
            self._log(ERROR, "not_taken_over", {"why": "systemd has not confirmed that it has forgotten them"})
            shut_down(taken)
            return []
        return taken

    def _settings(self) -> WorkerSettings:
        volume = self._config.volume
        return WorkerSettings(
            volume_uuid=volume.cluster_uuid,
            volume_name=volume.name,
            store_type=volume.type,
            origin=volume.origin,
            exclusive=volume.exclusive,
            chunk_bytes=volume.chunk_size,
            region_bytes=volume.region_size,
            socket=self._config.export.nbd,
        )

    def _greeted(self, hello: Hello) -> None:
        """The worker has opened the origin: now etcd, and gRPC with it."""
        self._hello = hello
        for warning in hello.warnings:
            self._warn(warning)
        from snapd.lockspace.etcd import Etcd, Tls  # only now: see the module

        lockspace = self._config.lockspace
        tls = Tls(lockspace.ca, lockspace.cert, lockspace.key) if lockspace.ca or lockspace.cert else None
        etcd = Etcd(lockspace.endpoints, self._loop.call_soon_threadsafe, tls)
        self._closers.append(etcd.close)
        self._kv = ObservedKv(etcd, self._observations.observe, self._loop.now)
        self._opening = Opening(
            self._config,
            hello,
            etcd,
            self._loop,
            self._log,
            lambda why: self._tell(self._view.state, why),
            self._opened,
        )
        self._opening.begin()

    def _opened(self, record: FormatRecord | CsnapError) -> None:
        if self._ending.begun or self._error is not None:
            return
        if isinstance(record, CsnapError):
            self._ended(record)
            return
        assert self._opening is not None and self._worker is not None and self._hello is not None
        assert self._kv is not None
        if self._opening.warning:
            self._warn(self._opening.warning)
        if self._helper is not None:
            in_thread(self._loop, self._helper.wait, self._join)
        else:
            self._join(None)

    def _join(self, outcome: CsnapError | None) -> None:
        """The helper answers, if one is needed."""
        if self._ending.begun or self._error is not None:
            return
        if outcome is not None:
            self._ended(outcome)
            return
        assert self._worker is not None and self._hello is not None and self._kv is not None
        settings = self._member_settings()
        guard = self._guard = make_guard(
            self._config, settings.incarnation, self._loop, self._worker, self._log, self._told, self._ended
        )
        settings = replace(settings, fence_key=guard.fence_key)
        outlet = Outlet(guard, self._log, self._observations, self._tell, self._ended)
        outlet.send = self._tracing.waits.sending(outlet.send)
        fencer = make_fencer(
            self._reloading.config.fencing, outlet, self._loop.call_soon_threadsafe, self._loop, self._granted, guard
        )
        if isinstance(fencer, Agent):
            self._reloading.agent = fencer
            self._closers.append(fencer.close)
        if fencer.method == "unsafe":
            self._warn("fencing is unsafe: a host that only paused can wake up and write over others' work")
        member = guard.member = Member(
            settings, self._kv, self._loop, outlet, fencer, lambda old: self._lock.proven(old.lock_path)
        )
        self._tracing.waits.member = member
        cluster = Cluster(member)
        self._commands = SnapshotCommands(
            self._loop, self._log, self._config.volume, self._hello, member, cluster, guard.before_format
        )
        self._view.member = member
        self._view.why = ""
        member.start()

    def _granted(self) -> int:
        return self._view.member.lease_ttl if self._view.member is not None else 0

    def _member_settings(self) -> Settings:
        lockspace = self._config.lockspace
        return Settings(
            cluster_uuid=self._config.volume.cluster_uuid,
            node=self._config.node.name,
            machine_id=self._machine_id,
            boot_id=self._boot_id,
            incarnation=str(uuid4()),
            lock_path=self._lock.name,
            ttl=lockspace.lease_ttl,
            limits=self._reloading.limits,
            started=int(time.time()),
        )

    # ---- events

    def _receive(self, message: Message) -> None:
        """A message of the worker."""
        if isinstance(message, Hello):
            if not self._ending.begun:
                self._greeted(message)
        elif isinstance(message, Notice):
            self._log(message.priority, message.event, dict(message.fields))
        elif isinstance(message, Fatal):
            self._fatal = message.reason
        elif self._view.member is not None:
            self._tracing.waits.received(message)
            self._view.member.receive(message)
        if isinstance(message, Stopped) and self._error is None:
            self._ending.worker_stopped(self._view.member, self._guard)

    def _told(self, message: Message) -> None:
        """What the guard answers in the worker's place."""
        if self._view.member is not None:
            self._view.member.receive(message)

    def _tell(self, state: str, why: str) -> None:
        """The member's state, or what the daemon waits for."""
        if (state, why) != (self._view.state, self._view.why):
            self._log(WARNING if why else NOTICE, "state", {"state": state, **({"why": why} if why else {})})
        self._view.state, self._view.why = state, why
        if state == ACTIVE and not self._ready:
            self._ready = True
            self._notifier.ready()
        self._notifier.show()

    def _ended(self, error: CsnapError) -> None:
        """The member, or what came before it, is at its end."""
        if self._error is not None:
            return
        self._error = error
        self._log(ERROR, "fenced" if isinstance(error, Fenced) else "refused", {"error": error})
        if self._worker is None or not self._worker.alive:
            self._loop.stop()
        elif isinstance(error, Fenced):
            self._view.state = FENCED
            self._loop.call_later(FENCED_LIMIT, self._worker.kill)  # it has been told, and fails what it has got
        else:
            self._worker.kill()

    def _worker_ended(self, code: int) -> None:
        self._log(INFO if self._ending.begun else ERROR, "worker_ended", {"code": code})
        if self._error is None and code == EXIT_FENCED:
            self._error = Fenced(self._fatal or "the worker was fenced")
            self._log(ERROR, "fenced", {"error": self._error})
        elif self._error is None and code:
            reason = self._fatal or (f"killed by signal {-code}" if code < 0 else f"exit code {code}")
            self._error = CsnapError(f"the worker ended: {reason}")
        elif self._error is None and not self._ending.begun:
            self._error = CsnapError("the worker ended without being told to")
        if self._error is not None or self._ending.let_go or self._view.member is None:
            self._loop.stop()

    def _warn(self, text: str) -> None:
        self._view.warnings.append(text)
        self._log(WARNING, "warning", {"text": text})

    # ---- the end

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it ends anyway
            self._loop.call_soon_threadsafe(lambda: self._stop(signal.Signals(number).name, number == signal.SIGTERM))

    def _told_to_reload(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._reloading.signalled)

    def _stop(self, why: str, hand_over: bool) -> None:
        if self._ending.begun:
            return
        self._notifier.stopping()
        self._log(NOTICE, "stopping", {"why": why})
        self._view.state, self._view.why = LEAVING, ""
        self._ending.begin(self._worker, hand_over)

    def _unguard(self) -> None:
        if self._guard is not None and self._worker is not None:
            self._guard.close(not self._worker.alive)

    def _close(self) -> None:
        while self._closers:
            self._closers.pop()()
        self._lock.close()
        self._journal.close()

    # ---- what people and tools ask

    def _admin_commands(self) -> dict[str, Callable[[dict[str, Any], Reply], None]]:
        return {
            "status": lambda request, reply: reply.result(status.report(self._view)),
            "locks": lambda request, reply: reply.result(self._locks()),
            "trace": self._tracing.command,
            "snapshot-create": lambda request, reply: self._active().create(request, reply),
            "snapshot-delete": lambda request, reply: self._active().delete(request, reply),
            "observe": lambda request, reply: reply.result(observe.report(self._view, self._loop.now())),
            "reload": self._reloading.command,
            "volume-upgrade": lambda request, reply: upgrade(self._view.member, reply),
            "fencing": lambda request, reply: reply.result(described(self._guard, self._view.member)),
            "fence-confirm": lambda request, reply: confirm(self._view.member, self._loop, request, reply),
        }

    def _locks(self) -> list[dict[str, Any]]:
        member = self._view.member
        return locktable.report(member, self._tracing.words, self._loop.now()) if member is not None else []

    def _active(self) -> SnapshotCommands:
        if self._commands is None:
            raise Refused(f"this host is {self._view.state}, expected {ACTIVE}: {self._view.why or 'it is starting'}")
        return self._commands

    def _stranger(self, fields: dict[str, object]) -> None:
        self._log(WARNING, "admin_refused", fields)

    def _stale(self) -> str:
        words = self._view.words
        heartbeat = words[counters.HEARTBEAT] if words is not None else 0
        stale = self._freshness.stale(self._loop.now(), self._view.state, self._view.lease_remaining, heartbeat)
        if stale and stale != self._last_stale:
            self._log(ERROR, "watchdog_not_fed", {"stale": stale})
        self._last_stale = stale
        return stale

    def _sample(self) -> Sample:
        view, config = self._view, self._config
        hello, member = self._hello, view.member
        return Sample(
            now=self._loop.now(),
            node=config.node.name,
            fencing=config.fencing.method,
            state=view.state,
            lease_remaining=view.lease_remaining,
            lease_ttl=member.lease_ttl if member is not None else 0,
            watch_lag=self._kv.lag if self._kv is not None else 0,
            no_space=self._kv is not None and self._kv.no_space,
            locks=member.locks() if member is not None else [],
            snapshots=view.snapshots,
            warnings=hello.warnings if hello is not None else None,
        )


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"[export] directory {directory}: {error.strerror}") from error


def serve(config: Config, log: Log) -> None:
    """Run the daemon in the foreground. Raises what ended it, but for a planned stop."""
    faulthandler.enable()
    Daemon(config, log).run()
