/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * event.h - the wire record: what the probes write and tracer/schema/ reads.
 *
 * One record is XD_RECORD_BYTES long. The ring puts an 8-byte header before
 * each, so the stride is 64 bytes and no record straddles the ring's end.
 * Every record starts with struct xd_head; the body depends on head.kind.
 * tests/unit compiles this file and compares every offset with tracer/schema/record.py.
 *
 * A span is written when it ends. An OPEN record (XD_F_OPEN) is a span that
 * has not ended yet: the record that closes it has the same tid and enter_ns.
 * Times are CLOCK_MONOTONIC nanoseconds.
 */
#ifndef XD_EVENT_H
#define XD_EVENT_H

#define XD_RECORD_BYTES 56
#define XD_RING_HEADER_BYTES 8

enum xd_kind {
	XD_READ = 1,	   /* read, readv, pread64: struct xd_rw */
	XD_WRITE = 2,	   /* write, writev, pwrite64: struct xd_rw */
	XD_FUTEX = 3,	   /* futex, futex_waitv: struct xd_futex */
	XD_FD = 4,	   /* dup*, fcntl(F_DUPFD*), close, eventfd2: struct xd_fd */
	XD_TIMER = 5,	   /* timerfd_settime: struct xd_timer */
	XD_EPOLL_CTL = 6,  /* struct xd_epoll_ctl */
	XD_EPOLL_WAIT = 7, /* epoll_wait and its kin, poll, select and theirs: struct xd_epoll_wait */
	XD_RECVMSG = 8,	   /* struct xd_msg */
	XD_SENDMSG = 9,	   /* struct xd_msg */
	XD_SYSCALL = 10,   /* any other syscall that took long enough: struct xd_syscall */
	XD_OFFCPU = 11,	   /* off-CPU span: struct xd_offcpu */
	XD_LIFE = 12,	   /* lifecycle: struct xd_life */
	XD_WORDS = 13,	   /* watched lock words changed (written by the session): struct xd_words */
	XD_MSG_MORE = 14,  /* further fds of the message with equal tid and enter_ns: struct xd_msg_more */
	XD_LOSS = 15,	   /* records lost since the last one (written by the session): struct xd_loss */
};

enum xd_flag {
	XD_F_OPEN = 1,	      /* the span has not ended; dur_ns is its age */
	XD_F_CLIPPED = 2,     /* began before attach; enter_ns is the attach time */
	XD_F_LATE = 4,	      /* arrived after its watermark (set by the session) */
	XD_F_TIMERFD = 8,     /* read of a timerfd: value is the number of expirations */
	XD_F_PENDING = 16,    /* eventfd write: the count was > 0 before it (previous wake unread) */
	XD_F_EXIT_MASKS = 32, /* held_out/readable_out are valid: in spans of XD_MIN_OTHER_NS and more */
	XD_F_EVENTFD = 64,    /* fd is an eventfd: value is what was read or written */
};

enum xd_life_op {
	XD_LIFE_START = 1, /* a thread started; comm, tgid */
	XD_LIFE_NAME = 2,  /* a thread took a name */
	XD_LIFE_EXEC = 3,  /* exec; old_tid is the tid before it */
	XD_LIFE_EXIT = 4,  /* a thread ended; op data: comm at exit */
};

enum xd_loss_class { XD_LOSS_RING = 1, XD_LOSS_MAP = 2, XD_LOSS_LATE = 3 };

/*
 * op: syscall number; for XD_FUTEX the futex op with its flags (137, 129 ...);
 * for XD_OFFCPU the low 16 bits of prev_state; for XD_LIFE enum xd_life_op;
 * for XD_LOSS enum xd_loss_class; for XD_WORDS the generation.
 */
struct xd_head {
	unsigned char kind;
	unsigned char flags;
	unsigned short op;
	unsigned int tid;
	unsigned long long enter_ns;
	unsigned long long dur_ns;
};

/*
 * Bit i stands for word i of the generation of watched words in force (0: none).
 * readable: the word could be read; held: its value was not 0.
 */
