/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * syscalls.bpf.c - one record per syscall span of a target's threads.
 *
 * Traced: read, write, futex, dup, close, eventfd2, timerfd_settime, epoll, poll,
 * select, recvmsg, sendmsg always; every other syscall if it lasts XD_MIN_OTHER_NS.
 * Not traced: KVM_RUN (only its first entry, which marks a vCPU thread), and
 * what goes through io_uring.
 * Cost: two raw tracepoints that every syscall of the host runs through; a
 * process that is no target pays one array lookup in each.
 */
#define XD_FUTEX_CMD_MASK 0x7f
#define XD_FUTEX_WAIT 0
#define XD_FUTEX_WAIT_BITSET 9
#define XD_FUTEX_PRIVATE 128
#define XD_F_DUPFD 0
#define XD_F_DUPFD_CLOEXEC 1030
#define XD_KVM_RUN 0xae80
#define XD_SOL_SOCKET 1
#define XD_SCM_RIGHTS 1
#define XD_FIRST_FDS 3
#define XD_MORE_FDS 8
#define XD_MORE_RECORDS 4
#define XD_TASK_SEARCH_BYTES 8192

struct xd_registers {
	u64 slot[XD_REGS_SLOTS];
};

struct xd_file {
	u64 f_op;
	u64 private_data;
};

/* Both members by one read: from the first to the end of the last. */
#define XD_FILE_FIRST (XD_OFF_FILE_F_OP < XD_OFF_FILE_PRIVATE_DATA ? XD_OFF_FILE_F_OP : XD_OFF_FILE_PRIVATE_DATA)
#define XD_FILE_LAST (XD_OFF_FILE_F_OP > XD_OFF_FILE_PRIVATE_DATA ? XD_OFF_FILE_F_OP : XD_OFF_FILE_PRIVATE_DATA)
#define XD_FILE_SPAN (XD_FILE_LAST - XD_FILE_FIRST + 8)

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

struct xd_msghdr {
	u64 name;
	u64 namelen;
	u64 iov;
	u64 iovlen;
	u64 control;
	u64 controllen;
};

struct xd_cmsghdr {
	u64 len;
	u32 level;
	u32 type;
};

struct xd_eventfd {
	u64 count;
	u32 flags;
	s32 id;
};

/* The file behind an fd of the current task; f_op 0: none, or not known without offsets. */
static __always_inline void xd_file_of(int fd, struct xd_file *file)
{
	file->f_op = 0;
	file->private_data = 0;
#if XD_HAVE_FILES
	u64 files = 0, fdt = 0, pointer = 0;
	struct {
		u32 max_fds;
		u32 pad;
		u64 fd;
	} table = {};

	xd_read_kernel(&files, sizeof(files), (void *)(bpf_get_current_task() + XD_OFF_TASK_FILES));
	xd_read_kernel(&fdt, sizeof(fdt), (void *)(files + XD_OFF_FILES_FDT));
	if (xd_read_kernel(&table, sizeof(table), (void *)(fdt + XD_OFF_FDT_MAX_FDS)))
		return;
	if (fd < 0 || (u32)fd >= table.max_fds)
		return;
	xd_read_kernel(&pointer, sizeof(pointer), (void *)(table.fd + (u64)fd * 8));
	if (!pointer)
		return;
	u64 piece[XD_FILE_SPAN / 8] = {};

	xd_read_kernel(piece, sizeof(piece), (void *)(pointer + XD_FILE_FIRST));
	file->f_op = piece[(XD_OFF_FILE_F_OP - XD_FILE_FIRST) / 8];
	file->private_data = piece[(XD_OFF_FILE_PRIVATE_DATA - XD_FILE_FIRST) / 8];
#endif
}

/* Eventfd id of an fd, else -1; adds XD_F_EVENTFD, XD_F_TIMERFD, XD_F_PENDING to *flags. */
static __always_inline s32 xd_eventfd_id(int fd, u8 *flags)
{
#if XD_HAVE_FILES
	int zero = 0;
	struct xd_file file;
	struct xd_eventfd eventfd = {};
	struct xd_learnt *learnt = xd_learnt.lookup(&zero);

	if (!learnt || fd < 0)
		return -1;
	xd_file_of(fd, &file);
	if (!file.f_op)
		return -1;
	if (file.f_op == learnt->timerfd_fops) {
		*flags |= XD_F_TIMERFD;
		return -1;
	}
	if (file.f_op != learnt->eventfd_fops)
		return -1;
	if (xd_read_kernel(&eventfd, sizeof(eventfd), (void *)(file.private_data + XD_OFF_EVENTFD_COUNT)))
		return -1;
	*flags |= XD_F_EVENTFD;
	if (eventfd.count)
		*flags |= XD_F_PENDING;
	return eventfd.id;
#else
	return -1;
#endif
}

