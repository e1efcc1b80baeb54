/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC pulls this in before anything else. */
#define CONFIG_BPF_SYSCALL 1
