/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * interrupts.bpf.c - whether this CPU is in an interrupt: what wakes a thread
 * from there is not the thread that was interrupted.
 *
 * Cost: six programs, at entry and exit of every interrupt, softirq and timer
 * of the host, each a per-CPU increment. The kernel's own preempt count would
 * say it, but many kernels do not list its symbol (CONFIG_KALLSYMS_ALL).
 */
static __always_inline bool xd_in_interrupt(void)
{
	struct xd_cpu *cpu = xd_this_cpu();

	return cpu && cpu->irq_depth > 0;
}

/* Nothing switches inside an interrupt: whatever the depth says, it is over. */
static __always_inline void xd_interrupts_over(struct xd_cpu *cpu)
{
	cpu->irq_depth = 0;
}

static __always_inline int xd_irq_enter(void)
{
	struct xd_cpu *cpu = xd_this_cpu();

	if (cpu)
		cpu->irq_depth++;
	return 0;
}

static __always_inline int xd_irq_exit(void)
{
	struct xd_cpu *cpu = xd_this_cpu();

	if (cpu && cpu->irq_depth > 0)
		cpu->irq_depth--;
	return 0;
}

/*
 * One program per tracepoint: the kernel skips a program that is already
 * running on the CPU, and an interrupt may come in the middle of one.
 */
int xd_hrtimer_enter(struct bpf_raw_tracepoint_args *ctx)
{
	return xd_irq_enter();
}

int xd_hrtimer_exit(struct bpf_raw_tracepoint_args *ctx)
{
	return xd_irq_exit();
}

int xd_softirq_enter(struct bpf_raw_tracepoint_args *ctx)
{
	return xd_irq_enter();
}

int xd_softirq_exit(struct bpf_raw_tracepoint_args *ctx)
{
	return xd_irq_exit();
}

int xd_hardirq_enter(struct bpf_raw_tracepoint_args *ctx)
{
	return xd_irq_enter();
}

int xd_hardirq_exit(struct bpf_raw_tracepoint_args *ctx)
{
	return xd_irq_exit();
}
