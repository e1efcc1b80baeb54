/* SPDX-License-Identifier: GPL-2.0-only */
/* Raw tracepoints do not look at the version; BCC's headers compare it. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#ifndef LINUX_VERSION_CODE
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 8, 0)
#endif
