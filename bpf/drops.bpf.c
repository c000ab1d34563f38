// SPDX-License-Identifier: Apache-2.0
/*
 * Count, and where asked record, every packet that dies, at the moment it dies.
 *
 * Nothing here runs for a packet that lives. Two programs sit on kfree_skb, in this
 * order: on_kfree_skb_locate() finds the netfilter hook entry in the kernel's saved
 * registers, on_kfree_skb_count() does everything else. They are two because
 *  - only a program whose stack is below 64 bytes runs on the kernel's own stack from
 *    Linux 6.13 on (7d1cd70d4b16), and only there does r10 lead to the kernel's frames;
 *  - with two programs every call goes through the tracepoint's iterator, so that the
 *    frames stay the same when somebody else's program comes or goes.
 * Hence the first keeps what it has in the per-CPU scratch and not on its stack.
 */
#include "packet.h"

BPF_ARRAY(config, struct nt_config, 1);
BPF_PERCPU_ARRAY(stats, struct nt_stats, 1);
BPF_TABLE("percpu_hash", struct nt_drop_key, struct nt_drop_count, counts,
	  NT_COUNTS_MAX);
BPF_TABLE("hash", struct nt_place_key, struct nt_place, places, NT_PLACES_MAX);
BPF_TABLE("hash", u64, struct nt_rules, rules, NT_TABLES_MAX);
BPF_TABLE("percpu_hash", u64, struct nt_seen_rules, seen_rules, NT_TABLES_MAX);
BPF_RINGBUF_OUTPUT(records, NT_RING_PAGES);

/* What the first program leaves for the second. */
struct nt_located {
	u64 skb; /* whose drop this is; 0 while it is being written */
	u64 frame;
	u64 word;
	u64 entry[2]; /* nf_hook_entry: function, private */
	u64 rule;     /* struct nft_rule_dp's first word */
	const struct nf_hook_state *state;
	u32 index;
	u32 site;
	u16 count;
	u16 found;
};

/* What the second has in hand. */
struct nt_scratch {
	struct nt_drop_key key;
	struct nt_drop_count one;
	struct nt_place place;
	struct nt_place_key place_key;
	u64 word;
	u64 chain[2]; /* nft_chain: table, handle */
	const char *name;
	const struct net *net;
	const struct net_device *dev;
	u64 self;
	u64 moved;
	u32 length;
	u32 sampled;
	u16 protocol;
};

BPF_PERCPU_ARRAY(located, struct nt_located, 1);
BPF_PERCPU_ARRAY(scratches, struct nt_scratch, 1);

NT_INLINE u32 nt_site(const struct nt_config *cfg, u64 location)
{
	if (location == cfg->location[NT_SITE_HOOK])
		return NT_SITE_HOOK;
	if (location == cfg->location[NT_SITE_NFT_RULE])
		return NT_SITE_NFT_RULE;
	if (location == cfg->location[NT_SITE_NFT_POLICY])
		return NT_SITE_NFT_POLICY;
	return NT_SITE_OTHER;
}

#define NT_WORD(to, at, word) nt_read(to, (at)->frame + 8 * (u64)(word))

/*
 * Where the compiler saved no entries (Debian's 6.1): those that stand at the hook now.
 * They are the ones that were walked, unless a table came or went this microsecond.
 */
NT_INLINE int nt_standing_entries(struct nt_located *at)
{
	nt_read(&at->count, &at->state->hook); /* and pf, which follows it */
	nt_read(&at->word, &at->state->net);
	if (at->count >> 8 == NT_NFPROTO_IPV4)
		at->word += __builtin_offsetof(struct net, nf.hooks_ipv4);
	else if (at->count >> 8 == NT_NFPROTO_IPV6)
		at->word += __builtin_offsetof(struct net, nf.hooks_ipv6);
	else
		return 0;
	if ((at->count & 0xff) >= 5) /* NF_INET_NUMHOOKS */
		return 0;
	nt_read(&at->word, at->word + 8 * (u64)(at->count & 0xff));
	return 1;
}

