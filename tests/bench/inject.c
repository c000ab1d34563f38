// SPDX-License-Identifier: Apache-2.0
/*
 * Put UDP packets into this namespace's lo, as if they had been received there, as fast as
 * the kernel takes them in: no sender's work, no cable, several times what a socket sends.
 *
 * The kernel runs an XDP program that passes every one of them on
 * (BPF_F_TEST_XDP_LIVE_FRAMES, b530e9e1063e in Linux 5.18). Each line on standard input is
 * a number of packets; answered by one line with the nanoseconds that they took, by the
 * kernel's own clock: without the 20 ms in which it sets up and takes down what makes them,
 * and without the turns that it gives to others meanwhile.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/bpf.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Frames in a batch: the kernel's default, with which it takes as many as it can. */
#define BATCH 64
#define FRAME_BYTES 60
#define PAYLOAD_BYTES 18

static void fail(const char *what)
{
	fprintf(stderr, "inject: %s: %s\n", what, strerror(errno));
	exit(1);
}

static long bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static int load_pass(void)
{
	struct bpf_insn code[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .imm = XDP_PASS },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attr;
	long fd;

	memset(&attr, 0, sizeof(attr));
	attr.prog_type = BPF_PROG_TYPE_XDP;
	attr.insns = (uintptr_t)code;
	attr.insn_cnt = sizeof(code) / sizeof(code[0]);
	attr.license = (uintptr_t) "GPL";
	fd = bpf(BPF_PROG_LOAD, &attr);
	if (fd < 0)
		fail("BPF_PROG_LOAD");
	return (int)fd;
}

static uint16_t checksum(const uint8_t *header)
{
	uint32_t sum = 0;

	for (int i = 0; i < 20; i += 2)
		sum += (uint32_t)header[i] << 8 | header[i + 1];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static void put16(uint8_t *to, unsigned int value)
{
	to[0] = (uint8_t)(value >> 8);
	to[1] = (uint8_t)value;
}

/* lo's own MAC is zero, so the frame's destination is. No UDP checksum: 0 is none. */
static void fill_frame(uint8_t *frame, const char *src, const char *dst,
		       int port)
{
	uint8_t *ip = frame + 14;

	memset(frame, 0, FRAME_BYTES);
	put16(frame + 12, 0x0800);
	ip[0] = 0x45;
	put16(ip + 2, 28 + PAYLOAD_BYTES);
	ip[8] = 64;
	ip[9] = IPPROTO_UDP;
	if (inet_pton(AF_INET, src, ip + 12) != 1 ||
	    inet_pton(AF_INET, dst, ip + 16) != 1)
		fail("inet_pton");
	put16(ip + 10, checksum(ip));
	put16(ip + 20, 4000);
	put16(ip + 22, (unsigned int)port);
	put16(ip + 24, 8 + PAYLOAD_BYTES);
}

static uint64_t inject(int program, const uint8_t *frame, uint32_t count)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.test.prog_fd = (uint32_t)program;
	attr.test.data_in = (uintptr_t)frame;
	attr.test.data_size_in = FRAME_BYTES;
	attr.test.repeat = count;
	attr.test.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
	attr.test.batch_size = BATCH;
	if (bpf(BPF_PROG_TEST_RUN, &attr) < 0)
		fail("BPF_PROG_TEST_RUN");
	/* A mean, in whole nanoseconds. */
	return (uint64_t)attr.test.duration * count;
}

int main(int argc, char **argv)
{
	uint8_t frame[FRAME_BYTES];
	cpu_set_t cpus;
	unsigned int count;
	int program;

	if (argc != 5) {
		fprintf(stderr, "usage: inject SRC DST PORT CPU\n");
		return 2;
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[4]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus) < 0)
		fail("sched_setaffinity");
	fill_frame(frame, argv[1], argv[2], atoi(argv[3]));
	program = load_pass();
	while (scanf("%u", &count) == 1) {
		printf("%llu\n",
		       (unsigned long long)inject(program, frame, count));
		fflush(stdout);
	}
	return 0;
}