/* Our own write to an eventfd and read of a timerfd teach the f_op pointers; our own task, where ids lie. */
static __always_inline void xd_learn(u64 id, u64 nr, int fd)
{
	int zero = 0;
	struct xd_file file;
	struct xd_learnt *learnt = xd_learnt.lookup(&zero);

	if (!learnt)
		return;
	xd_file_of(fd, &file);
	if (nr == XD_NR_write && !learnt->eventfd_fops)
		learnt->eventfd_fops = file.f_op;
	if (nr == XD_NR_read && !learnt->timerfd_fops)
		learnt->timerfd_fops = file.f_op;
#if !XD_HAVE_TASK
	u64 task = bpf_get_current_task(), pair;
	u32 matches = 0;

	/* pid and tgid are neighbours; in a thread that is not its process's first they differ. */
#pragma clang loop unroll(disable)
	for (u32 offset = 4; offset < XD_TASK_SEARCH_BYTES; offset += 4) {
		pair = 0;
		xd_read_kernel(&pair, sizeof(pair), (void *)(task + offset));
		if (pair != id)
			continue;
		learnt->task_pid = offset;
		matches++;
	}
	learnt->task_matches = matches;
#endif
}

/* What is common to a span that ends now and to one that a signal cut short. */
static __always_inline void xd_span_fill(void *record, struct xd_thread *thread, u32 tid, u64 end_ns, s64 ret)
{
	u8 kind = thread->kind;

	xd_head_set(record, kind, thread->flags, thread->op, tid, thread->enter_ns, end_ns - thread->enter_ns);
	if (kind == XD_READ || kind == XD_WRITE) {
		struct xd_rw *rw = record;

		rw->ret = ret;
		rw->fd = thread->fd;
		rw->eventfd_id = thread->eventfd_id;
		rw->len = thread->arg > 65535 ? 65535 : thread->arg;
		rw->generation = thread->generation;
		rw->value = 0;
		rw->masks.held_in = thread->held_in;
		rw->masks.readable_in = thread->readable_in;
		rw->masks.held_out = 0;
		rw->masks.readable_out = 0;
	} else if (kind == XD_FUTEX) {
		struct xd_futex *futex = record;

		futex->ret = ret;
		futex->expected = thread->arg;
		futex->word = thread->a;
		futex->caller = 0;
		futex->masks.held_in = thread->held_in;
		futex->masks.readable_in = thread->readable_in;
		futex->masks.held_out = 0;
		futex->masks.readable_out = 0;
	} else if (kind == XD_FD) {
		struct xd_fd *fd = record;

		fd->ret = ret;
		fd->fd = thread->fd;
		fd->eventfd_id = thread->eventfd_id;
		fd->generation = thread->generation;
		fd->pad = 0;
		fd->masks.held_in = thread->held_in;
		fd->masks.readable_in = thread->readable_in;
		fd->masks.held_out = 0;
		fd->masks.readable_out = 0;
		fd->value = thread->a;
	} else if (kind == XD_TIMER) {
		struct xd_timer *timer = record;

		timer->ret = ret;
		timer->fd = thread->fd;
		timer->value_ns = thread->a;
		timer->interval_ns = thread->b;
		timer->flags = thread->arg;
		timer->pad = 0;
	} else if (kind == XD_EPOLL_CTL) {
		struct xd_epoll_ctl *ctl = record;

		ctl->ret = ret;
		ctl->epfd = thread->fd;
		ctl->data = thread->a;
		ctl->fd = thread->b;
		ctl->generation = thread->generation;
		ctl->ctl_op = thread->arg;
		ctl->held_in = thread->held_in;
		ctl->readable_in = thread->readable_in;
		ctl->eventfd_id = thread->eventfd_id;
	} else if (kind == XD_EPOLL_WAIT) {
		struct xd_epoll_wait *wait = record;

		wait->ret = ret;
		wait->epfd = thread->fd;
		wait->data = 0;
		wait->events = 0;
		wait->generation = thread->generation;
		wait->pad = 0;
		wait->masks.held_in = thread->held_in;
		wait->masks.readable_in = thread->readable_in;
		wait->masks.held_out = 0;
		wait->masks.readable_out = 0;
	} else if (kind == XD_RECVMSG || kind == XD_SENDMSG) {
		struct xd_msg *msg = record;

		msg->ret = ret;
		msg->fd = thread->fd;
		msg->nfds = 0;
		msg->generation = thread->generation;
		msg->eventfd_ids[0] = -1;
		msg->eventfd_ids[1] = -1;
		msg->eventfd_ids[2] = -1;
		msg->masks.held_in = thread->held_in;
		msg->masks.readable_in = thread->readable_in;
		msg->masks.held_out = 0;
		msg->masks.readable_out = 0;
	} else {
		struct xd_syscall *call = record;

		call->ret = ret;
		call->arg0 = thread->a;
		call->arg1 = thread->b;
		call->generation = thread->generation;
		call->held_in = thread->held_in;
		call->readable_in = thread->readable_in;
		call->pad = 0;
	}
}

