/* SPDX-License-Identifier: GPL-2.0-only */
/* Empty: BCC includes it, our probes need nothing from it. */
