# SPDX-License-Identifier: Apache-2.0
"""Kernel structure offsets from the running kernel's BTF, through libbpf.so.1.

Owns the list of offsets that the probes need (``XD_OFF_*``) and how they are
found. Never guesses: what BTF does not have is absent, and the probes are
compiled without the feature that needs it.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_KIND_PTR = 2
_KIND_STRUCT = 4
_KIND_UNION = 5
_KIND_TYPEDEF = 8
_KIND_FUNC = 12
_KIND_FUNC_PROTO = 13

# macro -> (struct, path of members)
_TASK = {
    "XD_OFF_TASK_PID": ("task_struct", "pid"),
    "XD_OFF_TASK_TGID": ("task_struct", "tgid"),
}
_FILES = {
    "XD_OFF_TASK_FILES": ("task_struct", "files"),
    "XD_OFF_FILES_FDT": ("files_struct", "fdt"),
    "XD_OFF_FDT_MAX_FDS": ("fdtable", "max_fds"),
    "XD_OFF_FDT_FD": ("fdtable", "fd"),
    "XD_OFF_FILE_F_OP": ("file", "f_op"),
    "XD_OFF_FILE_PRIVATE_DATA": ("file", "private_data"),
    "XD_OFF_EVENTFD_COUNT": ("eventfd_ctx", "count"),
    "XD_OFF_EVENTFD_ID": ("eventfd_ctx", "id"),
}
_STEAL = {
    "XD_OFF_TASK_CFS_RQ": ("task_struct", "se.cfs_rq"),
    "XD_OFF_CFS_RQ_RQ": ("cfs_rq", "rq"),
    "XD_OFF_RQ_STEAL": ("rq", "prev_steal_time_rq"),
}


@dataclass(frozen=True, slots=True)
class Offsets:
    """What BTF says of this kernel.

    Attributes:
        macros: ``XD_OFF_*`` to bytes.
        have_task: pid and tgid of a task_struct are known (without them nothing can be traced).
        have_files: fd -> eventfd id can be followed in the kernel.
        have_steal: the run queue's steal time can be read.
        switch_has_state: sched_switch passes prev_state.
        note: why something is missing, "" if nothing is.
        types: name to BTF id, of the tracepoints' types, and of what else the probes refer to by id.
    """

    macros: dict[str, int] = field(default_factory=dict)
    have_task: bool = False
    have_files: bool = False
    have_steal: bool = False
    switch_has_state: bool = True
    note: str = ""
    types: dict[str, int] = field(default_factory=dict)


class _Btf:
    """The vmlinux BTF object of libbpf, as far as needed."""

    def __init__(self) -> None:
        lib = ctypes.CDLL("libbpf.so.1")
        lib.btf__load_vmlinux_btf.restype = ctypes.c_void_p
        lib.btf__find_by_name_kind.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]
        lib.btf__find_by_name_kind.restype = ctypes.c_int32
        lib.btf__type_by_id.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        lib.btf__type_by_id.restype = ctypes.c_void_p
        lib.btf__name_by_offset.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        lib.btf__name_by_offset.restype = ctypes.c_char_p
        lib.btf__free.argtypes = [ctypes.c_void_p]
        self._lib = lib
        # libbpf tells of a failure on stderr; the note says it in our own words.
        lib.libbpf_set_print(None)
        self._btf = lib.btf__load_vmlinux_btf()
        if not self._btf or ctypes.c_int64(self._btf).value < 0:
            raise OSError("the kernel has no BTF (/sys/kernel/btf/vmlinux)")

    def close(self) -> None:
        self._lib.btf__free(self._btf)

    def _type(self, type_id: int) -> tuple[int, int, int, int, int]:
        """(address, kind, number of members, kind_flag, size or type) of a type id."""
        address = self._lib.btf__type_by_id(self._btf, type_id)
        if not address:
            raise KeyError(type_id)
        _name, info, size = struct.unpack("<III", ctypes.string_at(address, 12))
        return address, (info >> 24) & 0x1F, info & 0xFFFF, info >> 31, size

    def _find(self, name: str, kind: int) -> int:
        type_id: int = self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
        if type_id <= 0:
            raise KeyError(name)
        return type_id

    def _member(self, type_id: int, name: str) -> tuple[int, int]:
        """(byte offset, type id) of a member, looked for in anonymous members too."""
        address, _kind, count, kind_flag, _size = self._type(type_id)
        raw = ctypes.string_at(address + 12, 12 * count)
        for name_off, member_type, bits in struct.iter_unpack("<III", raw):
            offset = (bits & 0xFFFFFF if kind_flag else bits) // 8
            if name_off:
                if self._lib.btf__name_by_offset(self._btf, name_off) == name.encode():
                    return offset, member_type
            elif self._type(member_type)[1] in (_KIND_STRUCT, _KIND_UNION):
                try:
                    inner, inner_type = self._member(member_type, name)
                except KeyError:
                    continue
                return offset + inner, inner_type
        raise KeyError(name)

    def offset(self, type_name: str, path: str) -> int:
        """Byte offset of ``a.b.c`` in a struct. Raises KeyError where BTF has no such thing."""
        type_id = self._find(type_name, _KIND_STRUCT)
        total = 0
        for name in path.split("."):
            offset, type_id = self._member(type_id, name)
            total += offset
        return total

    def types(self, tracepoints: Iterable[str]) -> dict[str, int]:
        """Ids by name, of what there is."""
        wanted = [
            *((f"btf_trace_{tracepoint}", _KIND_TYPEDEF) for tracepoint in tracepoints),
            *((name, _KIND_STRUCT) for name in ("list_head", "file", "eventfd_ctx")),
            ("bpf_rdonly_cast", _KIND_FUNC),
        ]
        found = {}
        for name, kind in wanted:
            with contextlib.suppress(KeyError):
                found[name] = self._find(name, kind)
        return found

    def switch_has_state(self) -> bool:
        """Whether btf_trace_sched_switch takes (data, preempt, prev, next, prev_state)."""
        pointer = self._type(self._find("btf_trace_sched_switch", _KIND_TYPEDEF))[4]
        proto = self._type(pointer)[4]
        _address, kind, count, _flag, _size = self._type(proto)
        return kind == _KIND_FUNC_PROTO and count >= 5


def _group(offset: Callable[[str, str], int], wanted: dict[str, tuple[str, str]]) -> dict[str, int] | None:
    try:
        return {macro: offset(*where) for macro, where in wanted.items()}
    except KeyError:
        return None


def load(tracepoints: Iterable[str] = ()) -> Offsets:
    """Read the offsets. Never raises: ``note`` says what is missing and why.

    Args:
        tracepoints: whose types' ids are wanted too.
    """
    try:
        btf = _Btf()
    except OSError as error:
        return Offsets(note=str(error))
    try:
        task = _group(btf.offset, _TASK)
        files = _group(btf.offset, _FILES)
        types = btf.types(tracepoints)
        steal = _group(btf.offset, _STEAL)
        state: dict[str, int] | None = {}
        try:
            has_state = btf.switch_has_state()
        except KeyError:
            has_state = False
        if not has_state:
            where = {"XD_OFF_TASK_STATE": ("task_struct", "__state")}
            state = _group(btf.offset, where) or _group(
                btf.offset, {"XD_OFF_TASK_STATE": ("task_struct", "state")}
            )
    finally:
        btf.close()
    # The probes read {pid, tgid}, {max_fds, pad, fd} and {count, flags, id} as one piece each, and a file's
    # two members with what lies between them.
    if task and task["XD_OFF_TASK_TGID"] != task["XD_OFF_TASK_PID"] + 4:
        task = None
    if files and (
        abs(files["XD_OFF_FILE_F_OP"] - files["XD_OFF_FILE_PRIVATE_DATA"]) > 128
        or files["XD_OFF_FDT_FD"] != files["XD_OFF_FDT_MAX_FDS"] + 8
        or files["XD_OFF_EVENTFD_ID"] != files["XD_OFF_EVENTFD_COUNT"] + 12
    ):
        files = None
    missing = [
        name
        for name, found in (("task_struct", task and state is not None), ("eventfd_ctx", files))
        if not found
    ]
    return Offsets(
        macros={**(task or {}), **(files or {}), **(steal or {}), **(state or {})},
        have_task=task is not None and state is not None,
        have_files=files is not None,
        have_steal=steal is not None,
        switch_has_state=has_state,
        types=types,
        note=f"the kernel's BTF lacks {', '.join(missing)}" if missing else "",
    )
