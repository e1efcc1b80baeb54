# SPDX-License-Identifier: Apache-2.0
"""Where probes/ and profiles/ are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer import resources
from tracer.errors import HostError


def test_a_checkout_has_both_folders_beside_the_package() -> None:
    assert (resources.probes_dir() / "event.h").is_file()
    assert resources.profiles_dir().is_dir()


def test_a_wheel_s_own_copy_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tracer"
    for folder in (package / "probes", tmp_path / "probes"):
        folder.mkdir(parents=True)
        (folder / "event.h").touch()
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resources.probes_dir() == package / "probes"


def test_an_installation_without_them_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "probes").mkdir()  # something else of that name
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "tracer")
    with pytest.raises(HostError) as caught:
        resources.probes_dir()
    assert "./dev install" in caught.value.hint
