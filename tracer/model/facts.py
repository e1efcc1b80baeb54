# SPDX-License-Identifier: Apache-2.0
"""Facts about the run itself: the host, record counts, losses, own cost, steal, profiles.

Owns counters and the choice of a profile per VMM. Decides nothing about audio.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from tracer.model.registry import Registry
from tracer.model.step import Step
from tracer.profile import Profile, Site, match
from tracer.schema import Batch, Frame, Losses, SelfUse, Thread


class Facts:
    """Counters of a run, and profiles."""

    def __init__(self, profiles: Sequence[Profile]) -> None:
        self._profiles = tuple(profiles)
        self._chosen: dict[int, Profile] = {}
        self.host: dict[str, str | int | float] = {}
        self.losses = Losses()
        self.self_use = SelfUse()
        self.total = 0
        self.start_ns = 0
        self.end_ns = 0
        self._steal_first: int | None = None
        self._per_step: deque[tuple[int, int]] = deque(maxlen=5)

    def learn(self, batch: Batch, registry: Registry) -> None:
        """Take over what a batch says of the run."""
        self.host.update(batch.host)
        self.losses = batch.losses
        if batch.self_use is not None:
            self.self_use = batch.self_use
        for target in batch.targets:
            if target.role == "vmm":
                threads = [
                    Thread(t.tid, t.tgid, t.comm) for t in registry.threads.values() if t.tgid == target.tgid
                ]
                self._chosen[target.tgid] = match(self._profiles, target, threads)

    def step(self, step: Step) -> None:
        """Count one step's records."""
        if not self.start_ns:
            self.start_ns = step.end_ns
            if len(step):
                self.start_ns = max(int(step.records["enter_ns"].min()), step.end_ns - 1_000_000_000)
        self.end_ns = step.end_ns
        self.total += len(step)
        self._per_step.append((step.end_ns, len(step)))

    @property
    def elapsed_ns(self) -> int:
        """Record time covered so far."""
        return max(0, self.end_ns - self.start_ns)

    @property
    def per_s(self) -> int:
        """Records per second over the last second of record time."""
        if not self._per_step:
            return 0
        return sum(n for _, n in self._per_step) * 5 // len(self._per_step)

    @property
    def steal_ns(self) -> int:
        """Steal time since attach, all CPUs."""
        return self.self_use.steal_ns

    def role(self, comm: str) -> str:
        """The role a thread's name suggests in any profile in use, "" for none."""
        for profile in {id(p): p for p in self._chosen.values()}.values() or self._profiles:
            role = profile.role(comm)
            if role:
                return role
        return ""

    def write_path(self, crate: str, version: str) -> str:
        """The write path that a version of a device is known to have, "" where that is not known."""
        found = (profile.write_path(crate, version) for profile in self._profiles)
        return next((path for path in found if path), "") if crate and version else ""

    def site(self, frames: Sequence[Frame]) -> Site | None:
        """What the profiles in use know of a call site, None where nothing."""
        for profile in {id(p): p for p in self._chosen.values()}.values():
            found = profile.site(frames)
            if found is not None:
                return found
        return None

    def host_facts(self) -> Mapping[str, str | int | float]:
        """The machine, as the first batch described it."""
        return dict(self.host)
