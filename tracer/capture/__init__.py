# SPDX-License-Identifier: Apache-2.0
"""The only part of xdtrace that touches a live host."""
