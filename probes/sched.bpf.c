/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sched.bpf.c - off-CPU spans of target threads: how long, blocked or
 * runnable, woken when and by whom, who ran instead, what the hypervisor stole.
 *
 * Not traced: time on the CPU (it is what lies between two spans).
 * Cost: sched_switch, sched_waking and sched_wakeup of the whole host pay an array look-up each.
 */
#define XD_TASK_DEAD 0x80

#if XD_HAVE_STEAL
/* What the hypervisor has taken of this CPU so far, by a task that runs on it. */
static __always_inline u64 xd_steal(struct xd_cpu *cpu, u64 task)
{
#if XD_DIRECT
	return xd_load64(xd_load64(xd_load64(task, XD_OFF_TASK_CFS_RQ), XD_OFF_CFS_RQ_RQ), XD_OFF_RQ_STEAL);
#else
	u64 cfs_rq = 0, steal = 0;

	/* A CPU's run queue never moves: its address is learnt once. */
	if (!cpu->rq) {
		xd_read_kernel(&cfs_rq, sizeof(cfs_rq), (void *)(task + XD_OFF_TASK_CFS_RQ));
		if (!cfs_rq)
			return 0;
		xd_read_kernel(&cpu->rq, sizeof(cpu->rq), (void *)(cfs_rq + XD_OFF_CFS_RQ_RQ));
	}
	xd_read_kernel(&steal, sizeof(steal), (void *)(cpu->rq + XD_OFF_RQ_STEAL));
	return steal;
#endif
}
#endif

int xd_sched_switch(struct bpf_raw_tracepoint_args *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 prev_tid = id, next_tid;
	u64 next_id, next = ctx->args[2], now = 0, steal = 0;
	struct xd_cpu *cpu = xd_this_cpu();
	struct xd_thread *thread;

	if (!cpu)
		return 0;
	xd_interrupts_over(cpu);
	thread = xd_maybe_target(id >> 32) ? xd_threads.lookup(&prev_tid) : NULL;
	if (thread && thread->tgid == id >> 32) {
#if XD_SWITCH_HAS_STATE
		u32 state = ctx->args[3];
#else
		u32 state = xd_load32(ctx->args[1], XD_OFF_TASK_STATE);
#endif
		if (!(state & XD_TASK_DEAD)) {
			now = bpf_ktime_get_ns();
			thread->stolen_ns = 0;
#if XD_HAVE_STEAL
			steal = xd_steal(cpu, next);
			if (thread->steal_in && steal > thread->steal_in)
				thread->stolen_ns = steal - thread->steal_in;
#endif
			thread->state = state;
			thread->preempted = ctx->args[0] != 0;
			thread->cpu_out = bpf_get_smp_processor_id();
			thread->out_flags = 0;
			thread->out_ns = now;
		}
	}

	next_id = xd_task_ids(next);
	if (!xd_maybe_target(next_id >> 32))
		return 0;
	next_tid = next_id;
	thread = xd_threads.lookup(&next_tid);
	if (!thread)
		return 0;
	if (!now)
		now = bpf_ktime_get_ns();
#if XD_HAVE_STEAL
	if (!steal) /* the thread before it was a target's, too: read already */
		steal = xd_steal(cpu, next);
#endif
	if (thread->out_ns) {
		struct xd_offcpu *span = xd_reserve();

		if (span) {
			xd_head_set(&span->head, XD_OFFCPU, thread->out_flags, thread->state, next_tid, thread->out_ns,
				    now - thread->out_ns);
			/* A waking that overtook this thread's way off the CPU is dated to when it was off. */
			span->woken_ns = thread->woken_ns && thread->woken_ns < thread->out_ns ? thread->out_ns
											       : thread->woken_ns;
			span->waker_tid = thread->woken_ns ? thread->waker_tid : 0;
			span->waker_tgid = thread->woken_ns ? thread->waker_tgid : 0;
			span->instead_tid = prev_tid;
			span->cpu_out = thread->cpu_out;
			span->cpu_in = bpf_get_smp_processor_id();
			span->waker_in_irq = thread->woken_ns ? thread->waker_in_irq : 0;
			span->preempted = thread->preempted;
			span->pad = 0;
			span->stolen_ns = thread->stolen_ns;
			xd_submit(span);
		}
	}
	thread->steal_in = steal;
	thread->woken_ns = 0;
	thread->out_ns = 0;
	return 0;
}

int xd_sched_waking(struct bpf_raw_tracepoint_args *ctx)
{
	u64 id = xd_task_ids(ctx->args[0]), now;
	u32 tid = id;
	struct xd_thread *thread;

	if (!xd_maybe_target(id >> 32))
		return 0;
	thread = xd_threads.lookup(&tid);
	if (!thread)
		return 0;
	/* The first waking of a span counts. Before it, the newest: an older one has been used up. */
	if (thread->woken_ns && thread->out_ns)
		return 0;
	now = bpf_ktime_get_ns();
	id = bpf_get_current_pid_tgid();
	thread->waker_tid = id;
	thread->waker_tgid = id >> 32;
	thread->waker_in_irq = xd_in_interrupt();
	thread->woken_ns = now;
	return 0;
}

/*
 * The waking is complete: the thread is runnable. If it is off the CPU, the waking ended this
 * span. If it still runs (it had not slept yet, and now will not), the waking ended none: whoever
 * wakes it from its next sleep is somebody else. A waking that comes while the thread is on its way
 * off the CPU is complete only after the switch, so no clock decides which one it was.
 */
int xd_sched_wakeup(struct bpf_raw_tracepoint_args *ctx)
{
	u64 id = xd_task_ids(ctx->args[0]);
	u32 tid = id;
	struct xd_thread *thread;

	if (!xd_maybe_target(id >> 32))
		return 0;
	thread = xd_threads.lookup(&tid);
	if (thread && !thread->out_ns)
		thread->woken_ns = 0;
	return 0;
}
