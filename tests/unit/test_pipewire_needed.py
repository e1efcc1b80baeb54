# SPDX-License-Identifier: Apache-2.0
"""Where the tests with a real PipeWire must run, where they may be skipped, and with which reason."""

from __future__ import annotations

from dataclasses import replace

from graph import Here

HERE = Here(root=True, absent=(), debian=True, version="0.3.65")


def test_where_dev_test_installs_it_a_missing_pipewire_is_a_failure() -> None:
    assert HERE.ours_to_mend() == HERE.why_not() == ""
    assert "pw-dump" in replace(HERE, absent=("pw-dump",)).ours_to_mend()
    assert "root" in replace(HERE, root=False).ours_to_mend()


def test_elsewhere_it_is_a_reason_to_skip() -> None:
    elsewhere = replace(HERE, debian=False, absent=("pipewire", "pw-dump"), version="")
    assert elsewhere.ours_to_mend() == ""
    assert "pipewire, pw-dump" in elsewhere.why_not()


def test_an_unknown_version_is_a_reason_to_skip_even_where_it_was_installed() -> None:
    assert replace(HERE, version="1.4.2").why_not() == ""
    newer = replace(HERE, version="2.0.1")
    assert newer.ours_to_mend() == ""
    assert "2.0.1" in newer.why_not()
    assert "does not tell" in replace(HERE, version="").why_not()
