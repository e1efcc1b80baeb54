# SPDX-License-Identifier: Apache-2.0
"""What the files around the code promise: pins with hashes, no false bcc, a command that helps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tracer

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")
_PIN = re.compile(r"^([a-z0-9-]+)==([0-9][0-9A-Za-z.+]*)((?: --hash=sha256:[0-9a-f]{64})+)$")


def pins(name: str) -> dict[str, str]:
    """Package -> version; every line must be an exact version with hashes."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", "")
    lines = [" ".join(line.split()) for line in text.splitlines() if line and not line.startswith("#")]
    matches = [_PIN.match(line) for line in lines]
    assert all(matches), [line[:60] for line, match in zip(lines, matches, strict=True) if not match]
    return {match[1]: match[2] for match in matches if match}


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_requirement_is_pinned_with_hashes_and_bcc_is_none_of_them(name: str) -> None:
    assert "bcc" not in pins(name)


def test_what_tests_run_with_is_what_users_run_with() -> None:
    runtime, everything = (pins(name) for name in REQUIREMENTS)
    assert runtime.items() <= everything.items()


def test_every_dependency_of_the_package_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=~! ]", dependency)[0] for dependency in project["dependencies"]}
    assert declared <= pins("requirements.txt").keys()
    assert "bcc" not in declared


def test_the_changelog_knows_the_version_or_its_changes_are_unreleased() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{tracer.__version__}]" in text or "## [Unreleased]" in text


def test_dev_names_each_of_its_commands_in_its_help() -> None:
    script = (ROOT / "dev").read_text(encoding="utf-8")
    commands = set(re.findall(r"^do_(\w+)\(\)", script, re.MULTILINE))
    shown = subprocess.run([ROOT / "dev", "help"], capture_output=True, text=True, check=True).stdout
    assert commands == set(re.findall(r"^\./dev (\w+)", shown, re.MULTILINE))


def in_dev(script: str) -> str:
    """What a piece of bash prints that has the functions of ./dev."""
    functions = "\n".join((ROOT / "dev").read_text(encoding="utf-8").rstrip().split("\n")[:-1])
    done = subprocess.run(
        ["bash", "-c", f"{functions}\n{script}", ROOT / "dev"], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("family", ["debian", "fedora", "arch", "suse", "other"])
def test_dev_knows_a_package_for_every_need_on_every_distribution(family: str) -> None:
    script = (ROOT / "dev").read_text(encoding="utf-8")
    needs = set(re.findall(r"^has_(\w+)\(\)", script, re.MULTILINE)) - {"venv"}  # part of python
    assert {"python", "bcc", "rust"} <= needs
    if family != "debian":
        needs.remove("pipewire")  # asked for on Debian only
    for need in sorted(needs):
        assert in_dev(f"packages {family} {need}").strip(), need
    together = in_dev(f"packages {family} python bcc rust").split()
    assert {"cargo", "rust"} & set(together) and "gcc" in together
    assert any(re.search("bcc|bpfcc", name) for name in together)


def test_uninstall_takes_away_what_is_ours_and_nothing_else(tmp_path: Path) -> None:
    prefix, link, home = tmp_path / "prefix", tmp_path / "bin/xdtrace", tmp_path / "home"
    for folder in (prefix / "venv/bin", link.parent, home / ".cache/xdtrace/symcache", home / ".cache/other"):
        folder.mkdir(parents=True)
    (prefix / ".xdtrace-prefix").touch()
    link.symlink_to(prefix / "venv/bin/xdtrace")
    (link.parent / "other").touch()
    # as_root is ./dev's own for the caller that is root, so this needs no root; ~root is not touched.
    script = (ROOT / "dev").read_text(encoding="utf-8").replace("EUID", "NOBODY").replace("~root", str(home))
    done = subprocess.run(
        ["bash", "-c", script, ROOT / "dev", "uninstall"],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "NOBODY": "0",
             "XDTRACE_PREFIX": str(prefix), "XDTRACE_LINK": str(link)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "uninstalled" in done.stderr
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"bin", "bin/other", "home", "home/.cache", "home/.cache/other"}


def test_dev_refuses_an_unknown_command() -> None:
    done = subprocess.run([ROOT / "dev", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "./dev demo" in done.stderr


def test_bench_help_names_the_benchmarks() -> None:
    done = subprocess.run([ROOT / "dev", "bench", "--help"], capture_output=True, text=True, check=True)
    named = set(done.stdout.splitlines()[1].removeprefix("NAME: ").split())
    assert named == {p.stem for p in (ROOT / "bench").glob("*.py") if "\ndef main" in p.read_text("utf-8")}
    assert {"accuracy", "overhead"} <= named


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tracer", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("xdtrace ")