/*
 * Find the hook entry that the packet died in: the saved registers say which entries
 * and which of them. True where the return addresses and the entry itself agree.
 */
NT_INLINE int nt_try_layout(struct nt_located *at,
			    const struct nt_layout *layout, u64 location)
{
	/* Addresses kept from round to round would be spilled to the stack. */
	asm volatile("" : "+r"(at), "+r"(layout));
	if (!layout->location)
		return 0;
	NT_WORD(&at->word, at, layout->location);
	if (at->word != location)
		return 0;
	if (layout->caller_ip) {
		NT_WORD(&at->word, at, layout->caller);
		if (at->word != layout->caller_ip)
			return 0;
	}
	NT_WORD(&at->index, at, layout->index);
	NT_WORD(&at->state, at, layout->state);
	if (layout->entries)
		NT_WORD(&at->word, at, layout->entries);
	else if (!nt_standing_entries(at))
		return 0;
	nt_read(&at->count, at->word); /* nf_hook_entries.num_hook_entries */
	if (at->index >= at->count)
		return 0;
	/* nf_hook_entries.hooks, of 16 bytes each */
	if (bpf_probe_read_kernel(at->entry, 16,
				  (void *)(at->word + 8 + 16 * (u64)at->index)))
		return 0;
	if (layout->rule) {
		NT_WORD(&at->word, at, layout->rule);
		nt_read(&at->rule, at->word);
	} else {
		at->rule = 0;
	}
	return 1;
}

int on_kfree_skb_locate(struct bpf_raw_tracepoint_args *ctx)
{
	struct nt_config *cfg;
	struct nt_located *at;
	int zero = 0;

	cfg = config.lookup(&zero);
	at = located.lookup(&zero);
	if (!cfg || !at)
		return 0;
	at->skb = 0;
	at->found = 0;
	at->site = nt_site(cfg, ctx->args[1]);
	if (!(cfg->locate & 1 << at->site))
		return 0;
	asm volatile("%0 = r10" : "=r"(at->frame));
	for (int i = 0; i < NT_LAYOUTS_MAX; i++) {
		if (nt_try_layout(at,
				  &cfg->layout[at->site & (NT_SITES - 1)][i],
				  ctx->args[1])) {
			at->found = NT_FOUND_SURE;
			break;
		}
	}
	at->skb = ctx->args[0];
	return 0;
}

/* Move what was located into the key. */
NT_INLINE void nt_fill_place(struct nt_scratch *t, struct nt_located *at)
{
	const struct nft_chain *chain = (const struct nft_chain *)at->entry[1];

	nt_read(&t->key.hook, &at->state->hook);
	nt_read(&t->key.family, &at->state->pf);
	nt_read(&t->net, &at->state->net);
	t->key.place = at->entry[1] ? at->entry[1] : at->entry[0];
	if (t->key.site == NT_SITE_HOOK)
		return;
	/* is_last:1, dlen:12, handle:42; the rest is never written to. */
	t->key.rule = at->rule >> 13 & ((1ULL << 42) - 1);
	/* An address is used again: both handles tell one chain from the next. */
	nt_read(&t->chain[0], &chain->table);
	nt_read(&t->chain[1], &chain->handle);
	nt_read(&t->word, &((const struct nft_table *)t->chain[0])->handle);
	t->key.tag = t->word << 32 | (t->chain[1] & 0xffffffff);
}