/* A paused span whose syscall was not restarted ended when it paused. */
static __always_inline void xd_paused_flush(struct xd_thread *thread, u32 tid)
{
	void *record;

	thread->paused = 0;
	if (!thread->kind)
		return;
	record = xd_reserve();
	if (record) {
		xd_span_fill(record, thread, tid, thread->paused_ns, -4);
		xd_submit(record);
	}
	thread->kind = 0;
}

int xd_sys_enter(struct bpf_raw_tracepoint_args *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 tid = id, tgid = id >> 32;

	if (!xd_maybe_target(tgid))
		return 0;

	struct xd_target *target = xd_targets.lookup(&tgid);

	if (!target)
		return 0;

	u64 nr = ctx->args[1];
	struct xd_registers regs;
	struct xd_thread *thread;
	u8 kind = XD_SYSCALL, flags = 0;
	int look_up = -1; /* the fd whose eventfd id the record carries */
	u16 held = 0, readable = 0;

	xd_read_kernel(&regs, sizeof(regs), (void *)(ctx->args[0] + XD_REGS_OFFSET));

	u64 arg0 = regs.slot[XD_REGS_0], arg1 = regs.slot[XD_REGS_1], arg2 = regs.slot[XD_REGS_2];

	if (target->role == XD_ROLE_LEARN) {
		if (target->words[0] == tid)
			xd_learn(id, nr, arg0);
		return 0;
	}
	thread = xd_thread_get(tid, tgid);
	if (!thread)
		return 0;
	if (thread->paused) {
		if (nr == XD_NR_restart_syscall || nr == thread->nr) {
			thread->paused = 0;
			return 0;
		}
		xd_paused_flush(thread, tid);
	}
	if (nr == XD_NR_ioctl && (u32)arg1 == XD_KVM_RUN) {
		thread->kind = 0;
		if (!thread->kvm) {
			struct xd_syscall *mark = xd_reserve();

			thread->kvm = 1;
			if (!mark)
				return 0;
			xd_head_set(&mark->head, XD_SYSCALL, 0, nr, tid, bpf_ktime_get_ns(), 0);
			mark->ret = 0;
			mark->arg0 = arg0;
			mark->arg1 = arg1;
			mark->generation = 0;
			mark->held_in = 0;
			mark->readable_in = 0;
			mark->pad = 0;
			xd_submit(mark);
		}
		return 0;
	}

	thread->kind = 0;
	thread->op = nr;
	thread->nr = nr;
	thread->fd = arg0;
	thread->eventfd_id = -1;
	thread->arg = 0;
	thread->a = arg0;
	thread->b = arg1;

	switch (nr) {
	case XD_NR_read:
	case XD_NR_pread64:
	case XD_NR_readv:
	case XD_NR_write:
	case XD_NR_pwrite64:
	case XD_NR_writev: {
		struct xd_iovec vec = {.base = arg1, .len = arg2};

		kind = nr == XD_NR_read || nr == XD_NR_pread64 || nr == XD_NR_readv ? XD_READ : XD_WRITE;
		if (nr == XD_NR_readv || nr == XD_NR_writev) {
			vec.base = 0;
			vec.len = 0;
			xd_read_user(&vec, sizeof(vec), (void *)arg1);
		}
		look_up = arg0;
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
		thread->op = arg1;
		thread->arg = arg2;
		break;
	case XD_NR_futex_waitv: {
		struct {
			u64 value;
			u64 word;
			u32 flags;
			u32 reserved;
		} waiter = {};

		kind = XD_FUTEX;
		xd_read_user(&waiter, sizeof(waiter), (void *)arg0);
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
		look_up = arg0;
		thread->a = 0;
		break;
	case XD_NR_fcntl:
		if ((u32)arg1 == XD_F_DUPFD || (u32)arg1 == XD_F_DUPFD_CLOEXEC) {
			kind = XD_FD;
			look_up = arg0;
			thread->a = 0;
		}
		break;
	case XD_NR_eventfd:
	case XD_NR_eventfd2:
		kind = XD_FD;
		thread->fd = -1;
		thread->a = (u32)arg0;
		break;
	case XD_NR_timerfd_settime: {
		struct xd_itimerspec spec = {};

		kind = XD_TIMER;
		xd_read_user(&spec, sizeof(spec), (void *)arg2);
		thread->arg = arg1;
		thread->a = spec.value.sec * 1000000000ULL + spec.value.nsec;
		thread->b = spec.interval.sec * 1000000000ULL + spec.interval.nsec;
		break;
	}
	case XD_NR_epoll_ctl: {
		struct xd_epoll_event event = {};

		kind = XD_EPOLL_CTL;
		xd_read_user(&event, sizeof(event), (void *)regs.slot[XD_REGS_3]);
		thread->arg = arg1;
		thread->a = (u64)event.data_high << 32 | event.data_low;
		thread->b = arg2;
		look_up = arg2;
		break;
	}
	case XD_NR_epoll_wait:
	case XD_NR_epoll_pwait:
	case XD_NR_epoll_pwait2:
		kind = XD_EPOLL_WAIT;
		thread->a = arg1;
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
		thread->a = arg1;
		break;
	}
	if (look_up >= 0) {
		thread->eventfd_id = xd_eventfd_id(look_up, &flags);
		if (kind != XD_WRITE)
			flags &= ~XD_F_PENDING;
	}
	if (kind != XD_TIMER) /* its record has no masks */
		xd_masks_read(target, &held, &readable);
	thread->generation = target->generation;
	thread->held_in = held;
	thread->readable_in = readable;
	thread->flags = flags;
	thread->enter_ns = bpf_ktime_get_ns();
	thread->kind = kind;
	return 0;
}

/* Where the fds are that a message carries, and how many; 0: none. */
static __always_inline u32 xd_rights(u64 message, u64 *fds)
{
	struct xd_msghdr header = {};
	struct xd_cmsghdr control = {};
	u64 place;

	xd_read_user(&header, sizeof(header), (void *)message);
	if (!header.control || header.controllen < sizeof(control) + 4)
		return 0;
	place = header.control;
	xd_read_user(&control, sizeof(control), (void *)place);
	if (control.level == XD_SOL_SOCKET && control.type != XD_SCM_RIGHTS) {
		/* Credentials come first where both were asked for. */
		place += (control.len + 7) & ~7ULL;
		xd_read_user(&control, sizeof(control), (void *)place);
	}
	if (control.level != XD_SOL_SOCKET || control.type != XD_SCM_RIGHTS || control.len < sizeof(control))
		return 0;
	*fds = place + sizeof(control);
	return (control.len - sizeof(control)) / 4;
}

/* The message's record with the first three eventfd ids, then continuations of eight. Submits all. */
static __always_inline void xd_msg_submit(struct xd_msg *msg, struct xd_thread *thread, u32 tid, u64 dur_ns, s64 ret)
{
	u64 fds = 0;
	u32 count = ret >= 0 ? xd_rights(thread->a, &fds) : 0;
	s32 ids[XD_MORE_FDS];
	u8 flags = 0;
	u32 first = 0;

	msg->nfds = count;
#pragma clang loop unroll(disable)
	for (int r = 0; r <= XD_MORE_RECORDS; r++) {
		u32 here = r ? XD_MORE_FDS : XD_FIRST_FDS;

#pragma clang loop unroll(disable)
		for (int i = 0; i < XD_MORE_FDS; i++) {
			int fd = -1;

			ids[i] = -1;
			if (i >= here || first + i >= count)
				continue;
			xd_read_user(&fd, sizeof(fd), (void *)(fds + (first + i) * 4));
			ids[i] = xd_eventfd_id(fd, &flags);
		}
		if (!r) {
			__builtin_memcpy(msg->eventfd_ids, ids, sizeof(msg->eventfd_ids));
			xd_submit(msg);
		} else {
			struct xd_msg_more *more = xd_reserve();

			if (!more)
				break;
			xd_head_set(&more->head, XD_MSG_MORE, 0, thread->op, tid, thread->enter_ns, dur_ns);
			__builtin_memcpy(more->eventfd_ids, ids, sizeof(more->eventfd_ids));
			xd_submit(more);
		}
		first += here;
		if (first >= count)
			break;
	}
}

int xd_sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 tid = id, tgid = id >> 32;

	if (!xd_maybe_target(tgid))
		return 0;

	struct xd_thread *thread = xd_threads.lookup(&tid);

	if (!thread || !thread->kind || thread->tgid != tgid)
		return 0;

	u64 now = bpf_ktime_get_ns();
	u64 dur = now - thread->enter_ns;
	s64 ret = ctx->args[1];
	u8 kind = thread->kind;
	u16 held = 0, readable = 0;

	if (ret <= -512 && ret >= -516) {
		thread->paused = 1;
		thread->paused_ns = now;
		return 0;
	}
	if (kind == XD_SYSCALL && dur < XD_MIN_OTHER_NS) {
		thread->kind = 0;
		return 0;
	}

	void *record = xd_reserve();

	if (!record) {
		thread->kind = 0;
		return 0;
	}
	xd_span_fill(record, thread, tid, now, ret);
	if (kind == XD_FUTEX || dur >= XD_MIN_OTHER_NS) {
		struct xd_target *target = xd_targets.lookup(&tgid);

		/* Masks of another generation would be read with the wrong words. */
		if (target && target->generation && target->generation == thread->generation) {
			xd_masks_read(target, &held, &readable);
			if (kind == XD_FUTEX) {
				struct xd_futex *futex = record;

				futex->head.flags |= XD_F_EXIT_MASKS;
				futex->masks.held_out = held;
				futex->masks.readable_out = readable;
			} else if (kind == XD_READ || kind == XD_WRITE) {
				struct xd_rw *rw = record;

				rw->head.flags |= XD_F_EXIT_MASKS;
				rw->masks.held_out = held;
				rw->masks.readable_out = readable;
			} else if (kind == XD_FD) {
				struct xd_fd *fd = record;

				fd->head.flags |= XD_F_EXIT_MASKS;
				fd->masks.held_out = held;
				fd->masks.readable_out = readable;
			} else if (kind == XD_EPOLL_WAIT) {
				struct xd_epoll_wait *wait = record;

				wait->head.flags |= XD_F_EXIT_MASKS;
				wait->masks.held_out = held;
				wait->masks.readable_out = readable;
			} else if (kind == XD_RECVMSG || kind == XD_SENDMSG) {
				struct xd_msg *msg = record;

				msg->head.flags |= XD_F_EXIT_MASKS;
				msg->masks.held_out = held;
				msg->masks.readable_out = readable;
			}
		}
	}
	if (kind == XD_FUTEX) {
		struct xd_futex *futex = record;
		u32 command = thread->op & XD_FUTEX_CMD_MASK;

		if (dur >= XD_WAIT_STACK_NS && (command == XD_FUTEX_WAIT || command == XD_FUTEX_WAIT_BITSET)) {
			u64 frame = 0, caller = 0;

			/*
			 * The second frame of the user stack, by the frame pointer: what
			 * bpf_get_stack() would find, without its walk and buffers.
			 */
			xd_read_kernel(&frame, sizeof(frame), (void *)(ctx->args[0] + XD_REGS_FRAME));
			if (frame && !xd_read_user(&caller, sizeof(caller), (void *)(frame + 8)))
				futex->caller = caller;
		}
	} else if (kind == XD_READ) {
		struct xd_rw *rw = record;
		u64 value = 0;

		if (ret >= 8 && !xd_read_user(&value, sizeof(value), (void *)thread->a))
			rw->value = value;
	} else if (kind == XD_WRITE) {
		struct xd_rw *rw = record;

		if (ret >= 8)
			rw->value = thread->a;
	} else if (kind == XD_FD) {
		struct xd_fd *fd = record;
		u8 flags = 0;

		if (thread->fd < 0 && ret >= 0)
			fd->eventfd_id = xd_eventfd_id(ret, &flags);
	} else if (kind == XD_EPOLL_WAIT) {
		struct xd_epoll_wait *wait = record;
		struct xd_epoll_event event = {};

		if (ret > 0 && thread->a && !xd_read_user(&event, sizeof(event), (void *)thread->a)) {
			wait->data = (u64)event.data_high << 32 | event.data_low;
			wait->events = event.events;
		}
	}
	if (kind == XD_RECVMSG || kind == XD_SENDMSG)
		xd_msg_submit(record, thread, tid, dur, ret);
	else
		xd_submit(record);
	thread->kind = 0;
	return 0;
}
