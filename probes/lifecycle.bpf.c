/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * lifecycle.bpf.c - threads of targets: start, name, exec, exit.
 *
 * A new thread of a target is traced from its start; a child process is not.
 * Cost: nothing outside these rare events.
 */
static __always_inline void xd_life(u32 tid, u32 tgid, u16 op, u32 old_tid, void *comm)
{
	struct xd_life *life = xd_reserve();

	if (!life)
		return;
	xd_head_set(&life->head, XD_LIFE, 0, op, tid, bpf_ktime_get_ns(), 0);
	__builtin_memset(life->comm, 0, sizeof(life->comm));
	if (comm)
		xd_read_kernel_str(life->comm, sizeof(life->comm), comm);
	else
		bpf_get_current_comm(life->comm, sizeof(life->comm));
	life->tgid = tgid;
	life->old_tid = old_tid;
	life->pad = 0;
	xd_submit(life);
}

static __always_inline int xd_traced(u32 tgid)
{
	struct xd_target *target = xd_target_of(tgid);

	return target && target->role == XD_ROLE_TRACE;
}

int xd_task_newtask(struct bpf_raw_tracepoint_args *ctx)
{
	u32 parent_tgid = bpf_get_current_pid_tgid() >> 32;
	u32 tid, tgid;
	u64 id;

	if (!xd_traced(parent_tgid))
		return 0;
	id = xd_task_ids(ctx->args[0]);
	tid = id;
	tgid = id >> 32;
	if (tgid != parent_tgid)
		return 0;
	xd_thread_get(tid, tgid);
	xd_life(tid, tgid, XD_LIFE_START, 0, NULL);
	return 0;
}

int xd_task_rename(struct bpf_raw_tracepoint_args *ctx)
{
	u64 id = xd_task_ids(ctx->args[0]);
	u32 tgid = id >> 32;

	if (xd_traced(tgid))
		xd_life(id, tgid, XD_LIFE_NAME, 0, (void *)ctx->args[1]);
	return 0;
}

int xd_process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 tid = id, tgid = id >> 32, old_tid = ctx->args[1];
	struct xd_target *target = xd_target_of(tgid);

	if (!target || target->role != XD_ROLE_TRACE)
		return 0;
	/* The old image's words mean nothing in the new one; the session gives the next generation. */
#if XD_HELD_WORDS > 0
	target->words[0] = 0;
#endif
	xd_threads.delete(&old_tid);
	xd_threads.delete(&tid);
	xd_thread_get(tid, tgid);
	xd_life(tid, tgid, XD_LIFE_EXEC, old_tid, NULL);
	return 0;
}

int xd_process_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 tid = id, tgid = id >> 32;

	/* A span that the exit cuts off is ended by the EXIT record. */
	xd_threads.delete(&tid);
	if (xd_traced(tgid))
		xd_life(tid, tgid, XD_LIFE_EXIT, 0, NULL);
	return 0;
}
