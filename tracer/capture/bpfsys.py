# SPDX-License-Identifier: Apache-2.0
"""The few bpf(2) commands that bcc has no call for, or none without its own bookkeeping.

Owns the layouts of union bpf_attr (include/uapi/linux/bpf.h) that are used.
Every function raises OSError with the kernel's errno.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

from numpy.typing import NDArray

_SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 321)
_MAP_CREATE = 0
_MAP_LOOKUP = 1
_MAP_UPDATE = 2
_MAP_DELETE = 3
_PROG_LOAD = 5
_PROG_GET_NEXT_ID = 11
_MAP_GET_NEXT_ID = 12
_RAW_TRACEPOINT_OPEN = 17
_MAP_LOOKUP_BATCH = 24
_ENABLE_STATS = 32
_PROG_TYPE_RAW_TRACEPOINT = 17
_PROG_TYPE_TRACING = 26
_TRACE_RAW_TP = 23

ANY = 0
NOEXIST = 1
EXIST = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _MapCreate(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("numa_node", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


class _ProgLoad(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
        ("prog_ifindex", ctypes.c_uint32),
        ("expected_attach_type", ctypes.c_uint32),
        ("prog_btf_fd", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("func_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("line_info_cnt", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
    )


class _MapElement(ctypes.Structure):
    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _MapBatch(ctypes.Structure):
    _fields_ = (
        ("in_batch", ctypes.c_uint64),
        ("out_batch", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("values", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("map_fd", ctypes.c_uint32),
        ("elem_flags", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _RawTracepoint(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_uint64),
        ("prog_fd", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("cookie", ctypes.c_uint64),
    )


class _NextId(ctypes.Structure):
    _fields_ = (("start_id", ctypes.c_uint32), ("next_id", ctypes.c_uint32), ("open_flags", ctypes.c_uint32))


class _Stats(ctypes.Structure):
    _fields_ = (("type", ctypes.c_uint32),)


def _bpf(command: int, attr: ctypes.Structure) -> int:
    result: int = _libc.syscall(_SYS_BPF, command, ctypes.byref(attr), ctypes.sizeof(attr))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def map_create(name: str, kind: int, key_bytes: int, value_bytes: int, entries: int, flags: int = 0) -> int:
    """Make a map; the returned fd is all that holds it."""
    attr = _MapCreate(kind, key_bytes, value_bytes, entries, flags, 0, 0, name.encode()[:15])
    return _bpf(_MAP_CREATE, attr)


def raw_tracepoint_load(name: str, instructions: bytes, btf_id: int = 0) -> int:
    """Load a GPL raw tracepoint program; the returned fd is all that holds it.

    Args:
        btf_id: of the tracepoint's type in the kernel's BTF: its arguments are typed; 0: they are numbers.

    Raises:
        OSError: its ``strerror`` ends with the verifier's last words, if it had any.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    terms = ctypes.create_string_buffer(b"GPL")
    attr = _ProgLoad(
        type=_PROG_TYPE_RAW_TRACEPOINT,
        insn_cnt=len(instructions) // 8,
        insns=ctypes.addressof(code),
        license=ctypes.addressof(terms),
        name=name.encode()[:15],
    )
    if btf_id:
        attr.type, attr.expected_attach_type, attr.attach_btf_id = _PROG_TYPE_TRACING, _TRACE_RAW_TP, btf_id
    try:
        return _bpf(_PROG_LOAD, attr)
    except OSError as error:
        # Once more with a log: it is not wanted otherwise, and costs time.
        log = ctypes.create_string_buffer(1 << 20)
        attr.log_level, attr.log_size, attr.log_buf = 1, len(log), ctypes.addressof(log)
        with contextlib.suppress(OSError):
            return _bpf(_PROG_LOAD, attr)
        said = [line for line in log.value.decode(errors="replace").splitlines() if line.strip()]
        told = [line for line in said if not line.startswith(("processed ", "max_states"))]
        raise OSError(error.errno, ": ".join([os.strerror(error.errno or 0), *told[-1:]])) from error


