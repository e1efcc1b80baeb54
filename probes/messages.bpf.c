/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * messages.bpf.c - the fds that a message carries (SCM_RIGHTS), as eventfd ids.
 *
 * Cost: two user reads per message with control data, one more if it carries fds.
 */
#define XD_SOL_SOCKET 1
#define XD_SCM_RIGHTS 1
#define XD_FIRST_FDS 3
#define XD_MORE_FDS 8
#define XD_MORE_RECORDS 4
#define XD_MOST_FDS (XD_FIRST_FDS + XD_MORE_RECORDS * XD_MORE_FDS)

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
	int zero = 0;
	u64 fds = 0;
	u32 count = ret >= 0 ? xd_rights(thread->a, &fds) : 0;
	s32 ids[XD_MORE_FDS], carried[XD_MOST_FDS] = {};
	struct xd_table table;
	struct xd_learnt *learnt = xd_learnt.lookup(&zero);
	u32 first = 0;
	u64 bytes = (u64)count * 4;

	msg->nfds = count;
	if (!count || !learnt) { /* no learnt: never */
		xd_submit(msg);
		return;
	}
	asm volatile("" : "+r"(bytes)); /* the verifier wants to see the bound of the very value */
	if (bytes > sizeof(carried))
		bytes = sizeof(carried);
	xd_table_read(&table);
	if (xd_read_user(carried, bytes, (void *)fds))
		table.max_fds = 0; /* then no fd is looked at */
#pragma clang loop unroll(disable)
	for (int r = 0; r <= XD_MORE_RECORDS; r++) {
		u32 here = r ? XD_MORE_FDS : XD_FIRST_FDS;

#pragma clang loop unroll(disable)
		for (int i = 0; i < XD_MORE_FDS; i++) {
			struct xd_file file;
			struct xd_eventfd eventfd;

			if (i >= here)
				break;
			ids[i] = -1;
			asm volatile("" ::: "memory"); /* else the compiler makes a memset() of it: there is none */
			if (first + i >= count)
				continue;
			xd_eventfd_of(&table, learnt, carried[first + i], &file, &eventfd);
			ids[i] = eventfd.id;
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
