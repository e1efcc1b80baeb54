/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The types that BCC's own headers and our probes use: all that is needed of
 * the kernel's headers, so that none have to be installed.
 */
#ifndef XD_LINUX_TYPES_H
#define XD_LINUX_TYPES_H

typedef signed char __s8;
typedef unsigned char __u8;
typedef signed short __s16;
typedef unsigned short __u16;
typedef signed int __s32;
typedef unsigned int __u32;
typedef signed long long __s64;
typedef unsigned long long __u64;

typedef __s8 s8;
typedef __u8 u8;
typedef __s16 s16;
typedef __u16 u16;
typedef __s32 s32;
typedef __u32 u32;
typedef __s64 s64;
typedef __u64 u64;

typedef __u16 __be16;
typedef __u16 __le16;
typedef __u32 __be32;
typedef __u32 __le32;
typedef __u64 __be64;
typedef __u64 __le64;
typedef __u16 __sum16;
typedef __u32 __wsum;

typedef int pid_t;
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;

#define true 1
#define false 0
#ifndef NULL
#define NULL ((void *)0)
#endif

#define __aligned(x) __attribute__((aligned(x)))
#define __aligned_u64 __u64 __aligned(8)
#define __user
#define __bitwise

#endif
