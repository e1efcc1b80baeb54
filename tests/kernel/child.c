// SPDX-License-Identifier: Apache-2.0
/* A process that does exactly what it is told, one line of standard input at a time. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint32_t word;
static uint32_t held;
static uint32_t other;
static int spare_pipe[2];
static long rounds;
static uint32_t *contended = &word; /* waited for by contend */

static long futex(uint32_t *address, int op, uint32_t value)
{
	return syscall(SYS_futex, address, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, FUTEX_BITSET_MATCH_ANY);
}

static void say(const char *text)
{
	puts(text);
	fflush(stdout);
}

static void *waiter(void *unused)
{
	for (long i = 0; i < rounds; i++)
		futex(contended, FUTEX_WAIT_BITSET, 2);
	return unused;
}

/* Exactly n waits with expected value 2, each ended by one wake that found it. */
static void contend(long n)
{
	pthread_t thread;

	__atomic_store_n(contended, 2, __ATOMIC_SEQ_CST);
	rounds = n;
	pthread_create(&thread, NULL, waiter, NULL);
	for (long i = 0; i < n; i++)
		while (futex(contended, FUTEX_WAKE, 1) != 1)
			sched_yield();
	pthread_join(thread, NULL);
}

/* contend, on a word in a page of its own, whose address is said. */
static void map(long n)
{
	contended = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (contended == MAP_FAILED)
		abort();
	contend(n);
	printf("%lx ", (long)contended);
}

/* That page goes. */
static void unmap(void)
{
	munmap(contended, 4096);
	contended = &word;
}

static void *nothing(void *unused)
{
	return unused;
}

static void threads(long n)
{
	for (long i = 0; i < n; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, nothing, NULL))
			abort();
		pthread_join(thread, NULL);
	}
}

static void eventfds(long n)
{
	for (long i = 0; i < n; i++) {
		uint64_t value = 1000 + i;
		int fd = eventfd(i, EFD_CLOEXEC), copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

		if (write(copy, &value, 8) != 8 || write(fd, &value, 8) != 8 || read(fd, &value, 8) != 8)
			abort();
		close(copy);
		printf("%d ", fd); /* stays open: its fdinfo is compared */
	}
}

static void rights(long n)
{
	int sockets[2], fds[64];
	char control[CMSG_SPACE(sizeof(fds))], byte = 0;
	struct iovec vec = {&byte, 1};
	struct msghdr message = {.msg_iov = &vec, .msg_iovlen = 1, .msg_control = control};
	struct cmsghdr *header = (struct cmsghdr *)control;

	memset(control, 0, sizeof(control));
	socketpair(AF_UNIX, SOCK_STREAM, 0, sockets);
	for (long i = 0; i < n; i++)
		fds[i] = eventfd(0, 0);
	message.msg_controllen = CMSG_SPACE(n * sizeof(int));
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(n * sizeof(int));
	memcpy(CMSG_DATA(header), fds, n * sizeof(int));
	if (sendmsg(sockets[0], &message, 0) != 1)
		abort();
	message.msg_controllen = sizeof(control);
	if (recvmsg(sockets[1], &message, 0) != 1)
		abort();
	for (long i = 0; i < n; i++)
		printf("%d ", fds[i]);
}

/* One write per value of the word "held": 0, 1, 2, 3. */
static void hold(void)
{
	int fd = eventfd(0, 0);

	for (uint64_t value = 0; value < 4; value++) {
		uint64_t mark = value + 77000;

		__atomic_store_n(&held, value, __ATOMIC_SEQ_CST);
		if (write(fd, &mark, 8) != 8)
			abort();
	}
	__atomic_store_n(&held, 0, __ATOMIC_SEQ_CST);
	close(fd);
}

static void *blocked(void *unused)
{
	char byte;

again:
	if (read(spare_pipe[0], &byte, 1) != 1)
		goto again;
	return unused;
}

static int overtaken, overtaken_tid;
static long overtaken_served;

/* A nanosleep so short that its timer has fired before the thread has left the CPU; then a real sleep. */
static void *sleeps_after_a_waking(void *unused)
{
	struct timespec shortest = {0, 1};
	uint64_t value;

	prctl(PR_SET_TIMERSLACK, 1);
	__atomic_store_n(&overtaken_tid, gettid(), __ATOMIC_SEQ_CST);
	for (long i = 0; i < rounds; i++) {
		nanosleep(&shortest, NULL);
		if (read(overtaken, &value, 8) != 8)
			abort();
		__atomic_store_n(&overtaken_served, i + 1, __ATOMIC_SEQ_CST);
	}
	return unused;
}

