# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests: nothing is judged by the clock, CI tries the same examples each time, and
what hangs up does so under nohup too."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

signal.signal(signal.SIGHUP, signal.SIG_DFL)
