// SPDX-License-Identifier: Apache-2.0
/*
 * Compiled behind drops.bpf.c: the place of a drop out of marks between the tables.
 *
 * A netfilter link before each table that can drop notes on its CPU which packet goes
 * into which table; when that packet is freed by netfilter, the last note says where.
 * Between two tables alone would not do: an skb's address is used again at once, and a
 * note of another packet that had it would be taken for this one's. What note stands for
 * which table in which namespace, user space keeps in `marks`. Where one table alone can
 * drop, there is no link, and marks holds it under the ordinal NT_MARK_SOLE.
 * The call of a link costs each packet 22 to 33 ns on Linux 6.18, whatever it does.
 */
struct nt_mark_slot {
	u64 skb;
	u8 place[2]; /* nf_hook_state: hook, pf */
	u16 ordinal;
	u32 pad;
};

BPF_PERCPU_ARRAY(mark_slots, struct nt_mark_slot, 1);
BPF_TABLE("hash", struct nt_mark_key, struct nt_mark, marks, NT_MARKS_MAX);
BPF_PERCPU_ARRAY(mark_states, struct nf_hook_state, 1);

struct nt_mark_context {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
};

NT_INLINE int nt_note(struct nt_mark_context *ctx, u16 ordinal)
{
	struct nt_mark_slot *slot;
	int zero = 0;

	slot = mark_slots.lookup(&zero);
	if (!slot)
		return 1; /* NF_ACCEPT */
	slot->skb = (u64)ctx->skb;
	slot->ordinal = ordinal;
	nt_read((u16 *)slot->place, &ctx->state->hook);
	return 1;
}

/* The context does not say which link runs: each ordinal has a program of its own. */
#define NT_NOTE(n)                                   \
	int on_mark_##n(struct nt_mark_context *ctx) \
	{                                            \
		return nt_note(ctx, n);              \
	}
NT_NOTE(0)
NT_NOTE(1)
NT_NOTE(2)
NT_NOTE(3)
NT_NOTE(4)
NT_NOTE(5)
NT_NOTE(6)
NT_NOTE(7)
NT_NOTE(8)
NT_NOTE(9)
NT_NOTE(10)
NT_NOTE(11)

/* On kfree_skb before on_kfree_skb_count(): turn the note into a place. */
int on_kfree_skb_mark(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[0];
	const struct net_device *dev = NULL;
	struct nf_hook_state *state;
	struct nt_mark_key key = {};
	struct nt_mark_slot *slot;
	struct nt_located *at;
	struct nt_config *cfg;
	struct nt_mark *mark;
	const struct net *net;
	u16 protocol = 0;
	int zero = 0;

	cfg = config.lookup(&zero);
	at = located.lookup(&zero);
	slot = mark_slots.lookup(&zero);
	state = mark_states.lookup(&zero);
	if (!cfg || !at || !slot || !state)
		return 0;
	at->skb = 0;
	at->found = 0;
	at->site = nt_site(cfg, ctx->args[1]);
	if (at->site == NT_SITE_OTHER)
		return 0;
	nt_read(&protocol, &skb->protocol);
	if (protocol == nt_swap16(NT_ETH_IPV4))
		key.pf = NT_NFPROTO_IPV4;
	else if (protocol == nt_swap16(NT_ETH_IPV6))
		key.pf = NT_NFPROTO_IPV6;
	else
		return 0; /* ARP and the like: no link was at its hooks */
	nt_read(&dev, &skb->dev);
	net = nt_skb_net(skb, dev, NULL);
	key.netns = nt_net_inode(net);
	key.is_nft = at->site != NT_SITE_HOOK;
	key.ordinal = NT_MARK_SOLE;
	if (slot->skb == (u64)skb && slot->place[1] == key.pf) {
		key.hook = slot->place[0];
		key.ordinal = slot->ordinal;
	}
	slot->skb = 0;
	mark = marks.lookup(&key);
	if (!mark && key.ordinal != NT_MARK_SOLE) {
		/* Noted in a namespace that it came from. */
		key.hook = 0;
		key.ordinal = NT_MARK_SOLE;
		mark = marks.lookup(&key);
	}
	if (!mark)
		return 0;
	state->hook = mark->hook;
	state->pf = mark->pf;
	state->net = (struct net *)net;
	at->state = state;
	at->entry[0] = mark->function;
	at->entry[1] = mark->private;
	at->rule = 0;
	at->found = mark->doubtful ? NT_FOUND_UNSURE : NT_FOUND_SURE;
	at->skb = ctx->args[0];
	return 0;
}
