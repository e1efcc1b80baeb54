/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * syscalls.bpf.c - one record per syscall span of a target's threads.
 *
 * Traced: read, write, futex, dup, close, eventfd2, timerfd_settime, epoll, poll,
 * select, recvmsg, sendmsg always; every other syscall if it lasts XD_MIN_OTHER_NS.
 * Not traced: KVM_RUN (only its first entry, which marks a vCPU thread), and
 * what goes through io_uring.
 * Cost: two raw tracepoints that every syscall of the host runs through; a
 * process that is no target pays one array look-up in each.
 */
#define XD_KVM_RUN 0xae80

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

	struct xd_target *target = xd_target_of(tgid);

	if (!target)
		return 0;

	u64 nr = ctx->args[1];
	struct xd_arguments arguments;
	struct xd_thread *thread;
	u8 kind, flags = 0;
	int look_up = -1;
	u16 held = 0, readable = 0;

	xd_arguments_read(ctx->args[0], &arguments);
	if (target->role == XD_ROLE_LEARN) {
		if (target->words[0] == tid)
			xd_learn(id, nr, arguments.first);
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
	if (nr == XD_NR_ioctl && (u32)arguments.second == XD_KVM_RUN) {
		thread->kind = 0;
		if (!thread->kvm) {
			struct xd_syscall *mark = xd_reserve();

			thread->kvm = 1;
			if (!mark)
				return 0;
			xd_head_set(&mark->head, XD_SYSCALL, 0, nr, tid, bpf_ktime_get_ns(), 0);
			mark->ret = 0;
			mark->arg0 = arguments.first;
			mark->arg1 = arguments.second;
			mark->generation = 0;
			mark->held_in = 0;
			mark->readable_in = 0;
			mark->pad = 0;
			xd_submit(mark);
		}
		return 0;
	}

	thread->kind = 0;
	kind = xd_arguments_keep(nr, &arguments, thread, &look_up);
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
	if (dur >= XD_MIN_OTHER_NS) { /* in less the words have hardly changed since the entry */
		struct xd_target *target = xd_target_of(tgid);

		/* Masks of another generation would be read with the wrong words. */
		if (target && target->generation && target->generation == thread->generation) {
			xd_masks_read(target, &held, &readable);
			xd_exit_masks(record, kind, held, readable);
		}
	}
	xd_results_add(record, thread, ctx->args[0], dur, ret);
	if (kind == XD_RECVMSG || kind == XD_SENDMSG)
		xd_msg_submit(record, thread, tid, dur, ret);
	else
		xd_submit(record);
	thread->kind = 0;
	return 0;
}
