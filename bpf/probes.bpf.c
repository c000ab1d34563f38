// SPDX-License-Identifier: Apache-2.0
/*
 * Compiled behind drops.bpf.c: the place of a drop out of the functions that decide it,
 * for kernels whose saved registers are not found.
 *
 * Each program leaves in `located` what on_kfree_skb_count() takes up when the packet is
 * freed on the same CPU an instant later: ipt_do_table() returns NF_DROP to
 * nf_hook_slow(), which frees; __nft_trace_packet() is called with the verdict right
 * before nft_do_chain() frees. Nothing is written for a packet that lives, so that no
 * stale entry can meet another packet. What a softirq overwrites in between does not
 * match the packet and is counted as not located.
 *
 * Each runs for every packet, in the shape that NT_ARG0_* say the kernel has:
 *  - ipt_do_table(table, skb, state) since 5.16, before it (skb, state, table);
 *    ip6t_do_table() alike;
 *  - __nft_trace_packet(pkt, verdict, rule, info, type) since 6.4, before it
 *    (info, chain, type). It is called for every verdict of
 *    the machine while any rule, hooked or not, says `meta nftrace set`.
 */
#include "registers.h"

#ifndef NT_HEADERS /* without BTF nobody says which shape it is */
#define NT_TRACETYPE_POLICY 1
#define NT_TRACETYPE_RULE 3
/* Calls of ipt_do_table() in one another: a target that sends, a softirq in between. */
#define NT_CALLS_MAX 8

struct nt_call {
	u64 frame; /* stack pointer at the entry */
	u64 table;
	u64 skb;
	u64 state;
};

struct nt_calls {
	u32 depth;
	u32 pad;
	struct nt_call call[NT_CALLS_MAX];
};

BPF_PERCPU_ARRAY(table_calls, struct nt_calls, 1);

NT_INLINE struct nt_located *nt_leave(u64 skb, u64 state, u32 site)
{
	struct nt_located *at;
	int zero = 0;

	at = located.lookup(&zero);
	if (!at)
		return NULL;
	at->skb = skb;
	at->state = (const struct nf_hook_state *)state;
	at->site = site;
	at->found = NT_FOUND_SURE;
	return at;
}

NT_INLINE void nt_leave_table(u64 table, u64 skb, u64 state, u64 verdict)
{
	struct nt_located *at;

	if ((verdict & 0xff) != 0) /* NF_VERDICT_MASK, NF_DROP */
		return;
	at = nt_leave(skb, state, NT_SITE_HOOK);
	if (!at)
		return;
	at->entry[0] = NT_FUNCTION_LEGACY;
	at->entry[1] = table;
	at->rule = 0;
}

NT_INLINE int nt_enter_table(u64 frame, u64 table, u64 skb, u64 state)
{
	struct nt_calls *calls;
	int zero = 0;
	u32 depth;

	calls = table_calls.lookup(&zero);
	if (!calls)
		return 0;
	/* Entries whose return was not seen are overwritten, the oldest first. */
	depth = calls->depth & (NT_CALLS_MAX - 1);
	calls->call[depth].frame = frame;
	calls->call[depth].table = table;
	calls->call[depth].skb = skb;
	calls->call[depth].state = state;
	calls->depth = (depth + 1) & (NT_CALLS_MAX - 1);
	return 0;
}

/* The table, the packet and the state are arguments *t*, *p* and *s* of *function*. */
#define NT_TABLE(function, t, p, s)                                      \
	/* fexit: the arguments are at hand when the verdict is. */      \
	int on_##function##_exit(struct bpf_raw_tracepoint_args *ctx)    \
	{                                                                \
		nt_leave_table(ctx->args[t], ctx->args[p], ctx->args[s], \
			       ctx->args[3]);                            \
		return 0;                                                \
	}                                                                \
	int on_##function##_entry(struct pt_regs *ctx)                   \
	{                                                                \
		return nt_enter_table(NT_STACK(ctx), NT_PARM(ctx, t),    \
				      NT_PARM(ctx, p), NT_PARM(ctx, s)); \
	}

#ifdef NT_ARG0_IPT_DO_TABLE_SKB
NT_TABLE(ipt, 2, 0, 1)
#else
NT_TABLE(ipt, 0, 1, 2)
#endif
#ifdef NT_ARG0_IP6T_DO_TABLE_SKB
NT_TABLE(ip6t, 2, 0, 1)
#else
NT_TABLE(ip6t, 0, 1, 2)
#endif

