# SPDX-License-Identifier: Apache-2.0
"""Renderings of a Summary. Views compute nothing."""
