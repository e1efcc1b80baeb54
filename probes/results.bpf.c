/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * results.bpf.c - the record of a span that ends: what was kept at its entry,
 * and what only its end shows.
 */
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

/* Which watched words are held at the exit; in kinds of records that have room for it. */
static __always_inline void xd_exit_masks(void *record, u8 kind, u16 held, u16 readable)
{
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

/* What a syscall returned by way of memory, and where a long wait was called from. */
static __always_inline void xd_results_add(void *record, struct xd_thread *thread, u64 registers, u64 dur, s64 ret)
{
	u8 kind = thread->kind;

	if (kind == XD_FUTEX) {
		struct xd_futex *futex = record;
		u32 command = thread->op & XD_FUTEX_CMD_MASK;

		if (dur >= XD_WAIT_STACK_NS && (command == XD_FUTEX_WAIT || command == XD_FUTEX_WAIT_BITSET)) {
			u64 frame = xd_load64(registers, XD_REGS_FRAME), caller = 0;

			/*
			 * The second frame of the user stack, by the frame pointer: what
			 * bpf_get_stack() would find, without its walk and buffers.
			 */
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
}
