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
/*
 * A kind of drop has a number: where its key stands in `kinds`, and what was counted of it
 * in `counts`. `numbers` finds the number by the key; nt_number_of() says who asks it.
 * A CPU takes free numbers some at a time, which saves an atomic instruction that not
 * every compiler has, and 16,000 system calls at the start.
 */
BPF_TABLE("hash", struct nt_drop_key, u32, numbers, NT_COUNTS_MAX);
BPF_ARRAY(kinds, struct nt_drop_key, NT_COUNTS_MAX);
BPF_PERCPU_ARRAY(counts, struct nt_drop_count, NT_COUNTS_MAX);
BPF_QUEUESTACK("stack", free_numbers, struct nt_numbers, NT_COUNTS_MAX, 0);
BPF_TABLE("hash", struct nt_place_key, struct nt_place, places, NT_PLACES_MAX);
/* Where in the next two a legacy table has its rules. */
BPF_TABLE("hash", u64, u32, tables, NT_TABLES_MAX);
BPF_ARRAY(rules, struct nt_rules, NT_TABLES_MAX);
BPF_PERCPU_ARRAY(seen_rules, struct nt_seen_rules, NT_TABLES_MAX);
/* What is recorded, where cfg->filters says that not everything is. */
BPF_TABLE("hash", u32, u8, recorded_netns, NT_NETNS_MAX);
BPF_ARRAY(recorded_flows, struct nt_matches, 1);
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

/* Kinds that each CPU finds again without asking a hash table: a power of two. */
#define NT_RECENT 64

/* A window of time in which drops are few or many: 134 ms, in nanoseconds' bits. */
#define NT_WINDOW_SHIFT 27

/* What the second has in hand. */
struct nt_scratch {
	struct nt_drop_key key;
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
	u32 table; /* the table that was met last: a number in rules */
	struct nt_numbers free;
	u64 window; /* of time, and the drops by legacy tables in it */
	u64 by_tables;
	u32 number[NT_RECENT]; /* of the kinds that were met last */
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
	nt_read_words(at->entry, at->word + 8 + 16 * (u64)at->index, 2);
	if (!at->entry[0])
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
	u64 word;
	int i;

	/* Through memory: a pointer that comes back from there is a plain number. */
	*(volatile u64 *)&t->self = (u64)t;
	offset = *(volatile u64 *)&t->self - cfg->percpu_base;
	t->moved = 0;
	for (i = 0; i < NT_RULES_MAX; i++) {
		if (i >= table->count)
			break;
		word = 0;
		nt_read(&word, table->counter[i] + offset);
		if (word == seen->packets[i])
			continue;
		t->moved += word - seen->packets[i];
		seen->packets[i] = word;
		t->key.rule = (u64)table->generation << 32 | (i + 1);
	}
	if (t->moved != 1)
		t->key.certain = 0;
}

/*
 * Whether this CPU's drops by legacy tables are still as few as all are looked at. The
 * clock takes longer than the rest of this: it is read at one in 32.
 */
NT_INLINE int nt_is_calm(const struct nt_config *cfg, struct nt_scratch *t)
{
	u64 window;

	if (!(t->by_tables & 31)) {
		window = bpf_ktime_get_ns() >> NT_WINDOW_SHIFT;
		if (t->window != window) {
			t->window = window;
			t->by_tables = 0;
		}
	}
	return t->by_tables++ < cfg->calm;
}

/*
 * Beyond cfg->calm drops a window only every cfg->rules-th is looked at; the look before
 * it brings the counters up to date, so that its rule is certain all the same. So does
 * the first look when it is calm again.
 */
NT_INLINE void nt_rule_at(const struct nt_config *cfg, struct nt_scratch *t,
			  struct nt_rules *table, struct nt_seen_rules *seen,
			  struct nt_stats *st)
{
	u64 private = 0;
	u64 due = 0;

