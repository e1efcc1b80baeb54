# SPDX-License-Identifier: Apache-2.0
"""Who is a VMM here, and who is its audio server: told by what processes hold open.

Owns the search through /proc. Reads only what this user may read; pins, attaches and keeps nothing. Believes
no name where behaviour can be seen: names are hints for ``list`` only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from tracer.capture import procfs

_VCPU_COMM = "fc_vcpu"
_WORKER_COMMS = ("gpu worker", "cross domain")


@dataclass(frozen=True, slots=True)
class AudioStream:
    """An eventfd of an audio server that a VMM waits for: one stream's wakeups.

    Attributes:
        context_epfd: the epoll fd of the VMM that watches it; one per cross-domain context.
        server_tgid: the audio server.
    """

    eventfd_id: int
    context_epfd: int
    server_tgid: int


@dataclass(frozen=True, slots=True)
class Vmm:
    """A process that looks like a VMM.

    Attributes:
        vcpus: number of its vCPU threads or KVM vCPU fds.
        contexts: number of its cross-domain workers by thread name.
        why: what gives it away, strongest first: ``kvm``, ``threads``, ``audio``.
        audio: tgids of the audio servers whose eventfds it shares.
        streams: what it waits for from them now.
    """

    tgid: int
    comm: str
    exe: str
    vcpus: int
    contexts: int
    why: tuple[str, ...]
    audio: tuple[int, ...]
    streams: tuple[AudioStream, ...]


def find_audio(tgid: int) -> list[int]:
    """The audio servers of a VMM: who drives cycles over eventfds that the VMM shares.

    A server waits in one epoll for a timer of its own and for an eventfd that the VMM writes
    (the completion). Where /proc does not show that, the holder of a timer that shares most
    eventfds is taken; where no holder has a timer (a server may sleep, or be woken by its card), who shares
    both an eventfd that the VMM waits for and one that it does not. A forked copy of the VMM (it holds
    all of its eventfds) and another VMM
    (it holds KVM fds) are none. Processes that may not be read cannot be found.

    Returns:
        tgids, those that share most first; [] when there is none.
    """
    return find_servers([tgid])[tgid]


def find_servers(vmms: Iterable[int]) -> dict[int, list[int]]:
    """The audio servers of several VMMs, as ``find_audio`` gives them, by one look at all processes."""
    scan = _Scan()
    return {tgid: _find_audio(tgid, scan) for tgid in vmms}


def share_eventfds(vmm_tgid: int, server_tgid: int) -> bool:
    """Whether two processes share an eventfd now.

    Ids are reused: a VMM that exits during a search leaves its ids to whoever makes the next eventfds, and
    where streams come and go, so does each closed one. The server is read before and after the VMM, so
    what is in all three was there all the time.
    """
    before = set(procfs.eventfd_ids(server_tgid).values())
    shared = before.intersection(procfs.eventfd_ids(vmm_tgid).values()) - {-1}
    return bool(shared) and not shared.isdisjoint(procfs.eventfd_ids(server_tgid).values())


@dataclass(frozen=True, slots=True)
class _Holdings:
    """What a process holds open, as far as the search needs it."""

    eventfds: dict[int, int]
    has_timer: bool
    kvm_vcpus: int
    has_vm: bool


class _Scan:
    """One look at every process: each is read at most once, and only when asked for."""

    def __init__(self) -> None:
        self.tgids = procfs.pids()
        self._known: dict[int, _Holdings] = {}

    def holdings(self, tgid: int) -> _Holdings:
        """What a process holds; empty when it is gone or may not be read."""
        if tgid not in self._known:
            self._known[tgid] = _holdings(tgid)
        return self._known[tgid]


def _holdings(tgid: int) -> _Holdings:
    links = list(procfs.links(tgid))
    kinds = [link for _, link in links]
    return _Holdings(
        eventfds=procfs.eventfd_ids(tgid) if procfs.EVENTFD in kinds else {},
        has_timer=procfs.TIMERFD in kinds,
        kvm_vcpus=sum(link.startswith("anon_inode:kvm-vcpu") for link in kinds),
        has_vm=any(link.startswith("anon_inode:kvm-v") for link in kinds),
    )


def _find_audio(tgid: int, scan: _Scan) -> list[int]:
    own = {number for number in scan.holdings(tgid).eventfds.values() if number >= 0}
    if not own:
        return []
    sharing: dict[int, set[int]] = {}
    for other in scan.tgids:
        held = scan.holdings(other)
        shared = own.intersection(held.eventfds.values())
        if other != tgid and shared and not held.has_vm and share_eventfds(tgid, other):
            sharing[other] = shared
    timed = [other for other in sharing if scan.holdings(other).has_timer]
    candidates = [other for other in timed if len(sharing[other]) < len(own)] or timed
    candidates.sort(key=lambda other: (-len(sharing[other]), other))
    drivers = [other for other in candidates if _drives(other, own, scan)]
    return drivers or candidates[:1] or _without_timer(tgid, sharing, scan)


def _without_timer(tgid: int, sharing: dict[int, set[int]], scan: _Scan) -> list[int]:
    """Who signals the VMM and is answered, of those that share eventfds but hold no timer.

    A device's backend (vhost-user) shares eventfds too, but those go to KVM: the VMM waits for none of them.
    """
    ids = scan.holdings(tgid).eventfds
    waited = {ids[entry.fd] for entry in procfs.epolls(tgid) if entry.fd in ids} if sharing else set()
    own = {number for number in ids.values() if number >= 0}
    found = [
        other for other, shared in sharing.items() if shared & waited and shared - waited and shared < own
    ]
    return sorted(found, key=lambda other: (-len(sharing[other]), other))[:1]


def _drives(tgid: int, shared: set[int], scan: _Scan) -> bool:
    """Whether one epoll of a process watches both a timerfd and one of the shared eventfds."""
    eventfds = scan.holdings(tgid).eventfds
    timers = {int(name) for name, link in procfs.links(tgid) if link == procfs.TIMERFD}
    watched: dict[int, set[str]] = {}
    for entry in procfs.epolls(tgid):
        kinds = watched.setdefault(entry.epfd, set())
        if entry.fd in timers:
            kinds.add("timer")
        elif eventfds.get(entry.fd) in shared:
            kinds.add("shared")
    return any(len(kinds) == 2 for kinds in watched.values())


def list_vmms() -> list[Vmm]:
    """Processes that look like VMMs, those with audio streams first, then by tgid.

    A KVM fd is proof; threads named as libkrun names its own are a sign. Reads only what this
    user may read.
    """
    scan = _Scan()
    found = (_vmm(tgid, scan) for tgid in scan.tgids if tgid != os.getpid())
    return sorted((vmm for vmm in found if vmm), key=lambda vmm: (not vmm.streams, vmm.tgid))


def _vmm(tgid: int, scan: _Scan) -> Vmm | None:
    held = scan.holdings(tgid)
    stats = (procfs.stat(tgid, tid) for tid in procfs.tids(tgid))
    comms = [item.comm for item in stats if item is not None]
    named = [comm for comm in comms if comm.startswith((*_WORKER_COMMS, _VCPU_COMM))]
    if not held.has_vm and not named:
        return None
    audio = tuple(_find_audio(tgid, scan))
    streams = _streams(tgid, audio, scan)
    try:
        exe = procfs.text_of(os.fsencode(os.readlink(f"{procfs.PROC}/{tgid}/exe")))
    except OSError:
        exe = ""
    signs = (("kvm", held.has_vm), ("threads", bool(named)), ("audio", bool(audio)))
    return Vmm(
        tgid=tgid,
        comm=procfs.status(tgid).get("Name", ""),
        exe=exe,
        vcpus=held.kvm_vcpus or sum(comm.startswith(_VCPU_COMM) for comm in comms),
        contexts=sum(comm.startswith(_WORKER_COMMS[1]) for comm in comms),
        why=tuple(name for name, present in signs if present),
        audio=audio,
        streams=streams,
    )


def _streams(tgid: int, audio: tuple[int, ...], scan: _Scan) -> tuple[AudioStream, ...]:
    """Eventfds of the servers that the VMM has in an epoll of its own."""
    owner = {number: server for server in audio for number in scan.holdings(server).eventfds.values()}
    ids = scan.holdings(tgid).eventfds
    streams = {
        (entry.epfd, ids[entry.fd]): AudioStream(ids[entry.fd], entry.epfd, owner[ids[entry.fd]])
        for entry in (procfs.epolls(tgid) if audio else ())
        if ids.get(entry.fd) in owner
    }
    return tuple(streams[key] for key in sorted(streams))