/* Read the names of a place while it surely lives. */
NT_INLINE void nt_name_place(struct nt_scratch *t, struct nt_located *at)
{
	const struct nft_chain *chain = (const struct nft_chain *)at->entry[1];
	const struct nft_table *table = (const struct nft_table *)t->chain[0];

	__builtin_memset(&t->place, 0, sizeof(t->place));
	t->place.function = at->entry[0];
	if (t->key.site == NT_SITE_HOOK) {
		/* No table where the function is not legacy's: user space knows. */
		if (at->entry[1])
			bpf_probe_read_kernel_str(
				t->place.table, 32,
				((struct xt_table *)at->entry[1])->name);
		return;
	}
	nt_read(&t->name, &chain->name);
	bpf_probe_read_kernel_str(t->place.chain, 32, t->name);
	nt_read(&t->name, &table->name);
	bpf_probe_read_kernel_str(t->place.table, 32, t->name);
	bpf_probe_read_kernel(&t->place.family, 1,
			      (void *)table + NT_OFFSET_NFT_TABLE_FAMILY);
	t->place.family &= 0x3f; /* family:6, flags, genmask */
}

/*
 * Name the legacy rule: the one whose counter moved on this CPU since the last look.
 *
 * A rule counts a packet and drops it on one CPU with nothing in between but softirqs,
 * so exactly one moved, by one; anything else leaves key.certain 0. The address of a
 * per-CPU value less percpu_base is this CPU's offset. What changes from round to round
 * is kept in memory, where the verifier does not follow it into every combination.
 * Every dropping rule of the table is one more word to read.
 */
NT_INLINE void nt_find_rule(const struct nt_config *cfg, struct nt_scratch *t,
			    struct nt_rules *table, struct nt_seen_rules *seen)
{
	u64 offset;
	int i;

	/* Through memory: a pointer that comes back from there is a plain number. */
	*(volatile u64 *)&t->self = (u64)t;
	offset = *(volatile u64 *)&t->self - cfg->percpu_base;
	t->moved = 0;
	for (i = 0; i < NT_RULES_MAX; i++) {
		if (i >= table->count)
			break;
		nt_read(&t->word, table->counter[i] + offset);
		if (t->word == seen->packets[i])
			continue;
		t->moved += t->word - seen->packets[i];
		seen->packets[i] = t->word;
		t->key.rule = (u64)table->generation << 32 | (i + 1);
	}
	if (t->moved != 1)
		t->key.certain = 0;
}

/*
 * With cfg->rules n above 1 only every n-th drop is looked at; the look before it
 * brings the counters up to date, so that the n-th's rule is certain all the same.
 */
NT_INLINE void nt_rule_at(const struct nt_config *cfg, struct nt_scratch *t,
			  struct nt_rules *table, struct nt_seen_rules *seen,
			  struct nt_stats *st)
{
	nt_read(&t->word, &((struct xt_table *)t->key.place)->private);
	if (t->word != table->private || seen->private != table->private) {
		st->count[NT_STAT_STALE_RULES]++;
		return;
	}
	seen->skipped++;
	if (seen->skipped + 1 < cfg->rules)
		return;
	nt_find_rule(cfg, t, table, seen);
	if (seen->skipped < cfg->rules) {
		t->key.rule = 0;
		t->key.certain = 1;
		return;
	}
	seen->skipped = 0;
}

NT_INLINE void nt_fill_record(struct nt_drop_record *record,
			      struct nt_scratch *t, const struct sk_buff *skb)
{
	const unsigned char *head = NULL;
	u32 tail = 0;
	u16 header = 0;
	u64 ct = 0;

	__builtin_memset(record, 0, sizeof(*record));
	record->time_ns = bpf_ktime_get_ns();
	record->key = t->key;
	record->length = t->length;
	if (t->dev)
		nt_read(&record->ifindex, &t->dev->ifindex);
	nt_read(&record->iif, &skb->skb_iif);
	nt_read(&record->mark, &skb->mark);
	record->protocol = nt_swap16(t->protocol);
#ifdef NT_OFFSET_SK_BUFF__NFCT
	nt_read(&ct, &skb->_nfct);
	if (ct)
		record->ct = (ct & 7) + 1; /* NFCT_INFOMASK */
#endif
	if (record->protocol != NT_ETH_IPV4 && record->protocol != NT_ETH_IPV6)
		return;
	nt_read(&head, &skb->head);
	nt_read(&header, &skb->network_header);
	nt_read(&tail, &skb->tail);
	nt_read_headers(head + header, head + tail, record->raw,
			record->lengths);
}