struct xd_masks {
	unsigned short held_in;
	unsigned short readable_in;
	unsigned short held_out;
	unsigned short readable_out;
};

struct xd_rw {
	struct xd_head head;
	int ret;
	int fd;
	int eventfd_id;		   /* -1: not an eventfd, or unknown */
	unsigned short len;	   /* bytes asked for, at most 65535 */
	unsigned short generation; /* of the watched words */
	unsigned long long value;  /* first 8 bytes, if at least 8 were moved */
	struct xd_masks masks;
};

struct xd_futex {
	struct xd_head head;
	int ret;
	unsigned int expected;	   /* wait: expected value; wake: number asked to wake */
	unsigned long long word;   /* user address */
	unsigned long long caller; /* second user frame of a long wait, else 0 */
	struct xd_masks masks;	   /* the generation is that of the thread's tgid at enter_ns */
};

struct xd_fd {
	struct xd_head head;
	int ret;
	int fd;		/* the argument (dup: the old fd; the new one is ret) */
	int eventfd_id; /* taken at enter for close; of ret for eventfd2 and dup */
	unsigned short generation;
	unsigned short pad;
	struct xd_masks masks;
	unsigned long long value; /* eventfd2: initial count */
};

struct xd_timer {
	struct xd_head head;
	int ret;
	int fd;
	unsigned long long value_ns;	/* it_value */
	unsigned long long interval_ns; /* it_interval */
	unsigned int flags;		/* TFD_TIMER_ABSTIME = 1 */
	unsigned int pad;
};

struct xd_epoll_ctl {
	struct xd_head head;
	int ret;
	int epfd;
	unsigned long long data;
	int fd;
	unsigned short generation;
	unsigned short ctl_op; /* EPOLL_CTL_ADD 1, DEL 2, MOD 3 */
	unsigned short held_in;
	unsigned short readable_in;
	int eventfd_id;
};

struct xd_epoll_wait {
	struct xd_head head;
	int ret;
	int epfd;
	unsigned long long data; /* of the first event */
	unsigned int events;	 /* of the first event */
	unsigned short generation;
	unsigned short pad;
	struct xd_masks masks;
};

struct xd_msg {
	struct xd_head head;
	int ret;
	int fd;
	unsigned short nfds; /* fds passed by SCM_RIGHTS */
	unsigned short generation;
	int eventfd_ids[3]; /* of the first three, -1: none or no eventfd */
	struct xd_masks masks;
};

struct xd_msg_more {
	struct xd_head head;
	int eventfd_ids[8];
};

struct xd_syscall {
	struct xd_head head;
	long long ret;
	unsigned long long arg0;
	unsigned long long arg1;
	unsigned short generation;
	unsigned short held_in;
	unsigned short readable_in;
	unsigned short pad;
};

/*
 * enter_ns: when the thread left the CPU; enter_ns + dur_ns: when it ran again.
 * Blocked iff preempted == 0 and (op & 3); else it was runnable all along.
 */
struct xd_offcpu {
	struct xd_head head;
	unsigned long long woken_ns; /* first waking, 0: none seen */
	unsigned int waker_tid;
	unsigned int waker_tgid;
	unsigned int instead_tid; /* who ran on that CPU just before the thread came back */
	unsigned short cpu_out;
	unsigned short cpu_in;
	unsigned char waker_in_irq; /* woken from interrupt context: the waker is nobody's cause */
	unsigned char preempted;
	unsigned short pad;
	unsigned int stolen_ns; /* growth of the CPU's steal time while the thread was on it before enter_ns */
};

struct xd_life {
	struct xd_head head;
	char comm[16];
	unsigned int tgid;
	unsigned int old_tid;
	unsigned long long pad;
};

struct xd_words {
	struct xd_head head; /* tid: the tgid; op: generation; flags: index of words[0] / 4 */
	unsigned long long words[4];
};

struct xd_loss {
	struct xd_head head;
	unsigned long long count;
	unsigned long long pad[3];
};

#endif
