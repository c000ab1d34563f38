// SPDX-License-Identifier: Apache-2.0
/*
 * Send an exact number of UDP packets, as fast as the machine can or at a rate.
 *
 * The payload is the packet's number (8 bytes, big endian), then zeros. Source
 * ports go round: packet i leaves from source port number i modulo PORTS.
 * One line on standard output: packets sent, nanoseconds taken.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

/* One sendmmsg: beyond 64 the time per packet falls no further. */
#define BATCH 64
/* Sockets open at once; a process may have 1024 descriptors. */
#define PORTS_MAX 512
/* The largest UDP payload that one Ethernet frame carries. */
#define SIZE_MAX_BYTES 1472

struct options {
	const char *dst;
	const char *src;
	long count;
	long rate;
	long size;
	int port;
	int sport;
	int ports;
	int cpu;
};

static void fail(const char *what)
{
	fprintf(stderr, "flood: %s: %s\n", what, strerror(errno));
	exit(1);
}

static socklen_t fill_address(struct sockaddr_storage *to, const char *text,
			      int port)
{
	struct sockaddr_in *v4 = (void *)to;
	struct sockaddr_in6 *v6 = (void *)to;

	memset(to, 0, sizeof(*to));
	if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(port);
		return sizeof(*v4);
	}
	if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons(port);
		return sizeof(*v6);
	}
	errno = EINVAL;
	fail(text);
	return 0;
}

static int open_socket(const struct options *opt, int index)
{
	struct sockaddr_storage addr;
	socklen_t len = fill_address(&addr, opt->dst, opt->port);
	const char *any = addr.ss_family == AF_INET ? "0.0.0.0" : "::";
	int fd = socket(addr.ss_family, SOCK_DGRAM, 0);

	if (fd < 0)
		fail("socket");
	if (opt->sport || opt->src) {
		struct sockaddr_storage own;
		int port = opt->sport ? opt->sport + index : 0;
		socklen_t own_len =
			fill_address(&own, opt->src ? opt->src : any, port);

		if (bind(fd, (void *)&own, own_len) < 0)
			fail("bind");
	}
	if (connect(fd, (void *)&addr, len) < 0)
		fail("connect");
	return fd;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* Send packets first, first + step, …: n of them, from one socket. */
static void send_batch(int fd, long first, long step, int n, long size)
{
	static char payload[BATCH][SIZE_MAX_BYTES];
	struct mmsghdr msgs[BATCH];
	struct iovec iov[BATCH];
	int sent = 0;

	memset(msgs, 0, sizeof(msgs));
	for (int i = 0; i < n; i++) {
		uint64_t number = htobe64((uint64_t)(first + i * step));

		memcpy(payload[i], &number, sizeof(number));
		iov[i].iov_base = payload[i];
		iov[i].iov_len = (size_t)size;
		msgs[i].msg_hdr.msg_iov = &iov[i];
		msgs[i].msg_hdr.msg_iovlen = 1;
	}
	while (sent < n) {
		int got =
			sendmmsg(fd, msgs + sent, (unsigned int)(n - sent), 0);

		if (got > 0)
			sent += got;
		/*
		 * ECONNREFUSED tells of an earlier packet and sends nothing;
		 * a full queue (ENOBUFS, EAGAIN) empties: try again.
		 */
		else if (errno != ECONNREFUSED && errno != ENOBUFS &&
			 errno != EAGAIN && errno != EINTR)
			fail("sendmmsg");
	}
}

static void wait_for_rate(uint64_t start, long sent, long rate)
{
	uint64_t due;
	struct timespec ts;

	if (!rate)
		return;
	due = start + (uint64_t)((double)sent / (double)rate * 1e9);
	ts.tv_sec = (time_t)(due / 1000000000ull);
	ts.tv_nsec = (long)(due % 1000000000ull);
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
}

static void send_all(const struct options *opt, const int *fds)
{
	/* At a rate: small batches, about a millisecond's worth. */
	long paced = opt->rate / 1000 > 0 ? opt->rate / 1000 : 1;
	long batch = opt->rate && paced < BATCH ? paced : BATCH;
	uint64_t start = now_ns();
	long sent = 0;

	while (sent < opt->count) {
		long left = opt->count - sent;
		long round = batch * opt->ports;

		/* Packet i leaves from socket i % ports, in any case. */
		if (round > left)
			round = left;
		for (int p = 0; p < opt->ports && p < round; p++) {
			int n = (int)((round - p - 1) / opt->ports + 1);

			send_batch(fds[p], sent + p, opt->ports, n, opt->size);
		}
		sent += round;
		wait_for_rate(start, sent, opt->rate);
	}
	printf("%ld %llu\n", sent, (unsigned long long)(now_ns() - start));
}

static void pin(int cpu)
{
	cpu_set_t set;

	if (cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set) < 0)
		fail("sched_setaffinity");
}

static const struct option long_options[] = {
	{ "dst", required_argument, NULL, 'd' },
	{ "src", required_argument, NULL, 'a' },
	{ "port", required_argument, NULL, 'p' },
	{ "count", required_argument, NULL, 'n' },
	{ "rate", required_argument, NULL, 'r' },
	{ "cpu", required_argument, NULL, 'c' },
	{ "sport", required_argument, NULL, 's' },
	{ "ports", required_argument, NULL, 'm' },
	{ "size", required_argument, NULL, 'z' },
	{ NULL, 0, NULL, 0 },
};

static void set_option(struct options *opt, int letter)
{
	switch (letter) {
	case 'd':
		opt->dst = optarg;
		break;
	case 'a':
		opt->src = optarg;
		break;
	case 'p':
		opt->port = atoi(optarg);
		break;
	case 'n':
		opt->count = atol(optarg);
		break;
	case 'r':
		opt->rate = atol(optarg);
		break;
	case 'c':
		opt->cpu = atoi(optarg);
		break;
	case 's':
		opt->sport = atoi(optarg);
		break;
	case 'm':
		opt->ports = atoi(optarg);
		break;
	case 'z':
		opt->size = atol(optarg);
		break;
	default:
		exit(2);
	}
}

int main(int argc, char **argv)
{
	struct options opt = { .cpu = -1, .ports = 1, .port = 9, .size = 18 };
	int fds[PORTS_MAX];
	int letter;

	while ((letter = getopt_long(argc, argv, "", long_options, NULL)) != -1)
		set_option(&opt, letter);
	if (!opt.dst || opt.count < 1 || opt.ports < 1 ||
	    opt.ports > PORTS_MAX || opt.size < 8 ||
	    opt.size > SIZE_MAX_BYTES) {
		fprintf(stderr, "flood: --dst ADDR --count N, 1 <= --ports <= "
				"512, 8 <= --size <= 1472\n");
		return 2;
	}
	pin(opt.cpu);
	for (int i = 0; i < opt.ports; i++)
		fds[i] = open_socket(&opt, i);
	send_all(&opt, fds);
	return 0;
}
