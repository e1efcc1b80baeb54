/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * maps.bpf.h - all maps. tracer/capture/maps.py mirrors the values' layouts.
 */
#ifndef XD_MAPS_H
#define XD_MAPS_H

/* xd_target.role; the values of enum xd_role never reach a record. */
#define XD_ROLE_TRACE 1
#define XD_ROLE_LEARN 2 /* one thread of xdtrace itself (its tid is words[0]), for two syscalls: see xd_learn() */

#define XD_WORD_SLOTS (XD_HELD_WORDS > 0 ? XD_HELD_WORDS : 1)

struct xd_target {
	u32 tgid;
	u32 role;
	u32 generation; /* of words; 0: none */
	u32 pad;
	u64 words[XD_WORD_SLOTS];
};

/* What a thread is in the middle of: one syscall and one off-CPU span. 104 bytes. */
struct xd_thread {
	u32 tgid;
	u8 kind; /* enum xd_kind of the syscall in flight, 0: none */
	u8 flags;
	u16 op;

	u64 enter_ns;

	s32 fd;
	s32 eventfd_id;

	u32 arg; /* futex: expected; read, write: length; timer: flags; epoll_ctl: op */
	u16 generation;
	u16 held_in;

	u64 a; /* futex: word; read: buffer; write: value; timer: value; epoll: data, events; msg: msghdr; other: arg0 */
	u64 b; /* timer: interval; other: arg1; epoll_ctl: fd */

	u16 readable_in;
	u16 nr;
	u8 paused; /* returned -512..-516: goes on in the next syscall */
	u8 kvm;	   /* this thread has entered KVM_RUN */
	u16 pad;

	u64 paused_ns; /* when */

	u64 out_ns;   /* left the CPU, 0: on it, or unknown */
	u64 woken_ns; /* waking that has not been used up while on the CPU; off it, the first */
	u32 waker_tid;
	u32 waker_tgid;
	u32 stolen_ns;
	u16 cpu_out;
	u16 state;
	u8 preempted;
	u8 waker_in_irq;
	u8 out_flags;
	u8 pad2;
	u32 pad3;
	u64 steal_in; /* the CPU's steal time when the thread came onto it */
};

/* Per CPU: interrupt depth, the run queue's address (not with XD_DIRECT), what was lost. */
struct xd_cpu {
	u32 irq_depth;
	u32 pad;
	u64 rq;
	u64 lost_ring; /* failed reserves */
	u64 lost_map;  /* failed map updates: a span or a thread goes unseen */
};

struct xd_learnt {
	u64 eventfd_fops;
	u64 timerfd_fops;
	u32 task_pid;	  /* without BTF: offset of pid, which tgid follows, in a task_struct; 0: not known */
	u32 task_matches; /* how many places could be it; more than one: none is */
};

/*
 * Place -> a target and its watched words; place 0 is none. A target that changes gets a place
 * that has long been free, and then the filter names that: nobody sees half a change. Full: the session refuses.
 */
#define XD_TARGET_PLACES 256
BPF_ARRAY(xd_targets, struct xd_target, XD_TARGET_PLACES);

/*
 * tgid % XD_FILTER_SLOTS -> the places of the targets behind it, a byte each; 0: none. An array's
 * look-up is inlined (4 ns here), a hash's is not (25 ns): the syscalls of bystanders end here.
 */
#define XD_FILTER_SLOTS 8192
BPF_ARRAY(xd_filter, u64, XD_FILTER_SLOTS);

/* tid -> xd_thread. From the thread's start (or first syscall) to its exit or exec. Full: counted in lost_map. */
BPF_HASH(xd_threads, u32, struct xd_thread, XD_MAX_THREADS);

/* 0 -> xd_cpu of this CPU. For the session's life. */
BPF_PERCPU_ARRAY(xd_cpus, struct xd_cpu, 1);

/* 0 -> f_op of eventfds and timerfds, learnt from fds of xdtrace's own, and its own task's layout. */
BPF_ARRAY(xd_learnt, struct xd_learnt, 1);

/* All records. Full: counted in lost_ring. Never wakes the reader: it polls by time. */
BPF_RINGBUF_OUTPUT(xd_ring, XD_RING_PAGES);

#endif
