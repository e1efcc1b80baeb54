# SPDX-License-Identifier: Apache-2.0
"""Profiles: roles from thread names, locks and operations from call sites, errors with line and key."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer import profile
from tracer.errors import UsageError
from tracer.profile.names import plain_path
from tracer.schema import Frame, Target, Thread

V0_LOCK = "<std::sync::poison::mutex::Mutex<rutabaga_gfx::cross_domain::common::{}>>::lock"
LEGACY_LOCK = "std::sync::poison::mutex::Mutex<T>::lock"
CONTEXT = "<rutabaga_gfx::cross_domain::context::CrossDomainContext>::{}"
UPSTREAM = "/r/rutabaga_gfx-0.1.80/src/cross_domain/context.rs"


def frames(*functions: str, file: str = UPSTREAM, line: int = 0) -> tuple[Frame, ...]:
    return tuple(Frame(function, file, line, inlined=True) for function in functions)


@pytest.mark.parametrize(
    ("function", "path"),
    [
        ("<a::B<c::D> as e::F>::g::<H>::{closure#0}", "a::B::g"),
        ("<a::b::C>::d", "a::b::C::d"),
        ("a::b::C<T>::d", "a::b::C::d"),
        ("core::ptr::drop_in_place::<a::B<u64>>", "core::ptr::drop_in_place"),
        ("<&mut a::B as c::D>::e", "a::B::e"),
        ("<a::B<fn() -> u8>>::d", "a::B::d"),
        ("ns::Klass::method(int, std::vector<int>)", "ns::Klass::method"),
        ("a::sys::<impl b::C>::d", "b::C::d"),
        ("a::sys::<impl a::T for b::C<u8>>::d", "b::C::d"),
        ("plain", "plain"),
        ("<<<", ""),
    ],
)
def test_a_name_is_reduced_to_its_path(function: str, path: str) -> None:
    assert plain_path(function) == path


@given(st.text(alphabet="<>:a &*{}()-,T", max_size=200))
def test_any_text_for_a_name_is_survived(function: str) -> None:
    assert isinstance(plain_path(function), str)
    profile.load("libkrun").site([Frame(function)])


def test_the_bundled_profiles_load() -> None:
    assert {"libkrun", "rutabaga", "minivmm"} <= {found.name for found in profile.default_profiles()}


@pytest.mark.parametrize(
    ("comm", "role"),
    [
        ("gpu worker", "G"),
        ("cross domain", "W"),
        ("fc_vcpu 3", "vcpu"),
        ("CPU 0/KVM", "vcpu"),
        ("futexw 7", "watcher"),
        ("virgl_fence", "fence"),
        ("bash", ""),
        ("", ""),
    ],
)
def test_a_thread_name_hints_at_its_role(comm: str, role: str) -> None:
    assert profile.load("libkrun").role(comm) == role


@pytest.mark.parametrize("lock", [V0_LOCK.format("CrossDomainItems"), LEGACY_LOCK])
def test_write_inlined_into_submit_cmd_is_item_state(lock: str) -> None:
    site = profile.load("rutabaga").site(
        frames("<std::sys::sync::mutex::futex::Mutex>::lock", lock, CONTEXT.format("write"), line=468)
        + frames("<x::CrossDomainContext as x::RutabagaContext>::submit_cmd", line=650)
    )
    assert site is not None
    assert (site.lock, site.operation) == ("item_state", "write")
    assert "context.rs:468" in site.evidence


@pytest.mark.parametrize(
    ("line", "lock"), [(285, "context_resources"), (340, "item_state"), (1, ""), (0, "")]
)
def test_a_function_of_several_locks_is_told_by_line_or_not_at_all(line: int, lock: str) -> None:
    site = profile.load("rutabaga").site(frames(LEGACY_LOCK, CONTEXT.format("send"), line=line))
    assert site is not None
    assert (site.lock, site.operation) == (lock, "send")


def test_a_line_of_another_version_of_the_file_says_nothing() -> None:
    other = UPSTREAM.replace("0.1.80", "0.1.99")
    site = profile.load("rutabaga").site(frames(LEGACY_LOCK, CONTEXT.format("send"), file=other, line=340))
    assert site is not None and site.lock == ""


def test_the_type_in_the_name_tells_locks_apart_in_any_version() -> None:
    for name, lock in (("CrossDomainItems", "item_state"), ("CrossDomainJob", "jobs")):
        site = profile.load("rutabaga").site(frames(V0_LOCK.format(name), CONTEXT.format("send"), line=9))
        assert site is not None and site.lock == lock


def test_a_type_that_contradicts_the_function_names_no_lock() -> None:
    site = profile.load("rutabaga").site(frames(V0_LOCK.format("Stranger"), CONTEXT.format("write")))
    assert site is not None
    assert (site.lock, site.operation) == ("", "write")


def test_a_lock_in_an_unknown_function_inlined_into_a_known_one_is_not_that_ones() -> None:
    site = profile.load("rutabaga").site(frames(LEGACY_LOCK, "x::helper", CONTEXT.format("write"), line=468))
    assert site is not None
    assert (site.lock, site.operation) == ("", "write")


def test_the_re_lock_of_a_condvar_is_named_by_the_condvars_caller() -> None:
    rutabaga = profile.load("rutabaga")
    inside = rutabaga.site(frames("<std::sys::sync::condvar::futex::Condvar>::wait_optional_timeout"))
    assert inside == profile.Site("", "", "re-lock in Condvar::wait")
    caller = rutabaga.site(
        frames("std::sync::poison::condvar::Condvar::wait", "x::CrossDomainState::wait_for_job", line=131)
    )
    assert caller is not None and caller.lock == "jobs"
    assert caller.evidence.startswith("re-lock in Condvar::wait")


def test_frames_that_say_nothing_give_no_site() -> None:
    assert profile.load("libkrun").site(()) is None
    assert profile.load("libkrun").site([Frame("main"), Frame("__libc_start_main")]) is None


def test_the_crate_decides_before_names_do() -> None:
    def chosen(threads: tuple[Thread, ...] = (), comm: str = "x", exe: str = "", crate: str = "") -> str:
        target = Target(1, "vmm", comm, exe, crate=crate)
        return profile.match(profile.default_profiles(), target, threads).name

    assert chosen(crate="krun-rutabaga-gfx") == "libkrun"
    assert chosen(crate="rutabaga_gfx", exe="/opt/minivmm") == "rutabaga"
    assert chosen(exe="/usr/bin/qemu-system-x86_64 (deleted)") == "rutabaga"
    assert chosen(comm="muvm") == "libkrun"
    assert chosen((Thread(5, 1, "fc_vcpu 0"),)) == "libkrun"
    assert chosen((Thread(5, 2, "fc_vcpu 0"),)) == "generic"
    assert chosen() == "generic"


WRONG = [
    ('name = "x"\n\n[[thread]]\nname = "a"\nrole = "king"\n', 5, "thread[0].role"),
    ('name = "x"\n[[thread]]\nname = "a"\nrole = "G"\n[[thread]]\nname = "b"\n', 5, "thread[1].role"),
    ('name = "x"\n[[lock]]\nname = "a"\ncolour = 1\n', 4, "lock[0].colour"),
    ('name = "x"\n[[function]]\nname = "f"\nlocks = ["nowhere"]\n', 4, "function[0].locks"),
    ('name = "x"\n[match]\nexes = "qemu"\n', 3, "match.exes"),
    ('name = "x"\n[[version]]\ncrate = "c"\nwrite_path = "x"\n', 4, "version[0].write_path"),
    ('name = "x"\nthread = 1\n', 2, "thread"),
    ("\nname = 7\n", 2, "name"),
    ('name = "x"\nextends = "nobody"\n', 0, "nobody.toml"),
    ("name = \n", 1, "line 1"),
    ('name = "x"\n[[function]]\nname = "f"\nlines = [{ file = "a", line = "1", lock = "b" }]\n', 4, "lines"),
]


@pytest.mark.parametrize(("text", "line", "key"), WRONG)
def test_an_error_names_file_line_and_key(tmp_path: Path, text: str, line: int, key: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        profile.load(path)
    assert key in caught.value.message
    if line and "not TOML" not in caught.value.message and "extends" not in text:
        assert f"{path}:{line}:" in caught.value.message
    assert "\n" not in caught.value.message and caught.value.hint


def test_a_profile_that_extends_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.toml"
    path.write_text('name = "loop"\nextends = "loop"\n')
    with pytest.raises(UsageError, match="extend each other"):
        profile.load(path)


def test_a_missing_profile_lists_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        profile.load("nosuch")
    assert "libkrun" in caught.value.hint


def test_ones_own_rules_come_before_the_extended_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\nextends = "rutabaga"\nwrappers = ["locked"]\n'
        '[[thread]]\nname = "cross domain"\nrole = "task"\n'
        '[[lock]]\nname = "table"\naliases = ["items"]\ntypes = ["CrossDomainItems"]\n'
        '[[function]]\nname = "CrossDomainContext::write"\noperation = "forward"\nlocks = ["table"]\n'
    )
    mine = profile.load(str(path))
    assert mine.role("cross domain") == "task" and mine.role("gpu worker") == "G"
    assert mine.lock_name("items") == "table"
    site = mine.site(frames("x::locked", CONTEXT.format("write")))
    assert site is not None and (site.lock, site.operation) == ("table", "forward")


@given(st.text(max_size=300))
def test_any_text_is_a_profile_or_a_usage_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with suppress(UsageError):
        assert profile.load(path).name
