# SPDX-License-Identifier: Apache-2.0
"""A live session: attaches to processes and iterates batches of what they did.

Owns the order of things: pin, load, learn, filter, what was there before us; then a batch every interval
(intake.py makes it), and what ends it all. Judges nothing.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tracer import schema
from tracer.capture import target
from tracer.capture.attached import Attached
from tracer.capture.batches import joined, machine_facts
from tracer.capture.calibrate import calibrate
from tracer.capture.drain import Drain
from tracer.capture.fdids import FdIds
from tracer.capture.intake import Intake
from tracer.capture.machine import this_machine
from tracer.capture.maps import Maps
from tracer.capture.names import Names
from tracer.capture.probes import LoadTimes, ProbeConfig, Probes
from tracer.capture.ring import Ring
from tracer.capture.search import AudioSearch
from tracer.capture.settings import Settings
from tracer.capture.target import PinnedTarget
from tracer.capture.usage import Usage
from tracer.capture.watched import Watched
from tracer.errors import HostError, TargetError
from tracer.schema import Batch, Target

__all__ = ["Session", "Settings"]

_MAX_TARGETS = 32
_SETTLE_S = 0.15


class Session:
    """Traces processes while it is entered as a context manager; iterate it for batches.

    The iteration ends after the last VMM has exited or stop() was called; its last batch
    holds everything that was still in the ring.

    Args:
        tgids: processes with role ``vmm``.
        settings: see Settings.

    Raises (on entering):
        TargetError: a target is not there, is a kernel thread or xdtrace itself.
        HostError: this host cannot trace.
    """

    def __init__(self, tgids: Sequence[int], settings: Settings | None = None) -> None:
        self._wanted = tuple(dict.fromkeys(tgids))
        self.settings = settings or Settings()
        self.start_times: dict[str, float] = {}
        self._pinned: dict[int, PinnedTarget] = {}
        self._fd_ids: FdIds | None = None
        self._words = Watched(self.settings.held_words)
        self._attach_ns = 0
        self._calibrated: dict[str, int] = {}
        self._entered = False
        self._stop_fd = -1
        self._probes: Probes | None = None
        self._drain: Drain | None = None
        self._names: Names | None = None
        self._usage: Usage | None = None
        self._intake: Intake | None = None

    # -- starting and ending

    def __enter__(self) -> Session:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        settings = self.settings
        began = time.perf_counter()
        if not 0 < len(self._wanted) <= _MAX_TARGETS:
            raise TargetError(
                f"{len(self._wanted)} processes to trace", f"name one to {_MAX_TARGETS} processes"
            )
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for tgid in self._wanted:
            try:
                pinned = target.pin(tgid, "vmm")
            except TargetError:
                if settings.need_all or (tgid == self._wanted[-1] and not self._pinned):
                    raise
                continue
            self._pinned[pinned.tgid] = pinned
        self._wanted = tuple(self._pinned)
        self._probes = Probes(
            ProbeConfig(
                ring_bytes=settings.ring_bytes,
                held_words=settings.held_words,
                wait_stack_ns=settings.wait_stack_ns,
                min_other_ns=settings.min_other_ns,
                use_btf=settings.use_btf,
                form=settings.probe_form,
                kernel_headers=settings.kernel_headers,
                cache=settings.cache,
            )
        )
        loaded = time.perf_counter()
        self._maps = Maps(self._probes.maps, settings.held_words)
        ring = Ring(self._probes.maps["xd_ring"], settings.ring_bytes)
        self._usage = Usage(self._probes.program_fds.values())
        self._note = self._learn_host(self._probes)
        self._calibrated = calibrate(self._maps, ring, settings.held_words)
        self._drain = Drain(ring, settings.ring_bytes)
        self._names = Names(settings.debug_dirs)
        self._attach_ns = time.monotonic_ns()
        self._attached = Attached(self._pinned, self._maps, self._names, this_machine(), self._note)
        for tgid in list(self._pinned):
            self._attached.attach(tgid)
        self._attached.note_exits()
        if not self._attached.vmm_left():
            raise target.exited(self._wanted[0])
        self._search = AudioSearch(self._attached, settings.audio)
        self._search.now(self._wanted)
        for name, address in settings.lock_symbols:
            first = next(iter(self._pinned))
            self._attached.learned.locks.append(schema.LockSymbol(first, address, name, "user"))
            self._words.prefer(first, [address])
        self._intake = Intake(
            self._maps,
            self._drain,
            self._attached,
            self._names,
            self._usage,
            self._words,
            self._search,
            self._fd_ids,
            self._attach_ns,
        )
        times = self._probes.times
        self.start_times = {name: getattr(times, name) for name in LoadTimes.__dataclass_fields__} | {
            "attach_targets": time.perf_counter() - loaded,
            "total": time.perf_counter() - began,
        }

    def _learn_host(self, probes: Probes) -> str:
        """Have the probes learn what BTF does not say; returns what stays unseen, for the targets' rows."""
        learnt = self._maps.learn()
        if not probes.offsets.have_task and not learnt.task:
            raise HostError(
                f"the layout of this kernel's tasks is unknown: {probes.offsets.note}",
                "use a kernel with CONFIG_DEBUG_INFO_BTF=y, install libbpf1, run outside a pid namespace",
            )
        if not probes.have_files:
            self._fd_ids = FdIds()
            unseen = "" if probes.offsets.have_task else "; steal time is not seen"
            return (
                f"no eventfd ids in the kernel ({probes.offsets.note}): "
                f"taken from /proc, which misses short-lived fds{unseen}"
            )
        if not learnt.eventfd:
            return "eventfds are not recognised here (run xdtrace outside a pid namespace)"
        return ""

    def close(self) -> None:
        """Detach; leaves nothing behind. Idempotent."""
        self._entered = False
        self._intake = None
        if self._usage is not None:
            self._usage.close()
            self._usage = None
        if self._drain is not None:
            self._drain.close()
            self._drain = None
        if self._probes is not None:
            self._probes.close()
            self._probes = None
        if self._names is not None:
            self._names.close()
            self._names = None
        for pinned in self._pinned.values():
            pinned.close()
        if self._stop_fd >= 0:
            fd, self._stop_fd = self._stop_fd, -1
            os.close(fd)

    def stop(self) -> None:
        """End the iteration after one more batch. Safe in any thread and in a signal handler."""
        if self._stop_fd >= 0:
            os.eventfd_write(self._stop_fd, 1)

    @property
    def targets(self) -> tuple[Target, ...]:
        """The traced processes, VMMs first."""
        return tuple(self._attached.infos.values()) if self._entered else ()

    def watch(self, tgid: int, words: Sequence[int]) -> None:
        """Watch these lock words of a target from the next batch on; its own choice ends, but for
        words just seen waited on for the first time, which get a second or two."""
        self._words.tell(tgid, words)

    def join(self, vmm: int, tgid: int) -> None:
        """Trace a further process, in which the guest of a VMM runs; it does not keep the session going."""
        self._attached.join(vmm, tgid)

    def in_flight(self) -> tuple[NDArray[np.uint32], NDArray[np.void]]:
        """The kernel's per-thread state now: tids (n,) and maps.THREAD values (n,)."""
        return self._maps.threads()

    def verified_instructions(self) -> dict[str, int]:
        """Instructions that the verifier walked, by program; empty before kernel 5.16."""
        return self._probes.verified_instructions() if self._probes else {}

    @property
    def program_fds(self) -> dict[str, int]:
        """The loaded programs, by name."""
        return dict(self._probes.program_fds) if self._probes else {}

    # -- batches

    def __iter__(self) -> Iterator[Batch]:
        if not self._entered:
            raise RuntimeError("enter the session first: with Session(...) as session")
        yield self._batch(self._host())
        poll = select.poll()
        poll.register(self._stop_fd, select.POLLIN)
        watched = self._watch_exits(poll, set())
        while self._attached.vmm_left():
            due = time.monotonic() + self.settings.interval_s
            stop = False
            while not stop and (left := due - time.monotonic()) > 0:
                ready = {fd for fd, _event in poll.poll(left * 1000)}
                stop = self._stop_fd in ready
                for fd in ready - {self._stop_fd}:
                    poll.unregister(fd)
                self._attached.note_exits()
                stop = stop or not self._attached.vmm_left()
            if stop:
                break
            yield self._batch({})
            watched = self._watch_exits(poll, watched)
        yield self._last_batch()

    def _batch(self, host: dict[str, str | int | float], *, final: bool = False) -> Batch:
        assert self._intake is not None
        return self._intake.batch(host, final=final)

    def _watch_exits(self, poll: select.poll, watched: set[int]) -> set[int]:
        fresh = {pinned.pidfd for pinned in self._pinned.values()} - watched
        for fd in fresh:
            poll.register(fd, select.POLLIN)
        return watched | fresh

    def _last_batch(self) -> Batch:
        """Detach, then take all that is left."""
        assert self._probes is not None and self._names is not None
        self._probes.detach()
        self._attached.note_exits()
        parts = [self._batch({})]
        self._names.settle(_SETTLE_S)
        parts.append(self._batch({}, final=True))
        return joined(parts)

    # -- facts

    def _host(self) -> dict[str, str | int | float]:
        """Facts of this machine; nothing that names it."""
        assert self._probes is not None
        return {
            **machine_facts(),
            "attach_ns": self._attach_ns,
            "bcc": self._probes.bcc_version,
            "probe_form": self._probes.form.name,
            "wait_stack_ns": self.settings.wait_stack_ns,
            "min_other_ns": self.settings.min_other_ns,
            "held_words": self.settings.held_words,
            "eventfd_ids": "kernel" if not self._note else "procfs",
            "note": self._note,
            **self._calibrated,
        }
