# SPDX-License-Identifier: Apache-2.0
"""``python -m tracer``: the ``xdtrace`` command. Owns nothing else."""

from tracer.cli.main import main

if __name__ == "__main__":
    main()
