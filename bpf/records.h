/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What programs tell user space. bpf/layout.py mirrors every structure here, and
 * tests/bpf/test_layout.py compares the two member by member.
 */
#ifndef NT_RECORDS_H
#define NT_RECORDS_H

#include <linux/types.h>

/* As in tracer.core.events.PACKET: a whole IPv6 or optionless IPv4 header, and TCP's. */
#define NT_NETWORK_BYTES 40
#define NT_TRANSPORT_BYTES 20

/* nt_drop_key.site: where in the kernel a packet was freed. */
enum nt_site {
	NT_SITE_OTHER = 0, /* not by netfilter */
	NT_SITE_HOOK =
		1, /* nf_hook_slow(): legacy tables and everything else */
	NT_SITE_NFT_RULE = 2,	/* nft_do_chain(), a rule's verdict */
	NT_SITE_NFT_POLICY = 3, /* nft_do_chain(), a base chain's policy */
	NT_SITES = 4,
};

/* nt_config.mode: what else happens than counting. */
enum nt_mode {
	NT_MODE_OFF = 0,
	NT_MODE_COUNT = 1,
	NT_MODE_RECORD = 2,
	NT_MODE_SAMPLE = 3, /* one in nt_config.sample on each CPU */
};

/* What the programs count about themselves, by index into nt_stats. */
enum nt_stat {
	NT_STAT_SEEN = 0,
	NT_STAT_COUNTS_FULL =
		1, /* counted nowhere else: the table of counts was full */
	NT_STAT_RESERVE_FAILED = 2, /* not recorded: the ring was full */
	NT_STAT_RECORDED = 3,
	NT_STAT_UNLOCATED =
		4, /* freed by netfilter, the saved registers not found */
	NT_STAT_PLACES_FULL = 5,
	NT_STAT_STALE_RULES = 6, /* legacy ruleset replaced since it was read */
	NT_STATS = 8,
};

struct nt_stats {
	__u64 count[NT_STATS];
};

/* nt_drop_key.hook where it is not known. */
#define NT_NO_HOOK 255

/* nt_drop_key.looks: of how many such drops the legacy rule was looked for. */
enum nt_looks {
	NT_LOOKS_ALL = 0,
	NT_LOOKS_SOME = 1, /* of one in so many; *rule* is 0 for the others */
};

/* nt_config.filters */
#define NT_FILTER_NETNS 1
#define NT_FILTER_FLOW 2

/*
 * One kind of drop. *place* is the hook entry's private pointer (xt_table, nft_chain),
 * its function where it has none, or the freeing address outside netfilter. *tag*
 * tells apart objects that had the same address one after another. *rule* is nft's
 * handle; for a legacy table the index of the dropping rule plus one, below the reading's
 * generation in the upper half; 0 for unknown.
 */
struct nt_drop_key {
	__u64 place;
	__u64 tag;
	__u64 rule;
	__u32 netns;
	__u32 reason;
	__u8 hook;
	__u8 site;
	__u8 family; /* nf_hook_state.pf, or 0 */
	__u8 certain; /* 0: two or more legacy rules moved; *rule* is one of them */
	__u8 looks; /* enum nt_looks */
	__u8 pad[3];
};

/* Numbers of kinds that are free: *count* of them from *first* on. */
struct nt_numbers {
	__u32 first;
	__u32 count;
};

struct nt_drop_count {
	__u64 packets;
	__u64 bytes;
};

/* What stands at a place: filled in by the first drop there, while it surely lives. */
struct nt_place {
	__u64 function; /* the hook entry's */
	char table[32];
	char chain[32];
	__u8 family; /* the nft table's, NFPROTO */
	__u8 pad[7];
};

struct nt_place_key {
	__u64 place;
	__u64 tag;
};

/*
 * One drop. *weight*: how many drops it stands for. *rule_weight*: how many its legacy rule
 * was looked for in, where that was not all; else 0. Times are CLOCK_MONOTONIC.
 */
struct nt_drop_record {
	__u64 time_ns;
	struct nt_drop_key key;
	__u32 ifindex;
	__u32 iif;
	__u32 mark;
	__u32 length; /* skb->len */
	__u32 weight;
	__u16 protocol; /* EtherType */
	__u8 ct;	/* enum ip_conntrack_info plus one, 0 for none */
	__u8 pad;
	__u16 rule_weight;
	__u8 lengths[2]; /* bytes of network and transport header in raw */
	__u8 raw[NT_NETWORK_BYTES + NT_TRANSPORT_BYTES];
};

/* nt_event.kind */
enum nt_event_kind {
	NT_EVENT_RECEIVED = 1,
	NT_EVENT_SENT = 2,
	NT_EVENT_DELIVERED = 3,
	NT_EVENT_DROPPED = 4,
};

