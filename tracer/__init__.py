# SPDX-License-Identifier: Apache-2.0
"""xdtrace: why did the audio miss its period, and would it have, without that lock?"""

__version__ = "0.1.0"
