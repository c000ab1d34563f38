/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's types, and the one way of reading its memory.
 *
 * The compiling child prints the types from BTF in front of the program. Without BTF the
 * headers package has the same types, netfilter's private ones aside.
 */
#ifndef NT_KERNEL_H
#define NT_KERNEL_H

#include <linux/types.h>

#ifdef NT_HEADERS
#include <linux/skbuff.h>
#include <linux/netdevice.h>
#include <linux/netfilter.h>
#include <linux/netfilter/x_tables.h>
#include <net/netfilter/nf_tables.h>
#include <net/sock.h>
/* A bit field, behind the count of uses. */
#define NT_OFFSET_NFT_TABLE_FAMILY \
	(__builtin_offsetof(struct nft_table, use) + 4)
#endif

/* Of modules that are not loaded: nothing of theirs can be met, but C wants the types. */
#ifdef NT_MISSING_NFT_CHAIN
struct nft_table {
	__u64 handle;
	char *name;
};
struct nft_chain {
	struct nft_table *table;
	__u64 handle;
	char *name;
};
#define NT_OFFSET_NFT_TABLE_FAMILY 0
#endif
#ifdef NT_MISSING_XT_TABLE
struct xt_table {
	void *private;
	char name[32];
};
#endif

/*
 * bcc takes the older helpers, which programs on netfilter's hooks may not call, where it
 * does not find these among the kernel's symbols: as without CAP_SYSLOG. They came with 5.5.
 */
#undef bpf_probe_read_kernel
#undef bpf_probe_read_kernel_str

#define NT_INLINE static inline __attribute__((always_inline))

/*
 * Read a value from a kernel address into *to*. What cannot be read is zero.
 *
 * Where the kernel has bpf_rdonly_cast() for plain memory, a read is one instruction: the
 * call is the verifier's business and leaves nothing behind, and a fault is fixed up.
 * NT_CAST is the number that bpf.child replaces by the function's own. Elsewhere it is a
 * helper's work, ten times as long.
 */
#ifdef NT_CAST
static const void *(*nt_cast)(u64 address, u32 type) = (void *)NT_CAST;
#define nt_read(to, from) \
	((void)(*(to) = *(typeof(*(to)) *)nt_cast((u64)(from), 0)))
/* Read *count* values that follow one another. */
#define nt_read_words(to, from, count)                                 \
	do {                                                           \
		_Pragma("unroll") for (int nt_at = 0; nt_at < (count); \
				       nt_at++)                        \
			nt_read((to) + nt_at,                          \
				(u64)(from) + sizeof(*(to)) * nt_at);  \
	} while (0)
#else
#define nt_read(to, from) \
	bpf_probe_read_kernel((void *)(to), sizeof(*(to)), (const void *)(from))
#define nt_read_words(to, from, count)                               \
	bpf_probe_read_kernel((void *)(to), sizeof(*(to)) * (count), \
			      (const void *)(from))
#endif

#endif