	nt_read(&private, &((struct xt_table *)t->key.place)->private);
	if (private != table->private || seen->private != table->private) {
		st->count[NT_STAT_STALE_RULES]++;
		return;
	}
	if (cfg->rules > 1 && !nt_is_calm(cfg, t)) {
		t->key.looks = NT_LOOKS_SOME;
		seen->skipped++;
		if (seen->skipped + 1 < cfg->rules)
			return;
		due = cfg->rules;
	} else if (seen->skipped) {
		t->key.looks = NT_LOOKS_SOME;
		due = (u64)-1;
	}
	nt_find_rule(cfg, t, table, seen);
	if (seen->skipped < due) {
		t->key.rule = 0;
		t->key.certain = 1;
	}
	if (seen->skipped >= due || due > cfg->rules)
		seen->skipped = 0;
}

/* Look for the rule where the packet died in a legacy table whose rules are known. */
NT_INLINE void nt_name_rule(const struct nt_config *cfg, struct nt_scratch *t,
			    struct nt_stats *st)
{
	struct nt_seen_rules *seen;
	struct nt_rules *table;
	u32 *number;
	u32 at = t->table;

	table = rules.lookup(&at);
	if (!table || table->address != t->key.place) {
		number = tables.lookup(&t->key.place);
		if (!number)
			return;
		at = t->table = *number;
		table = rules.lookup(&at);
		if (!table || table->address != t->key.place)
			return;
	}
	seen = seen_rules.lookup(&at);
	if (seen)
		nt_rule_at(cfg, t, table, seen, st);
}

NT_INLINE int nt_is_kind(const struct nt_drop_key *kind,
			 const struct nt_drop_key *key)
{
	return kind->place == key->place && kind->tag == key->tag &&
	       kind->rule == key->rule &&
	       *(u64 *)&kind->netns == *(u64 *)&key->netns &&
	       *(u64 *)&kind->hook == *(u64 *)&key->hook;
}

/* Give the kind in hand a number; NT_COUNTS_MAX where all are taken. */
NT_INLINE u32 nt_give_number(struct nt_scratch *t)
{
	struct nt_drop_key *kind;
	u32 *known;
	u32 number;

	if (!t->free.count && free_numbers.pop(&t->free))
		return NT_COUNTS_MAX;
	number = t->free.first;
	kind = kinds.lookup(&number);
	if (!kind)
		return NT_COUNTS_MAX;
	*kind = t->key;
	if (!numbers.insert(&t->key, &number)) {
		t->free.first++;
		t->free.count--;
		return number;
	}
	/* Another CPU was first, or the table is full. The number stays free. */
	kind->hook = kind->place = 0; /* which no drop has */
	known = numbers.lookup(&t->key);
	return known ? *known : NT_COUNTS_MAX;
}

/*
 * The number of the kind in hand. A load of drops is of few kinds: each CPU remembers the
 * numbers of some, and comparing the key with that of a remembered number costs a fifth
 * of looking it up. A number that user space took back has no such key any more.
 */
