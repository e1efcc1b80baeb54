/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * config.h - every knob that capture/probes.py sets by -D, its default and why.
 *
 * Syscall numbers (XD_NR_*), register slots (XD_REGS_*) and structure offsets
 * (XD_OFF_*) have no default: they come from the machine, and a missing one
 * must fail to compile, not trace nonsense.
 */
#ifndef XD_CONFIG_H
#define XD_CONFIG_H

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/* Ring size in pages, as compiled; it is loaded with the size that the session wants (settings.py). */
#ifndef XD_RING_PAGES
#define XD_RING_PAGES 1
#endif

/* Live threads of all targets together; a VMM has tens, churny programs hundreds. */
#ifndef XD_MAX_THREADS
#define XD_MAX_THREADS 8192
#endif

/* Watched lock words per target: each costs a user read per syscall. 0 compiles them out. */
#ifndef XD_HELD_WORDS
#define XD_HELD_WORDS 4
#endif

/* A futex wait longer than this carries its caller's address: shorter ones cannot hurt a period. */
#ifndef XD_WAIT_STACK_NS
#define XD_WAIT_STACK_NS 20000
#endif

/* Syscalls without a record of their own are written when at least this long. */
#ifndef XD_MIN_OTHER_NS
#define XD_MIN_OTHER_NS 10000
#endif

/*
 * 1: the programs are attached by BTF, so that they may follow kernel pointers by themselves (5.11 and later).
 * capture/probes.py tries this form first, and takes the other one where the kernel or the compiler refuses it.
 */
#ifndef XD_DIRECT
#define XD_DIRECT 0
#endif

/* With XD_DIRECT: 1: the kernel has bpf_rdonly_cast() (6.2 and later), XD_BTF_* are its types' ids. */
#ifndef XD_HAVE_CAST
#define XD_HAVE_CAST 0
#endif

/* A call that the compiler cannot say; the loader puts it in (capture/bytecode.py). */
#define XD_MARK_CAST 0x786401

/* 1: offsets of pid and tgid in a task_struct are known by BTF; 0: they are learnt from xdtrace's own task. */
#ifndef XD_HAVE_TASK
#define XD_HAVE_TASK 0
#endif

/* 1: offsets for task -> files -> eventfd_ctx are known, so records carry eventfd ids. */
#ifndef XD_HAVE_FILES
#define XD_HAVE_FILES 0
#endif

/* 1: the run queue's steal time can be read (paravirtual guests). */
#ifndef XD_HAVE_STEAL
#define XD_HAVE_STEAL 0
#endif

/* 1: sched_switch passes prev_state as its fourth argument (kernel 5.18 and later). */
#ifndef XD_SWITCH_HAS_STATE
#define XD_SWITCH_HAS_STATE 1
#endif

/* 1: struct epoll_event has no hole after its first word (x86-64). */
#ifndef XD_EPOLL_PACKED
#define XD_EPOLL_PACKED 0
#endif

#endif