int on_kfree_skb_count(struct bpf_raw_tracepoint_args *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx->args[0];
	struct nt_drop_record *record;
	struct nt_drop_count *count;
	struct nt_config *cfg;
	struct nt_located *at;
	struct nt_scratch *t;
	struct nt_stats *st;
	int zero = 0;

	cfg = config.lookup(&zero);
	at = located.lookup(&zero);
	t = scratches.lookup(&zero);
	st = stats.lookup(&zero);
	if (!cfg || !at || !t || !st || cfg->mode == NT_MODE_OFF)
		return 0;
#ifdef NT_HAS_REASON
	t->key.reason = (u32)ctx->args[2];
#ifdef NT_REASON_CONSUMED
	if (t->key.reason == NT_REASON_CONSUMED)
		return 0; /* the end of a packet that arrived */
#endif
#endif
	nt_read(&t->dev, &skb->dev);
	t->protocol = 0;
	nt_read(&t->protocol, &skb->protocol);
	if (!t->dev && !t->protocol)
		return 0; /* no packet: a message of netlink or of a unix socket */
	st->count[NT_STAT_SEEN]++;
	t->key.site = nt_site(cfg, ctx->args[1]);
	t->key.place = t->key.site == NT_SITE_OTHER ? ctx->args[1] : 0;
	t->key.tag = 0;
	t->key.rule = 0;
	t->key.hook = NT_NO_HOOK;
	t->key.family = 0;
	t->key.certain = 1;
	t->net = NULL;
	if (at->skb == (u64)skb && at->found) {
		t->key.site = at->site;
		t->key.certain = at->found == NT_FOUND_SURE;
		nt_fill_place(t, at);
	} else if (cfg->locate & 1 << t->key.site) {
		st->count[NT_STAT_UNLOCATED]++;
	}
	at->skb = 0; /* its address may be another packet's next */
	if (!t->net)
		t->net = nt_skb_net(skb, t->dev);
	t->key.netns = nt_net_inode(t->net);
	nt_read(&t->length, &skb->len);

	if (cfg->rules && t->key.site == NT_SITE_HOOK && t->key.place) {
		struct nt_rules *table = rules.lookup(&t->key.place);
		struct nt_seen_rules *seen = seen_rules.lookup(&t->key.place);

		if (table && seen)
			nt_rule_at(cfg, t, table, seen, st);
	}

	count = counts.lookup(&t->key);
	if (count) {
		count->packets++;
		count->bytes += t->length;
	} else {
		t->one.packets = 1;
		t->one.bytes = t->length;
		if (counts.update(&t->key, &t->one))
			st->count[NT_STAT_COUNTS_FULL]++;
		t->place_key.place = t->key.place;
		t->place_key.tag = t->key.tag;
		if (t->key.hook != NT_NO_HOOK &&
		    !places.lookup(&t->place_key)) {
			nt_name_place(t, at);
			if (places.update(&t->place_key, &t->place))
				st->count[NT_STAT_PLACES_FULL]++;
		}
	}

	if (cfg->mode < NT_MODE_RECORD)
		return 0;
	if (cfg->mode == NT_MODE_SAMPLE && ++t->sampled < cfg->sample)
		return 0;
	t->sampled = 0;
	record = records.ringbuf_reserve(sizeof(*record));
	if (!record) {
		st->count[NT_STAT_RESERVE_FAILED]++;
		return 0;
	}
	nt_fill_record(record, t, skb);
	record->weight = cfg->mode == NT_MODE_SAMPLE ? cfg->sample : 1;
	st->count[NT_STAT_RECORDED]++;
	records.ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return 0;
}
