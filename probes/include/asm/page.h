/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC sizes ring buffers in pages; capture/probes.py passes the machine's page size. */
#ifndef PAGE_SIZE
#define PAGE_SIZE 4096
#endif
