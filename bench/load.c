/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.c - a target of a known number of syscalls.
 *
 *   load rate PER_S SECONDS   write(2) to /dev/null at a steady rate, by a thread per CPU; prints how many
 *   load cost COUNT           write(2) to /dev/null as fast as it goes; prints CPU ns
 *   load bystander COUNT      getppid(2) likewise (CPU time: what else runs here is not in it)
 *
 * Prints "ready TGID ADDRESS" (16 lock words of 4 bytes, all 0), then waits for a line; ends when stdin closes.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
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

#define MOST_THREADS 64

static int null;
static unsigned long long rate_per_thread, writes_per_thread, begun_ns;

/* One CPU alone makes about 0.8 million traced writes a second. */
static void *write_at_rate(void *unused)
{
	unsigned long long done = 0;

	while (done < writes_per_thread) {
		unsigned long long due = (now_ns(CLOCK_MONOTONIC) - begun_ns) * rate_per_thread / 1000000000ull;

		for (; done < due && done < writes_per_thread; done++)
			if (write(null, "x", 1) < 0)
				abort();
	}
	return unused;
}

static unsigned long long write_in_threads(unsigned long long rate, unsigned long long seconds)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN), n = cpus < MOST_THREADS ? cpus : MOST_THREADS;
	pthread_t threads[MOST_THREADS];

	rate_per_thread = rate / n;
	writes_per_thread = rate_per_thread * seconds;
	begun_ns = now_ns(CLOCK_MONOTONIC);
	for (long i = 0; i < n; i++)
		if (pthread_create(&threads[i], NULL, write_at_rate, NULL))
			abort();
	for (long i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	return n * writes_per_thread;
}

int main(int argc, char **argv)
{
	unsigned long long start, done = 0;
	char line[16];

	null = open("/dev/null", O_WRONLY);
	if (argc < 3 || null < 0)
		return 2;
	printf("ready %d %p\n", (int)getpid(), (void *)words);
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 0;
	start = now_ns(CLOCK_MONOTONIC);
	if (!strcmp(argv[1], "rate") && argc == 4) {
		done = write_in_threads(atoll(argv[2]), atoll(argv[3]));
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
