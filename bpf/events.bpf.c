// SPDX-License-Identifier: Apache-2.0
/*
 * Tell what befalls followed packets: received, sent, delivered, dropped.
 *
 * Attached only while somebody follows, since on_receive() and on_send() run for every
 * packet of the machine.
 */
#include "packet.h"

BPF_ARRAY(matches, struct nt_matches, 1);
BPF_TABLE("hash", u32, u8, namespaces, NT_NAMESPACES_MAX);
BPF_PERCPU_ARRAY(stats, struct nt_stats, 1);
BPF_RINGBUF_OUTPUT(events, NT_RING_PAGES);

/* sk_buff.tail to sk_buff.data, which the kernel keeps together. */
struct nt_bounds {
	u32 tail;
	u32 end;
	const unsigned char *head;
	const unsigned char *data;
};

struct nt_scratch {
	struct nt_flow flow;
	u8 raw[NT_NETWORK_BYTES + NT_TRANSPORT_BYTES];
	u8 lengths[4];
	struct nt_bounds bounds;
	const struct net *net;
	u64 found;
	u32 netns;
	u16 header;
	u16 protocol;
};
/* Where tail begins on a word there is no hole before head, and one read has all. */
#define NT_HAS_HOLE                                  \
	(__builtin_offsetof(struct sk_buff, data) != \
	 __builtin_offsetof(struct sk_buff, tail) + 16)

BPF_PERCPU_ARRAY(scratches, struct nt_scratch, 1);

/* Where the network header of *skb* is set, it begins there; else with the data. */
enum nt_from { NT_FROM_HEADER, NT_FROM_DATA };

/* Read the headers of *skb*; 0 if nobody follows it. */
NT_INLINE int nt_is_followed(struct nt_scratch *t, const struct sk_buff *skb,
			     enum nt_from where)
{
	const unsigned char *from;
	struct nt_matches *armed;
	int zero = 0;

	armed = matches.lookup(&zero);
	if (!armed || !armed->count)
		return 0;
	if (NT_HAS_HOLE) {
		nt_read(&t->bounds.tail, &skb->tail);
		nt_read(&t->bounds.head, &skb->head);
		nt_read(&t->bounds.data, &skb->data);
	} else {
		bpf_probe_read_kernel(&t->bounds, sizeof(t->bounds),
				      &skb->tail);
	}
	if (where == NT_FROM_HEADER) {
		nt_read(&t->header, &skb->network_header);
		from = t->bounds.head + t->header;
	} else {
		nt_read(&t->protocol, &skb->protocol);
		from = t->bounds.data;
		if (t->protocol == nt_swap16(0x8100) ||
		    t->protocol == nt_swap16(0x88a8))
			from += 4; /* a VLAN tag that the device left there */
	}
	nt_read_headers(from, t->bounds.head + t->bounds.tail, t->raw,
			t->lengths);
	if (!nt_flow_of(t->raw, t->lengths[1], &t->flow))
		return 0;
	t->found = 0;
	for (int i = 0; i < NT_MATCHES_MAX; i++) {
		if (i >= armed->count)
			break;
		t->found |= nt_matches_flow(&armed->match[i], &t->flow);
	}
	return t->found != 0;
}

NT_INLINE void nt_tell(struct nt_scratch *t, const struct sk_buff *skb,
		       const struct net_device *dev, u32 kind, u32 reason,
		       u64 location)
{
	struct nt_event *event;
	struct nt_stats *st;
	int zero = 0;

	st = stats.lookup(&zero);
	if (!st)
		return;
	t->netns = nt_net_inode(t->net);
	if (!namespaces.lookup(&t->netns))
		return;
	st->count[NT_STAT_SEEN]++;
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		st->count[NT_STAT_RESERVE_FAILED]++;
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time_ns = bpf_ktime_get_ns();
	event->location = location;
	event->kind = kind;
	event->reason = reason;
	event->netns = t->netns;
	if (dev)
		nt_read(&event->ifindex, &dev->ifindex);
	nt_read(&event->mark, &skb->mark);
	nt_read(&event->length, &skb->len);
	nt_read(&event->protocol, &skb->protocol);
	event->protocol = nt_swap16(event->protocol);
	__builtin_memcpy(event->raw, t->raw, sizeof(event->raw));
	event->lengths[0] = t->lengths[0];
	event->lengths[1] = t->lengths[1];
	st->count[NT_STAT_RECORDED]++;
	/* Nobody waits for an event: they are read where journeys ask for them. */
	events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

int on_drop(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[0];
	const struct net_device *dev = NULL;
	struct nt_scratch *t;
	u32 reason = 0;
	int zero = 0;

	t = scratches.lookup(&zero);
	if (!t)
		return 0;
#ifdef NT_HAS_REASON
	reason = (u32)ctx->args[2];
#ifdef NT_REASON_CONSUMED
	if (reason == NT_REASON_CONSUMED)
		return 0;
#endif
#endif
	if (!nt_is_followed(t, skb, NT_FROM_HEADER))
		return 0;
	nt_read(&dev, &skb->dev);
	t->net = nt_skb_net(skb, dev, NT_RECEIVER(ctx));
	nt_tell(t, skb, dev, NT_EVENT_DROPPED, reason, ctx->args[1]);
	return 0;
}

/* netif_receive_skb(skb): the network header may not be set yet. */
int on_receive(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[0];
	const struct net_device *dev = NULL;
	struct nt_scratch *t;
	int zero = 0;

	t = scratches.lookup(&zero);
	if (!t || !nt_is_followed(t, skb, NT_FROM_DATA))
		return 0;
	nt_read(&dev, &skb->dev);
	t->net = nt_dev_net(dev);
	nt_tell(t, skb, dev, NT_EVENT_RECEIVED, 0, 0);
	return 0;
}

/*
 * net_dev_start_xmit(skb, dev): the packet is whole here. In net_dev_xmit, which has the
 * driver's answer, it may be another namespace's already; a driver that drops it frees it
 * by kfree_skb.
 */
int on_send(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[0];
	const struct net_device *dev = (const struct net_device *)ctx->args[1];
	struct nt_scratch *t;
	int zero = 0;

	t = scratches.lookup(&zero);
	if (!t || !nt_is_followed(t, skb, NT_FROM_HEADER))
		return 0;
	t->net = nt_dev_net(dev);
	nt_tell(t, skb, dev, NT_EVENT_SENT, 0, 0);
	return 0;
}

struct nt_hook_context {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
};

/* Last on LOCAL_IN: every table let the packet pass, the protocols take it next. */
int on_deliver(struct nt_hook_context *ctx)
{
	const struct nf_hook_state *state = ctx->state;
	const struct sk_buff *skb = ctx->skb;
	const struct net_device *dev = NULL;
	struct nt_scratch *t;
	int zero = 0;

	t = scratches.lookup(&zero);
	if (!t || !nt_is_followed(t, skb, NT_FROM_HEADER))
		return 1; /* NF_ACCEPT */
	nt_read(&dev, &state->in);
	nt_read(&t->net, &state->net);
	nt_tell(t, skb, dev, NT_EVENT_DELIVERED, 0, 0);
	return 1;
}