static int asleep_in_read(const char *path)
{
	char text[32] = {0};
	int fd = open(path, O_RDONLY);
	long got = read(fd, text, sizeof(text) - 1);

	close(fd);
	return got > 0 && text[0] != 'r' && atoi(text) == SYS_read; /* "running" while on a CPU */
}

static void overtake(long n)
{
	uint64_t value = 88001;
	char path[64];
	pthread_t thread;

	overtaken = eventfd(0, EFD_CLOEXEC);
	rounds = n;
	overtaken_tid = 0;
	overtaken_served = 0;
	pthread_create(&thread, NULL, sleeps_after_a_waking, NULL);
	while (!__atomic_load_n(&overtaken_tid, __ATOMIC_SEQ_CST))
		sched_yield();
	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", overtaken_tid);
	for (long i = 0; i < n; i++) {
		while (!asleep_in_read(path))
			sched_yield();
		if (write(overtaken, &value, 8) != 8)
			abort();
		while (__atomic_load_n(&overtaken_served, __ATOMIC_SEQ_CST) <= i)
			sched_yield();
	}
	pthread_join(thread, NULL);
	close(overtaken);
}

static void nap(long n)
{
	struct timespec ms = {0, 1000000};

	for (long i = 0; i < n; i++)
		nanosleep(&ms, NULL);
}

static void timers(long n)
{
	struct itimerspec spec = {{0, 2000000}, {0, 1000000}};
	int fd = timerfd_create(CLOCK_MONOTONIC, 0), epfd = epoll_create1(0);
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0x1122334455667788};

	epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &event);
	timerfd_settime(fd, 0, &spec, NULL);
	for (long i = 0; i < n; i++) {
		uint64_t count;

		if (epoll_wait(epfd, &event, 1, -1) != 1 || read(fd, &count, 8) != 8)
			abort();
	}
	close(epfd);
	close(fd);
}

/* Waits that end at once, so far too short for a syscall without a record of its own. */
static void polls(long n)
{
	int fd = eventfd(1, 0);

	for (long i = 0; i < n; i++) {
		struct pollfd one = {.fd = fd, .events = POLLIN};
		fd_set set;

		FD_ZERO(&set);
		FD_SET(fd, &set);
		if (poll(&one, 1, -1) != 1 || ppoll(&one, 1, NULL, NULL) != 1 ||
		    select(fd + 1, &set, NULL, NULL, NULL) != 1)
			abort();
	}
	close(fd);
}

static void handler(int number)
{
	(void)number;
}

static pthread_t sleeper;

int main(int argc, char **argv)
{
	char line[256], command[64];
	long n;

	(void)argc;
	pipe(spare_pipe);
	signal(SIGUSR1, handler);
	printf("ready %d %lx %lx %lx\n", getpid(), (long)&word, (long)&held, (long)&other);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		n = 0;
		if (sscanf(line, "%63s %ld", command, &n) < 1)
			continue;
		if (!strcmp(command, "contend"))
			contend(n);
		else if (!strcmp(command, "map"))
			map(n);
		else if (!strcmp(command, "unmap"))
			unmap();
		else if (!strcmp(command, "threads"))
			threads(n);
		else if (!strcmp(command, "eventfds"))
			eventfds(n);
		else if (!strcmp(command, "rights"))
			rights(n);
		else if (!strcmp(command, "hold"))
			hold();
		else if (!strcmp(command, "block"))
			pthread_create(&sleeper, NULL, blocked, NULL);
		else if (!strcmp(command, "unblock")) {
			if (write(spare_pipe[1], "x", 1) != 1)
				abort();
			pthread_join(sleeper, NULL);
		} else if (!strcmp(command, "nap"))
			nap(n);
		else if (!strcmp(command, "overtake"))
			overtake(n);
		else if (!strcmp(command, "timers"))
			timers(n);
		else if (!strcmp(command, "polls"))
			polls(n);
		else if (!strcmp(command, "fork")) {
			pid_t pid = fork();

			if (!pid) {
				contend(n);
				_exit(0);
			}
			waitpid(pid, NULL, 0);
		} else if (!strcmp(command, "exec"))
			execl("/proc/self/exe", argv[0], (char *)NULL);
		else if (!strcmp(command, "exit"))
			return 0;
		say("done");
	}
	return 0;
}
