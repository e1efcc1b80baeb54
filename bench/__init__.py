# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: each prints a table against a named peer, with medians and ranges. They assert nothing."""
