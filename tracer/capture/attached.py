# SPDX-License-Identifier: Apache-2.0
"""The processes of a session: taken over where they stand, renamed by exec, gone by exit.

Owns which processes are in the kernel's filter, and what was learned of them
since the last batch. Never reads the ring.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from tracer import schema
from tracer.capture import inflight, procfs, servers, target
from tracer.capture.batches import ByKind
from tracer.capture.machine import Machine
from tracer.capture.maps import Maps
from tracer.capture.names import Names, Program
from tracer.capture.side import Side
from tracer.capture.target import PinnedTarget
from tracer.errors import HostError, TargetError
from tracer.schema import Kind, Life, Target


@dataclass(slots=True)
class Learned:
    """What goes beside the records of the next batch."""

    targets: dict[int, Target] = field(default_factory=dict)
    threads: list[schema.Thread] = field(default_factory=list)
    fds: list[schema.Fd] = field(default_factory=list)
    epolls: list[schema.EpollEntry] = field(default_factory=list)
    locks: list[schema.LockSymbol] = field(default_factory=list)


class Attached:
    """Traced processes.

    Args:
        pinned: by tgid; grows as audio servers are found. Whoever gave it closes them.
        note: what every target's row should say, "" for nothing.

    Attributes:
        infos: rows of all targets, VMMs first.
        servers: the audio servers last found, by VMM; some may have exited.
        joined: processes that are traced for a VMM whose guest runs there, and the VMM.
        unsure: tids whose clipped span may be over already: no OPEN record may be made of it.
    """

    def __init__(
        self, pinned: dict[int, PinnedTarget], maps: Maps, names: Names, machine: Machine, note: str
    ) -> None:
        self.pinned = pinned
        self.infos: dict[int, Target] = {}
        self.learned = Learned()
        self.side = Side()
        self.unsure: set[int] = set()
        self.servers: dict[int, tuple[int, ...]] = {}
        self.joined: dict[int, int] = {}
        self._maps = maps
        self._names = names
        self._machine = machine
        self._note = note

    def take_learned(self) -> Learned:
        """What was learned since the last call."""
        learned, self.learned = self.learned, Learned()
        return learned

    def alive(self) -> list[int]:
        """Targets that have not exited."""
        return [tgid for tgid, info in self.infos.items() if info.alive]

    def vmm_left(self) -> bool:
        """Whether any VMM still runs."""
        vmms = [info for tgid, info in self.infos.items() if info.role == "vmm" and tgid not in self.joined]
        return any(info.alive for info in vmms)

    def join(self, vmm: int, tgid: int) -> None:
        """Trace the process in which a VMM's guest runs; one that cannot be traced is left out."""
        if tgid in self.pinned or tgid in self.joined or tgid == os.getpid():
            return
        self.joined[tgid] = vmm
        with suppress(TargetError, HostError):
            self.pinned[tgid] = target.pin(tgid, "vmm")
            self.attach(tgid)

    def attach(self, tgid: int) -> None:
        """Trace a pinned process from now on, with what it has and is in the middle of."""
        self._maps.set_target(tgid)
        info = self.pinned[tgid].describe()
        self._set(replace(info, notes=(*info.notes, self._note) if self._note else info.notes))
        self._look(tgid)
        self._take_over(tgid)
        self._names.ask_program(tgid)
        if not info.alive:  # it went just now: its id may come to be another's
            self._maps.remove_target(tgid)

    def find_audio(self, choice: int | bool | None, vmms: tuple[int, ...]) -> None:
        """Trace the audio servers too: a tgid, None or True: whoever drives the VMMs, False: none.

        Raises TargetError where the tgid that was asked for cannot be traced.
        """
        if choice is False:
            return
        searched = choice is None or choice is True
        if searched:
            found = {
                vmm: tuple(one for one in several if self._serves(one, vmm))
                for vmm, several in servers.find_servers(vmms).items()
            }
        else:
            found = {vmm: (int(choice or 0),) for vmm in vmms}
        self.servers |= {vmm: several for vmm, several in found.items() if several}
        tgids = {one for several in found.values() for one in several}
        for tgid in sorted(tgids - self.pinned.keys() - {os.getpid()}):
            try:
                self.pinned[tgid] = target.pin(tgid, "audio")
            except TargetError:
                if searched:
                    continue  # it has gone meanwhile
                raise
            self.attach(tgid)

    def unserved(self) -> dict[int, bool]:
        """VMMs that have no living audio server, and whether they ever had one."""
        living = set(self.alive())
        return {
            tgid: tgid in self.servers
            for tgid in living - self.joined.keys()
            if self.infos[tgid].role == "vmm" and living.isdisjoint(self.servers.get(tgid, ()))
        }

    def _serves(self, server: int, vmm: int) -> bool:
        """Whether what a search found is true of the VMM that is pinned: ids are reused, pids too."""
        return servers.share_eventfds(vmm, server) and self.pinned[vmm].alive()

    def note_exits(self) -> None:
        """Take those that have exited out of the filter."""
        for tgid in self.alive():
            if not self.pinned[tgid].alive():
                self._maps.remove_target(tgid)
                self._set(replace(self.infos[tgid], alive=False))

    def note_execs(self, records: ByKind) -> list[int]:
        """Look again at targets that called exec. Returns their tgids."""
        if not records.count(Kind.LIFE):
            return []
        rows = records.rows(Kind.LIFE)
        found = [
            tgid for tgid in np.unique(rows["tgid"][rows["op"] == Life.EXEC]).tolist() if tgid in self.infos
        ]
        for tgid in found:
            self._look(tgid)
            comm = procfs.status(tgid).get("Name", self.infos[tgid].comm)
            exe = self._exe(tgid)
            self._set(replace(self.infos[tgid], comm=comm, exe=exe, build_id="", crate="", version=""))
            self._names.ask_program(tgid)
        return found

    def note_program(self, program: Program) -> None:
        """Add to a target's row what its binary says of itself."""
        if program.tgid in self.infos:
            self._set(
                replace(
                    self.infos[program.tgid],
                    build_id=program.build_id,
                    crate=program.crate,
                    version=program.version,
                )
            )

    def _set(self, info: Target) -> None:
        self.infos[info.tgid] = self.learned.targets[info.tgid] = info

    def _exe(self, tgid: int) -> str:
        try:
            return procfs.text_of(os.fsencode(os.readlink(f"{procfs.PROC}/{tgid}/exe")))
        except OSError:
            return ""

    def _look(self, tgid: int) -> None:
        threads, fds = self.side.attach(tgid)
        self.learned.threads.extend(threads)
        self.learned.fds.extend(fds)
        self.learned.epolls.extend(procfs.epolls(tgid))

    def _take_over(self, tgid: int) -> None:
        """Enter into the kernel what threads were in the middle of, so that its end is one record."""
        now_ns = time.monotonic_ns()
        fds = [item for item in self.learned.fds if item.tgid == tgid]
        eventfds = {item.fd: item.eventfd_id for item in fds if item.eventfd_id >= 0}
        timerfds = frozenset(item.fd for item in fds if item.type == "timerfd")
        blocked = {item.tid: item for item in procfs.blocked_syscalls(tgid)}
        entered = procfs.tids(tgid)
        for tid in entered:
            stat = procfs.stat(tgid, tid)
            call = blocked.get(tid)
            number, args = (call.number, call.args) if call else (-1, ())
            state = stat.state if stat else ""
            value = inflight.clipped(self._machine, tgid, state, number, args, now_ns, eventfds, timerfds)
            self._maps.insert_thread(tid, value)
        # Who moved on between being read and being entered has an entry that is not true. The next
        # syscall overwrites it; until then no OPEN record may be made of it.
        still = {item.tid: item for item in procfs.blocked_syscalls(tgid)}
        self.unsure.update(tid for tid, item in blocked.items() if still.get(tid) != item)
        for tid in set(entered) - set(procfs.tids(tgid)):
            self._maps.delete_thread(tid)
