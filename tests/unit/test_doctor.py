# SPDX-License-Identifier: Apache-2.0
"""What doctor makes of texts and numbers of other hosts; and that it runs on this one."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer import schema
from tracer.capture import doctor, doctor_target
from tracer.capture.doctor import Check
from tracer.symbols import elf

ROOT = (1 << 41) - 1
BARE = elf.Elf("0123456789abcdef0123", "", 0, (), {})


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (doctor.check_privilege(0), "may not load"),
        (doctor.check_privilege(1 << 39), "may not load"),
        (doctor.check_bcc(None, False), "does not see"),
        (doctor.check_bcc("0.1.10", False), "something else"),
        (doctor.check_bcc("0.12.0", True), "older than 0.18"),
        (doctor.check_python((3, 10)), "older than 3.11"),
        (doctor.check_kernel("5.4.0-150-generic"), "ring buffer"),
        (doctor.check_machine("riscv64"), "riscv64"),
        (doctor.check_lockdown("none integrity [confidentiality]\n"), "confidentiality"),
        (doctor.check_bpf(errno.EPERM, "2"), "seccomp"),
        (doctor.check_bpf(errno.EPERM, "0"), "not permitted"),
        (doctor.check_bpf(errno.ENOSYS, "0"), "refuses"),
        (doctor.check_btf(False, "5.17.0"), "cannot be traced without"),
        (doctor_target.check_namespaces({"pid": "pid:[1]"}, {}), "cannot be read"),
    ],
)
def test_what_prevents_tracing_is_named_with_its_fix(check: Check, reason: str) -> None:
    assert not check.ok
    assert reason in check.what
    assert check.fix


@pytest.mark.parametrize(
    ("check", "found"),
    [
        (doctor.check_privilege(ROOT), "may load"),
        (doctor.check_privilege(1 << 39 | 1 << 38 | 1 << 19), "may load"),
        (doctor.check_bcc("0.26.0", True), "0.26.0"),
        (doctor.check_bcc("", True), "unknown version"),
        (doctor.check_python((3, 13)), "3.13"),
        (doctor.check_kernel("5.8.0"), "5.8.0"),
        (doctor.check_kernel("6.18.44-rt1"), "6.18.44"),
        (doctor.check_lockdown("none [integrity] confidentiality\n"), "integrity"),
        (doctor.check_lockdown(""), "none"),
        (doctor.check_bpf(0, "2"), "can be made"),
        (doctor.check_btf(True, "5.10.0"), "vmlinux"),
        (doctor.check_btf(False, "6.1.0"), "told by /proc"),
        (doctor.check_offsets(False, False, False, "no libbpf"), "no libbpf: eventfds are told by /proc"),
        (doctor.check_offsets(True, False, True, ""), "told by /proc"),
        (doctor.check_offsets(True, True, False, ""), "steal time is not seen"),
        (doctor.check_perf("2\n"), "2"),
        (doctor.check_tracefs("tracefs /sys/kernel/tracing tracefs rw 0 0\n"), "mounted, not needed"),
        (doctor.check_tracefs("proc /proc proc rw 0 0\n"), "not mounted"),
        (doctor.check_rt_throttling("-1\n"), "off"),
        (doctor.check_rt_throttling("950000\n"), "950000"),
        (doctor.check_memlock("6.1.0"), "not needed"),
        (doctor_target.check_namespaces({"pid": "a", "mnt": "b"}, {"pid": "a", "mnt": "b"}), "the same"),
        (doctor_target.check_namespaces({"pid": "a", "mnt": "b"}, {"pid": "c", "mnt": "b"}), "its own: pid"),
        (doctor_target.check_symbols(BARE), "stripped"),
        (doctor_target.check_symbols(None), "no ELF"),
        (doctor_target.check_threads(["gpu worker", "cross domain", "cross domain"]), "2 cross domain"),
        (doctor_target.check_threads(["main"]), "by behaviour"),
        (doctor_target.check_fds([schema.Fd(1, 3, "eventfd", 7), schema.Fd(1, 4, "io_uring")]), "invisible"),
        (doctor_target.check_fds([schema.Fd(1, 3, "file")]), "no audio"),
    ],
)
def test_what_does_not_prevent_tracing_passes_and_is_described(check: Check, found: str) -> None:
    assert check.ok
    assert found in check.what


@pytest.mark.parametrize(
    "judge",
    [
        doctor.check_kernel,
        doctor.check_lockdown,
        doctor.check_perf,
        doctor.check_tracefs,
        doctor.check_machine,
    ],
)
@given(text=st.text(max_size=60))
def test_no_text_of_a_host_makes_a_check_fail_to_answer(judge: Callable[[str], Check], text: str) -> None:
    assert judge(text).what


def test_this_host_is_judged_and_every_failure_has_a_fix() -> None:
    found = doctor.host_checks()
    assert {"privilege", "bcc", "kernel", "BTF", "lockdown"} <= {check.name for check in found}
    assert all(check.ok or check.fix for check in found)
    (python,) = [check for check in found if check.name == "python"]
    assert python.what == f"{sys.version_info[0]}.{sys.version_info[1]}"


def test_a_target_that_is_not_there_is_one_failed_check() -> None:
    (check,) = doctor_target.target_checks(2**22 + 1)
    assert not check.ok
    assert check.fix


def test_a_target_that_is_there_is_described() -> None:
    found = {check.name: check for check in doctor_target.target_checks(os.getppid())}
    assert found["target"].ok == (len(found) > 1)
