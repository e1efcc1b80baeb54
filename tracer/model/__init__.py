# SPDX-License-Identifier: Apache-2.0
"""Pure analysis: records in, a Summary out. Knows neither bcc nor rich nor files."""
