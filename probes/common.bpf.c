/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * common.bpf.c - what the three sources of facts share.
 *
 * In the main text, not a header: BCC rewrites map calls only there.
 */

#define XD_RB_NO_WAKEUP 1

static __always_inline struct xd_cpu *xd_this_cpu(void)
{
	int zero = 0;

	return xd_cpus.lookup(&zero);
}

/* Whether a target may be behind a tgid: all that a bystander pays for, about 4 ns. */
static __always_inline bool xd_maybe_target(u32 tgid)
{
	u32 slot = tgid % XD_FILTER_SLOTS;
	u64 *places = xd_filter.lookup(&slot);

	return places && *places;
}

/* The target of a tgid, NULL where it is none. Array look-ups alone: they are inlined. */
static __always_inline struct xd_target *xd_target_of(u32 tgid)
{
	u32 slot = tgid % XD_FILTER_SLOTS;
	u64 *places = xd_filter.lookup(&slot), left;

	if (!places)
		return NULL;
	left = *places;
	/* One place almost always: more where tgids are equal modulo the number of slots. */
#pragma clang loop unroll(disable)
	for (int i = 0; i < 8; i++) {
		u32 place = left & 0xff;
		struct xd_target *target;

		if (!place)
			break;
		target = xd_targets.lookup(&place);
		if (target && target->tgid == tgid)
			return target;
		left >>= 8;
	}
	return NULL;
}

static __always_inline void xd_count_lost_map(void)
{
	struct xd_cpu *cpu = xd_this_cpu();

	if (cpu)
		cpu->lost_map++;
}

/* A record of XD_RECORD_BYTES, or NULL and one more lost. */
static __always_inline void *xd_reserve(void)
{
	void *record = xd_ring.ringbuf_reserve(XD_RECORD_BYTES);

	if (!record) {
		struct xd_cpu *cpu = xd_this_cpu();

		if (cpu)
			cpu->lost_ring++;
	}
	return record;
}

static __always_inline void xd_submit(void *record)
{
	xd_ring.ringbuf_submit(record, XD_RB_NO_WAKEUP);
}

static __always_inline void xd_head_set(struct xd_head *head, u8 kind, u8 flags, u16 op, u32 tid, u64 enter_ns,
					u64 dur_ns)
{
	head->kind = kind;
	head->flags = flags;
	head->op = op;
	head->tid = tid;
	head->enter_ns = enter_ns;
	head->dur_ns = dur_ns;
}

/* The thread's entry, made where there is none or where a dead process left one. */
static __always_inline struct xd_thread *xd_thread_get(u32 tid, u32 tgid)
{
	struct xd_thread *thread = xd_threads.lookup(&tid);

	if (thread && thread->tgid == tgid)
		return thread;

	struct xd_thread fresh = {};

	fresh.tgid = tgid;
	if (xd_threads.update(&tid, &fresh)) {
		xd_count_lost_map();
		return NULL;
	}
	return xd_threads.lookup(&tid);
}

/* Which of the target's watched words are held (value 1 or 2) and readable. A value above 2 is no std mutex. */
static __always_inline void xd_masks_read(struct xd_target *target, u16 *held, u16 *readable)
{
#if XD_HELD_WORDS > 0
	if (!target->generation)
		return;
#pragma unroll
	for (int i = 0; i < XD_HELD_WORDS; i++) {
		u32 value = 3;

		if (!target->words[i])
			break;
		if (xd_read_user(&value, sizeof(value), (void *)target->words[i]))
			continue;
		if (value > 2)
			continue;
		*readable |= 1 << i;
		if (value)
			*held |= 1 << i;
	}
#endif
}