def raw_tracepoint_open(name: str, prog_fd: int) -> int:
    """Attach a program; the returned fd is the attachment. Needs no tracefs.

    Args:
        name: the tracepoint; "" for a program that was loaded with its type.
    """
    text = ctypes.create_string_buffer(name.encode())
    # The kernel wants the bytes of older kernels only: 16, without the cookie.
    attr = _RawTracepoint(name=ctypes.addressof(text) if name else 0, prog_fd=prog_fd)
    result: int = _libc.syscall(_SYS_BPF, _RAW_TRACEPOINT_OPEN, ctypes.byref(attr), 16)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def map_update(map_fd: int, key: int, value: bytes, flags: int = ANY) -> None:
    """Set the value of a u32 key."""
    k = ctypes.c_uint32(key)
    v = ctypes.create_string_buffer(value, len(value))
    attr = _MapElement(map_fd=map_fd, key=ctypes.addressof(k), value=ctypes.addressof(v), flags=flags)
    _bpf(_MAP_UPDATE, attr)


def map_lookup(map_fd: int, key: int, size_bytes: int) -> bytes:
    """The value of a u32 key; for a per-CPU map ``size_bytes`` is that of all CPUs together."""
    k = ctypes.c_uint32(key)
    v = ctypes.create_string_buffer(size_bytes)
    _bpf(_MAP_LOOKUP, _MapElement(map_fd=map_fd, key=ctypes.addressof(k), value=ctypes.addressof(v)))
    return v.raw


def map_delete(map_fd: int, key: int) -> None:
    """Delete a u32 key; one that is not there is no error."""
    k = ctypes.c_uint32(key)
    with contextlib.suppress(FileNotFoundError):
        _bpf(_MAP_DELETE, _MapElement(map_fd=map_fd, key=ctypes.addressof(k)))


def map_lookup_all(map_fd: int, keys: NDArray, values: NDArray) -> int:  # type: ignore[type-arg]
    """Copy a whole hash map into ``keys`` (u4, (n,)) and ``values`` (any record dtype, (n,)).

    n must be the map's max_entries. Returns how many entries were there.
    """
    out = ctypes.c_uint64(0)
    attr = _MapBatch(
        out_batch=ctypes.addressof(out),
        keys=keys.ctypes.data,
        values=values.ctypes.data,
        count=len(keys),
        map_fd=map_fd,
    )
    # ENOENT: the end of the map was reached, which is what we want.
    with contextlib.suppress(FileNotFoundError):
        _bpf(_MAP_LOOKUP_BATCH, attr)
    return int(attr.count)


def program_ids() -> list[int]:
    """Ids of all BPF programs loaded on this host."""
    return _ids(_PROG_GET_NEXT_ID)


def map_ids() -> list[int]:
    """Ids of all BPF maps on this host."""
    return _ids(_MAP_GET_NEXT_ID)


def _ids(command: int) -> list[int]:
    ids: list[int] = []
    while True:
        attr = _NextId(start_id=ids[-1] if ids else 0)
        try:
            _bpf(command, attr)
        except FileNotFoundError:
            return ids
        ids.append(int(attr.next_id))


def enable_stats() -> int:
    """Count run times of all BPF programs until the returned fd is closed."""
    return _bpf(_ENABLE_STATS, _Stats(type=0))


def fdinfo(fd: int) -> dict[str, str]:
    """/proc/self/fdinfo of a BPF fd as name to value."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
        lines = (line.split(":", 1) for line in file if ":" in line)
        return {name.strip(): value.strip() for name, value in lines}


def possible_cpus() -> int:
    """How many values a per-CPU map has."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        text = file.read().strip()
    return max(int(part.split("-")[-1]) for part in text.split(",")) + 1


def timerfd_create(clock: int) -> int:
    """timerfd_create(2), close-on-exec and non-blocking (Python has it from 3.13 on)."""
    _libc.timerfd_create.restype = ctypes.c_int
    fd: int = _libc.timerfd_create(clock, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd
