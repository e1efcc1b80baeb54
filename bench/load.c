/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.c - a target of a known number of syscalls.
 *
 *   load rate PER_S SECONDS   write(2) to /dev/null at a steady rate; prints how many
 *   load cost COUNT           write(2) to /dev/null as fast as it goes; prints CPU ns
 *   load bystander COUNT      getppid(2) likewise (CPU time: what else runs here is not in it)
 *
 * Prints "ready TGID ADDRESS" (16 lock words of 4 bytes, all 0), then waits for a line; ends when stdin closes.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static unsigned int words[16];

static unsigned long long now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t); /* CLOCK_MONOTONIC: vDSO, no syscall */
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int main(int argc, char **argv)
{
	int null = open("/dev/null", O_WRONLY);
	unsigned long long start, done = 0;
	char line[16];

	if (argc < 3 || null < 0)
		return 2;
	printf("ready %d %p\n", (int)getpid(), (void *)words);
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 0;
	start = now_ns(CLOCK_MONOTONIC);
	if (!strcmp(argv[1], "rate") && argc == 4) {
		unsigned long long rate = atoll(argv[2]), all = rate * atoll(argv[3]);

		while (done < all) {
			unsigned long long due = (now_ns(CLOCK_MONOTONIC) - start) * rate / 1000000000ull;

			for (; done < due && done < all; done++)
				if (write(null, line, 1) < 0)
					return 1;
		}
		printf("%llu %llu\n", done, now_ns(CLOCK_MONOTONIC) - start);
	} else {
		unsigned long long all = atoll(argv[2]);
		int bystander = !strcmp(argv[1], "bystander");

		start = now_ns(CLOCK_PROCESS_CPUTIME_ID);
		for (; done < all; done++)
			if ((bystander ? syscall(SYS_getppid) : write(null, line, 1)) < 0)
				return 1;
		printf("%llu %llu\n", done, now_ns(CLOCK_PROCESS_CPUTIME_ID) - start);
	}
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin))
		;
	return 0;
}