NT_INLINE u32 nt_number_of(struct nt_scratch *t, int *is_new)
{
	const struct nt_drop_key *kind;
	u32 recent;
	u32 number;
	u32 *known;

	recent = (t->key.place >> 4) + (t->key.place >> 9) + t->key.rule * 7 +
		 t->key.netns + t->key.reason * 5;
	recent &= NT_RECENT - 1;
	number = t->number[recent];
	kind = kinds.lookup(&number);
	if (kind && nt_is_kind(kind, &t->key))
		return number;
	known = numbers.lookup(&t->key);
	if (known) {
		number = *known;
	} else {
		*is_new = 1;
		number = nt_give_number(t);
	}
	t->number[recent] = number;
	return number;
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
	nt_read(&record->protocol, &skb->protocol);
	record->protocol = nt_swap16(record->protocol);
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

/* Whether one of the kinds of packet that are asked for is the record's. */
NT_INLINE int nt_is_recorded(const struct nt_drop_record *record)
{
	const struct nt_matches *wanted;
	struct nt_flow flow;
	int zero = 0;
	int i;

	wanted = recorded_flows.lookup(&zero);
	if (!wanted || !nt_flow_of(record->raw, record->lengths[1], &flow))
		return 0;
	for (i = 0; i < NT_MATCHES_MAX; i++) {
		if (i >= wanted->count)
			break;
		if (nt_matches_flow(&wanted->match[i], &flow))
			return 1;
	}
	return 0;
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
	u16 protocol = 0;
	int is_new = 0;
	int zero = 0;
	u32 number;

	cfg = config.lookup(&zero);
	t = scratches.lookup(&zero);
	st = stats.lookup(&zero);
	if (!cfg || !t || !st || cfg->mode == NT_MODE_OFF)
		return 0;
#ifdef NT_HAS_REASON
	t->key.reason = (u32)ctx->args[2];
#ifdef NT_REASON_CONSUMED
	if (t->key.reason == NT_REASON_CONSUMED)
		return 0; /* the end of a packet that arrived */
#endif
#else
	t->key.reason = 0; /* there are none before Linux 5.17 */
#endif
	nt_read(&t->dev, &skb->dev);
	if (!t->dev) {
		nt_read(&protocol, &skb->protocol);
		if (!protocol)
			return 0; /* a message of netlink or of a unix socket */
	}
	st->count[NT_STAT_SEEN]++;
	t->key.site = nt_site(cfg, ctx->args[1]);
	t->key.place = t->key.site == NT_SITE_OTHER ? ctx->args[1] : 0;
	t->key.tag = 0;
	t->key.rule = 0;
	t->key.hook = NT_NO_HOOK;
	t->key.family = 0;
	t->key.certain = 1;
	t->key.looks = NT_LOOKS_ALL;
	t->net = NULL;
	at = cfg->locate ? located.lookup(&zero) : NULL;
	if (at) {
		if (at->skb == (u64)skb && at->found) {
			t->key.site = at->site;
			t->key.certain = at->found == NT_FOUND_SURE;
			nt_fill_place(t, at);
		} else if (cfg->locate & 1 << t->key.site) {
			st->count[NT_STAT_UNLOCATED]++;
		}
		at->skb = 0; /* its address may be another packet's next */
	}
	if (!t->net)
		t->net = nt_skb_net(skb, t->dev, NT_RECEIVER(ctx));
	t->key.netns = nt_net_inode(t->net);
	nt_read(&t->length, &skb->len);

	if (cfg->rules && t->key.site == NT_SITE_HOOK && t->key.place)
		nt_name_rule(cfg, t, st);

	number = nt_number_of(t, &is_new);
	count = counts.lookup(&number);
	if (count) {
		count->packets++;
		count->bytes += t->length;
	} else {
		st->count[NT_STAT_COUNTS_FULL]++;
	}
	if (is_new && at && t->key.hook != NT_NO_HOOK) {
		t->place_key.place = t->key.place;
		t->place_key.tag = t->key.tag;
		if (!places.lookup(&t->place_key)) {
			nt_name_place(t, at);
			if (places.update(&t->place_key, &t->place))
				st->count[NT_STAT_PLACES_FULL]++;
		}
	}

	if (cfg->mode < NT_MODE_RECORD)
		return 0;
	if (cfg->filters & NT_FILTER_NETNS &&
	    !recorded_netns.lookup(&t->key.netns))
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
	if (t->key.looks == NT_LOOKS_SOME && t->key.rule)
		record->rule_weight = cfg->rules;
	if (cfg->filters & NT_FILTER_FLOW && !nt_is_recorded(record)) {
		records.ringbuf_discard(record, BPF_RB_NO_WAKEUP);
		return 0;
	}
	st->count[NT_STAT_RECORDED]++;
	/* Wakes a reader that has read everything, and nobody else. */
	records.ringbuf_submit(record, 0);
	return 0;
}
