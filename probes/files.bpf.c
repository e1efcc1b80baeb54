/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * files.bpf.c - from an fd of the current task to the eventfd behind it.
 *
 * An fd number identifies no stream (the device dups it for each write); the
 * id of the eventfd does, and /proc/PID/fdinfo shows the same one. What an
 * eventfd looks like is learnt from one of our own: eventfd_fops is no symbol.
 * Cost: seven loads with XD_HAVE_CAST, else three reads more (28 ns each).
 */
#define XD_TASK_SEARCH_BYTES 8192

struct xd_file {
	u64 f_op;
	u64 private_data;
};

struct xd_eventfd {
	u64 count;
	u32 flags;
	s32 id;
};

/* The current task's table of open files; max_fds 0: not known without offsets. */
struct xd_table {
	u64 fds;
	u32 max_fds;
	u32 pad;
};

static __always_inline void xd_table_read(struct xd_table *table)
{
	table->fds = 0;
	table->max_fds = 0;
#if XD_HAVE_FILES
	u64 files = xd_load64(xd_current(), XD_OFF_TASK_FILES), fdt;

	if (!files)
		return;
	fdt = xd_load64(files, XD_OFF_FILES_FDT);
	if (!fdt)
		return;
#if XD_DIRECT
	table->max_fds = xd_load32(fdt, XD_OFF_FDT_MAX_FDS);
	table->fds = xd_load64(fdt, XD_OFF_FDT_FD);
#else
	struct {
		u32 max_fds;
		u32 pad;
		u64 fds;
	} read = {};

	xd_read_kernel(&read, sizeof(read), (void *)(fdt + XD_OFF_FDT_MAX_FDS));
	table->max_fds = read.max_fds;
	table->fds = read.fds;
#endif
#endif
}

/* Both members by one read: from the first to the end of the last. */
#define XD_FILE_FIRST (XD_OFF_FILE_F_OP < XD_OFF_FILE_PRIVATE_DATA ? XD_OFF_FILE_F_OP : XD_OFF_FILE_PRIVATE_DATA)
#define XD_FILE_LAST (XD_OFF_FILE_F_OP > XD_OFF_FILE_PRIVATE_DATA ? XD_OFF_FILE_F_OP : XD_OFF_FILE_PRIVATE_DATA)
#define XD_FILE_SPAN (XD_FILE_LAST - XD_FILE_FIRST + 8)

/* The file behind an fd; f_op 0: none. */
static __always_inline void xd_file_of(struct xd_table *table, int fd, struct xd_file *file)
{
	file->f_op = 0;
	file->private_data = 0;
#if XD_HAVE_FILES
	u64 place, pointer = 0;

	if (fd < 0 || (u32)fd >= table->max_fds)
		return;
	place = table->fds + (u64)fd * 8;
#if XD_DIRECT && XD_HAVE_CAST
	/* A list_head stands for any place that holds a pointer. What is loaded through none is 0. */
	pointer = xd_cast(xd_load64(xd_cast(place, XD_BTF_LIST_HEAD), 0), XD_BTF_FILE);
	file->f_op = xd_load64(pointer, XD_OFF_FILE_F_OP);
	file->private_data = xd_load64(pointer, XD_OFF_FILE_PRIVATE_DATA);
#else
	u64 piece[XD_FILE_SPAN / 8] = {};

	xd_read_kernel(&pointer, sizeof(pointer), (void *)place);
	if (!pointer)
		return;
	xd_read_kernel(piece, sizeof(piece), (void *)(pointer + XD_FILE_FIRST));
	file->f_op = piece[(XD_OFF_FILE_F_OP - XD_FILE_FIRST) / 8];
	file->private_data = piece[(XD_OFF_FILE_PRIVATE_DATA - XD_FILE_FIRST) / 8];
#endif
#endif
}

/* Id and count of an fd if it is an eventfd, else id -1; its f_op tells timerfds. */
static __always_inline void xd_eventfd_of(struct xd_table *table, struct xd_learnt *learnt, int fd,
					  struct xd_file *file, struct xd_eventfd *eventfd)
{
	eventfd->id = -1;
	eventfd->count = 0;
#if XD_HAVE_FILES
	xd_file_of(table, fd, file);
	if (!file->f_op || file->f_op != learnt->eventfd_fops)
		return;
#if XD_DIRECT && XD_HAVE_CAST
	u64 context = xd_cast(file->private_data, XD_BTF_EVENTFD_CTX);

	eventfd->count = xd_load64(context, XD_OFF_EVENTFD_COUNT);
	eventfd->id = xd_load32(context, XD_OFF_EVENTFD_ID);
#else
	if (xd_read_kernel(eventfd, sizeof(*eventfd), (void *)(file->private_data + XD_OFF_EVENTFD_COUNT)))
		eventfd->id = -1;
#endif
#endif
}

/* Eventfd id of an fd, else -1; adds XD_F_EVENTFD, XD_F_TIMERFD, XD_F_PENDING to *flags. */
static __always_inline s32 xd_eventfd_id(int fd, u8 *flags)
{
	int zero = 0;
	struct xd_table table;
	struct xd_file file = {};
	struct xd_eventfd eventfd = {};
	struct xd_learnt *learnt = xd_learnt.lookup(&zero);

	if (!learnt)
		return -1;
	xd_table_read(&table);
	xd_eventfd_of(&table, learnt, fd, &file, &eventfd);
	if (eventfd.id >= 0)
		*flags |= eventfd.count ? XD_F_EVENTFD | XD_F_PENDING : XD_F_EVENTFD;
	else if (file.f_op && file.f_op == learnt->timerfd_fops)
		*flags |= XD_F_TIMERFD;
	return eventfd.id;
}

/* Our own write to an eventfd and read of a timerfd teach the f_op pointers; our own task, where ids lie. */
static __always_inline void xd_learn(u64 id, u64 nr, int fd)
{
	int zero = 0;
	struct xd_table table;
	struct xd_file file;
	struct xd_learnt *learnt = xd_learnt.lookup(&zero);

	if (!learnt)
		return;
	xd_table_read(&table);
	xd_file_of(&table, fd, &file);
	if (nr == XD_NR_write && !learnt->eventfd_fops)
		learnt->eventfd_fops = file.f_op;
	if (nr == XD_NR_read && !learnt->timerfd_fops)
		learnt->timerfd_fops = file.f_op;
#if !XD_HAVE_TASK
	u64 task = xd_current(), pair;
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
