/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * arguments.bpf.c - what a span keeps of its syscall's arguments, by number.
 *
 * User memory is read where a fact is behind a pointer: a write's first eight
 * bytes, a timer's value, an epoll entry's data, a futex_waitv's first waiter.
 */
#define XD_FUTEX_CMD_MASK 0x7f
#define XD_FUTEX_WAIT 0
#define XD_FUTEX_WAIT_BITSET 9
#define XD_FUTEX_PRIVATE 128
#define XD_F_DUPFD 0
#define XD_F_DUPFD_CLOEXEC 1030

struct xd_iovec {
	u64 base;
	u64 len;
};

struct xd_timespec {
	s64 sec;
	s64 nsec;
};

struct xd_itimerspec {
	struct xd_timespec interval;
	struct xd_timespec value;
};

struct xd_epoll_event {
	u32 events;
#if !XD_EPOLL_PACKED
	u32 hole;
#endif
	u32 data_low;
	u32 data_high;
};

/*
 * Fill a span's kind-dependent part. Returns the kind; *look_up: the fd whose
 * eventfd id the record carries, -1: none.
 */
static __always_inline u8 xd_arguments_keep(u64 nr, struct xd_arguments *arguments, struct xd_thread *thread,
					    int *look_up)
{
	u8 kind = XD_SYSCALL;

	thread->op = nr;
	thread->nr = nr;
	thread->fd = arguments->first;
	thread->eventfd_id = -1;
	thread->arg = 0;
	thread->a = arguments->first;
	thread->b = arguments->second;

	switch (nr) {
	case XD_NR_read:
	case XD_NR_pread64:
	case XD_NR_readv:
	case XD_NR_write:
	case XD_NR_pwrite64:
	case XD_NR_writev: {
		struct xd_iovec vec = {.base = arguments->second, .len = arguments->third};

		kind = nr == XD_NR_read || nr == XD_NR_pread64 || nr == XD_NR_readv ? XD_READ : XD_WRITE;
		if (nr == XD_NR_readv || nr == XD_NR_writev) {
			vec.base = 0;
			vec.len = 0;
			xd_read_user(&vec, sizeof(vec), (void *)arguments->second);
		}
		*look_up = arguments->first;
		thread->arg = vec.len > 65535 ? 65535 : vec.len;
		thread->a = vec.base;
		if (kind == XD_WRITE) {
			u64 value = 0;

			if (vec.len >= 8)
				xd_read_user(&value, sizeof(value), (void *)vec.base);
			thread->a = value;
		}
		break;
	}
	case XD_NR_futex:
		kind = XD_FUTEX;
		thread->op = arguments->second;
		thread->arg = arguments->third;
		break;
	case XD_NR_futex_waitv: {
		struct {
			u64 value;
			u64 word;
			u32 flags;
			u32 reserved;
		} waiter = {};

		kind = XD_FUTEX;
		xd_read_user(&waiter, sizeof(waiter), (void *)arguments->first);
		thread->op = XD_FUTEX_WAIT_BITSET | (waiter.flags & XD_FUTEX_PRIVATE);
		thread->arg = waiter.value;
		thread->a = waiter.word;
		break;
	}
	case XD_NR_dup:
	case XD_NR_dup2:
	case XD_NR_dup3:
	case XD_NR_close:
		kind = XD_FD;
		*look_up = arguments->first;
		thread->a = 0;
		break;
	case XD_NR_fcntl:
		if ((u32)arguments->second == XD_F_DUPFD || (u32)arguments->second == XD_F_DUPFD_CLOEXEC) {
			kind = XD_FD;
			*look_up = arguments->first;
			thread->a = 0;
		}
		break;
	case XD_NR_eventfd:
	case XD_NR_eventfd2:
		kind = XD_FD;
		thread->fd = -1;
		thread->a = (u32)arguments->first;
		break;
	case XD_NR_timerfd_settime: {
		struct xd_itimerspec spec = {};

		kind = XD_TIMER;
		xd_read_user(&spec, sizeof(spec), (void *)arguments->third);
		thread->arg = arguments->second;
		thread->a = spec.value.sec * 1000000000ULL + spec.value.nsec;
		thread->b = spec.interval.sec * 1000000000ULL + spec.interval.nsec;
		break;
	}
	case XD_NR_epoll_ctl: {
		struct xd_epoll_event event = {};

		kind = XD_EPOLL_CTL;
		xd_read_user(&event, sizeof(event), (void *)arguments->fourth);
		thread->arg = arguments->second;
		thread->a = (u64)event.data_high << 32 | event.data_low;
		thread->b = arguments->third;
		*look_up = arguments->third;
		break;
	}
	case XD_NR_epoll_wait:
	case XD_NR_epoll_pwait:
	case XD_NR_epoll_pwait2:
		kind = XD_EPOLL_WAIT;
		thread->a = arguments->second;
		break;
	case XD_NR_poll:
	case XD_NR_ppoll:
	case XD_NR_select:
	case XD_NR_pselect6:
		kind = XD_EPOLL_WAIT;
		thread->fd = -1;
		thread->a = 0;
		break;
	case XD_NR_recvmsg:
	case XD_NR_sendmsg:
		kind = nr == XD_NR_recvmsg ? XD_RECVMSG : XD_SENDMSG;
		thread->a = arguments->second;
		break;
	}
	return kind;
}
