/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * memory.bpf.c - how the probes read memory, the kernel's and a target's.
 *
 * Two forms. XD_DIRECT: the programs are typed by the kernel's BTF, so a kernel
 * pointer is followed by a load instruction (1 ns). Else by a helper (28 ns
 * here). User memory always takes a helper (76 ns, whatever the size up to 256
 * bytes), so what is read of it is read once and together.
 */

/*
 * The helpers by names of our own: BCC reads all of kallsyms anew for every
 * call of bpf_probe_read_kernel or _user that it sees (1.8 s for these probes).
 */
static long (*xd_read_user)(void *to, u32 size_bytes, const void *from) = (void *)112;
static long (*xd_read_kernel)(void *to, u32 size_bytes, const void *from) = (void *)113;
static long (*xd_read_kernel_str)(void *to, u32 size_bytes, const void *from) = (void *)115;

#if XD_DIRECT
static u64 (*xd_current)(void) = (void *)158; /* bpf_get_current_task_btf */

/*
 * One load of exactly this width: the verifier takes the pointer's type from
 * BTF, and refuses a load that straddles members. Where the pointer is bad the
 * load gives 0, as a failed read does.
 */
#define xd_load(type, to, from, offset) asm volatile("%0 = *(" #type " *)(%1 + %2)" : "=r"(to) : "r"(from), "i"(offset))

static __always_inline u64 xd_load64(u64 from, const int offset)
{
	u64 value;

	xd_load(u64, value, from, offset);
	return value;
}

static __always_inline u32 xd_load32(u64 from, const int offset)
{
	u64 value;

	xd_load(u32, value, from, offset);
	return value;
}
#else
#define xd_current() bpf_get_current_task()

static __always_inline u64 xd_load64(u64 from, const int offset)
{
	u64 value = 0;

	xd_read_kernel(&value, sizeof(value), (void *)(from + offset));
	return value;
}

static __always_inline u32 xd_load32(u64 from, const int offset)
{
	u32 value = 0;

	xd_read_kernel(&value, sizeof(value), (void *)(from + offset));
	return value;
}
#endif

#if XD_DIRECT && XD_HAVE_CAST
/* The kernel function bpf_rdonly_cast(): the loader puts its BTF id where the mark is. Costs nothing. */
static u64 (*xd_cast)(u64 pointer, u64 type) = (void *)XD_MARK_CAST;
#endif

struct xd_registers {
	u64 slot[XD_REGS_SLOTS];
};

/* The first four arguments of the syscall that is entered with these registers (struct pt_regs). */
struct xd_arguments {
	u64 first, second, third, fourth;
};

static __always_inline void xd_arguments_read(u64 registers, struct xd_arguments *to)
{
#if XD_DIRECT
	to->first = xd_load64(registers, XD_REGS_OFFSET + 8 * XD_REGS_0);
	to->second = xd_load64(registers, XD_REGS_OFFSET + 8 * XD_REGS_1);
	to->third = xd_load64(registers, XD_REGS_OFFSET + 8 * XD_REGS_2);
	to->fourth = xd_load64(registers, XD_REGS_OFFSET + 8 * XD_REGS_3);
#else
	struct xd_registers read = {};

	xd_read_kernel(&read, sizeof(read), (void *)(registers + XD_REGS_OFFSET));
	to->first = read.slot[XD_REGS_0];
	to->second = read.slot[XD_REGS_1];
	to->third = read.slot[XD_REGS_2];
	to->fourth = read.slot[XD_REGS_3];
#endif
}

/* A task's ids as bpf_get_current_pid_tgid() gives them. */
static __always_inline u64 xd_task_ids(u64 task)
{
#if XD_DIRECT
	u64 tgid = xd_load32(task, XD_OFF_TASK_TGID), tid = xd_load32(task, XD_OFF_TASK_PID);

	return tgid << 32 | tid;
#elif XD_HAVE_TASK
	/* pid and tgid are neighbours, one read gives both. */
	return xd_load64(task, XD_OFF_TASK_PID);
#else
	int zero = 0;
	u64 ids = 0;
	struct xd_learnt *learnt = xd_learnt.lookup(&zero);

	if (learnt && learnt->task_matches == 1)
		xd_read_kernel(&ids, sizeof(ids), (void *)(task + learnt->task_pid));
	return ids;
#endif
}