/* What befell one followed packet in one namespace. */
struct nt_event {
	__u64 time_ns;
	__u64 location;
	__u32 netns;
	__u32 ifindex;
	__u32 reason;
	__u32 mark;
	__u32 length;
	__u16 protocol;
	__u8 kind;
	__u8 pad[3];
	__u8 lengths[2]; /* bytes of network and transport header in raw */
	__u8 raw[NT_NETWORK_BYTES + NT_TRANSPORT_BYTES];
};

/*
 * One kind of packet to follow: the packet's words under *mask* equal *value*. The
 * words are src, dst, then ports, then family and protocol, all in network order.
 */
struct nt_flow {
	__u32 src[4];
	__u32 dst[4];
	__u16 sport;
	__u16 dport;
	__u8 family; /* 4 or 6 */
	__u8 proto;
	__u16 pad;
};

struct nt_match {
	struct nt_flow value;
	struct nt_flow mask;
};

/* An arming has a handful of words; each costs every packet some nanoseconds. */
#define NT_MATCHES_MAX 16

struct nt_matches {
	__u32 count;
	struct nt_match match[NT_MATCHES_MAX];
};

/*
 * Where the saved registers lie, in words above the program's frame pointer; see
 * tracer/core/drop_layout.py. *location* holds the freeing address, *caller* the return
 * address into nf_hook_slow(), whose value is *caller_ip* (0: no such check). A *rule*
 * word of 0 says that there is none.
 */
struct nt_layout {
	__u64 caller_ip;
	__u16 location;
	__u16 caller;
	__u16 state;
	__u16 index;
	__u16 entries;
	__u16 rule;
	__u32 pad;
};

/* Hook functions with other frames: ip, ip6 or inet, nat, ingress. */
#define NT_LAYOUTS_MAX 6

struct nt_config {
	__u64 location[NT_SITES]; /* freeing address of a site, 0 for unknown */
	__u64 percpu_base;	  /* see nt_find_rule() */
	__u32 mode;
	__u32 sample;
	__u32 locate; /* bit 1 << site */
	__u32 rules; /* 0 off, n: compare the rules' counters at one in n drops */
	__u32 calm; /* and at so many of each window on a CPU in any case */
	__u32 filters;
	struct nt_layout layout[NT_SITES][NT_LAYOUTS_MAX];
};

/*
 * The dropping rules of a legacy table: addresses of their counters. *private* is
 * xt_table.private when they were read; another one means another ruleset.
 */
#define NT_RULES_MAX 128

struct nt_rules {
	__u64 address; /* of the table itself; 0 for none */
	__u64 private;
	__u32 count;
	__u32 generation; /* of the reading: indexes mean nothing without it */
	__u64 counter[NT_RULES_MAX];
};

struct nt_seen_rules {
	__u64 private;
	__u64 skipped; /* drops since the counters were last compared on this CPU */
	__u64 packets[NT_RULES_MAX];
};

/* One stack as the calibrating program found it: words, and what each points at. */
#define NT_WORDS 128

struct nt_stack {
	__u64 location;
	__u64 frame;
	__u16 dport; /* network order */
	__u16 pad[3];
	__u64 word[NT_WORDS];
	__u64 target[NT_WORDS];
};

/* A read that user space asks for. */
#define NT_PEEK_BYTES 4096

struct nt_peek {
	__u64 address;
	__u64 task; /* the asking thread's task_struct */
	__u64 self; /* this CPU's value in the map scratches */
	__u32 length;
	__s32 error;
	__u8 bytes[NT_PEEK_BYTES];
};

/* nt_located.found: how sure the place is. */
#define NT_FOUND_SURE 1
#define NT_FOUND_UNSURE 2

/* nt_place.function of a legacy table where the drop does not tell the hook's own. */
#define NT_FUNCTION_LEGACY 1

/*
 * What a link's note means. *ordinal* counts the links of a namespace's hook;
 * NT_MARK_SOLE, with *hook* 0, is for the one place of a namespace that can drop.
 * *is_nft* tells apart tables of one priority.
 */
#define NT_MARK_SOLE 0xffff

struct nt_mark_key {
	__u32 netns;
	__u16 ordinal;
	__u8 hook;
	__u8 pf;
	__u32 is_nft;
};

/* The hook entry that drops behind a mark; *doubtful*: another may do so, too. */
struct nt_mark {
	__u64 function;
	__u64 private;
	__u8 hook;
	__u8 pf;
	__u8 doubtful;
	__u8 pad[5];
};

#define NT_EXEC_BYTES 216

/* A program that began to run. */
struct nt_exec {
	__u64 time_ns;
	__u32 pid;
	__u32 parent;
	__u32 length; /* bytes of arguments, which may be more than are here */
	__u32 pad;
	char process[16];
	char arguments[NT_EXEC_BYTES]; /* each ends with NUL */
};

#endif