/*
 * Pair a return with its call by the stack pointer: those above it returned unseen. One
 * that moved to another CPU, or was overwritten, has none, and nothing is claimed.
 */
int on_table_return(struct pt_regs *ctx)
{
	u64 frame = NT_STACK(ctx) - NT_RETURN_BYTES;
	struct nt_calls *calls;
	struct nt_call *call;
	int zero = 0;
	u32 depth;

	calls = table_calls.lookup(&zero);
	if (!calls)
		return 0;
	for (int i = 1; i <= NT_CALLS_MAX; i++) {
		depth = (calls->depth - i) & (NT_CALLS_MAX - 1);
		call = &calls->call[depth];
		if (call->frame != frame)
			continue;
		call->frame = 0;
		calls->depth = depth;
		nt_leave_table(call->table, call->skb, call->state,
			       NT_RESULT(ctx));
		break;
	}
	return 0;
}

#ifndef NT_MISSING_NFT_TRACEINFO
/* *rule* and *verdict* are the kernel's pointers, or 0 for a policy. */
NT_INLINE int nt_leave_nft(u64 pkt, u64 info, u64 verdict, u64 rule, u32 type)
{
	const struct nft_pktinfo *packet = (const struct nft_pktinfo *)pkt;
	const struct nft_traceinfo *trace = (const struct nft_traceinfo *)info;
	const struct nft_base_chain *base = NULL;
	struct nt_located *at;
	u64 skb = 0, state = 0;
	u32 code = 0;
	u8 policy = 1;

	nt_read(&base, &trace->basechain);
	if (!base)
		return 0;
	if (type == NT_TRACETYPE_POLICY) {
		nt_read(&policy, &base->policy);
		if (policy != 0) /* NF_DROP */
			return 0;
	} else if (type == NT_TRACETYPE_RULE && verdict) {
		nt_read(&code, &((const struct nft_verdict *)verdict)->code);
		if (code >> 31 || (code & 0xff) != 0)
			return 0;
	} else {
		return 0;
	}
	nt_read(&skb, &packet->skb);
#ifdef NT_OFFSET_NFT_PKTINFO_STATE
	nt_read(&state, &packet->state);
#else
	nt_read(&state, &packet->xt.state); /* before 5.14 */
#endif
	at = nt_leave(skb, state,
		      type == NT_TRACETYPE_POLICY ? NT_SITE_NFT_POLICY
						  : NT_SITE_NFT_RULE);
	if (!at)
		return 0;
	at->entry[0] = 0;
	at->entry[1] = (u64)&base->chain;
	at->rule = 0;
	if (type == NT_TRACETYPE_POLICY || !rule)
		return 0;
#ifdef NT_MISSING_NFT_RULE_DP
	/* struct nft_rule before 5.17: a list's two pointers, handle:42 */
	nt_read(&at->rule, rule + 16);
	at->rule <<= 13;
#else
	nt_read(&at->rule, rule);
#endif
	return 0;
}

NT_INLINE int nt_leave_old_nft(u64 info, u32 type)
{
	const struct nft_traceinfo *trace = (const struct nft_traceinfo *)info;
	u64 pkt = 0, verdict = 0, rule = 0;

#ifdef NT_ARG0___NFT_TRACE_PACKET_INFO
	nt_read(&pkt, &trace->pkt);
	nt_read(&verdict, &trace->verdict);
	nt_read(&rule, &trace->rule);
#endif
	return nt_leave_nft(pkt, info, verdict, rule, type);
}

int on_nft_entry(struct bpf_raw_tracepoint_args *ctx)
{
#ifdef NT_ARG0___NFT_TRACE_PACKET_INFO
	return nt_leave_old_nft(ctx->args[0], ctx->args[2]);
#else
	return nt_leave_nft(ctx->args[0], ctx->args[3], ctx->args[1],
			    ctx->args[2], ctx->args[4]);
#endif
}

int on_nft_call(struct pt_regs *ctx)
{
#ifdef NT_ARG0___NFT_TRACE_PACKET_INFO
	return nt_leave_old_nft(NT_PARM(ctx, 0), NT_PARM(ctx, 2));
#else
	return nt_leave_nft(NT_PARM(ctx, 0), NT_PARM(ctx, 3), NT_PARM(ctx, 1),
			    NT_PARM(ctx, 2), NT_PARM(ctx, 4));
#endif
}
#endif
#endif
