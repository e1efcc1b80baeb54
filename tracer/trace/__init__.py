# SPDX-License-Identifier: Apache-2.0
"""The trace folder: what a session saw, kept so that it explains itself elsewhere.

Owns writing (``TraceWriter``), reading (``TraceReader``), packing (``pack``) and the
flight recorder's memory (``Flight``).
Never interprets a record and never touches a live host: what goes in as a
``Batch`` comes out as an equal ``Batch``. format.py says what lies on the disk.
"""

from tracer.trace.archive import pack
from tracer.trace.flight import Flight
from tracer.trace.folder import check_place, make_private_folder
from tracer.trace.format import FORMAT_VERSION, MAX_BATCH_RECORDS, READ_LIMIT_BYTES
from tracer.trace.reader import TraceReader
from tracer.trace.writer import TraceWriter

__all__ = [
    "FORMAT_VERSION",
    "MAX_BATCH_RECORDS",
    "READ_LIMIT_BYTES",
    "Flight",
    "TraceReader",
    "TraceWriter",
    "check_place",
    "make_private_folder",
    "pack",
]
