// SPDX-License-Identifier: Apache-2.0
/*
 * Compiled behind events.bpf.c: delivery where netfilter takes no links (before 6.4).
 *
 * What follows the input hook is called once for each packet that is delivered, in
 * whatever protocol: ip_local_deliver_finish(net, sk, skb), ip6_input_finish(net, sk,
 * skb), and within them ip_protocol_deliver_rcu(net, skb, protocol) and
 * ip6_protocol_deliver_rcu(net, skb, nexthdr, have_final). A compiler may have made one
 * of a pair part of its caller: user space tries which is called.
 */
#include "registers.h"

NT_INLINE int nt_delivered(const struct net *net, const struct sk_buff *skb)
{
	const struct net_device *dev = NULL;
	struct nt_scratch *t;
	int zero = 0;

	t = scratches.lookup(&zero);
	if (!t || !nt_is_followed(t, skb, NT_FROM_HEADER))
		return 0;
	nt_read(&dev, &skb->dev);
	t->net = net;
	nt_tell(t, skb, dev, NT_EVENT_DELIVERED, 0, 0);
	return 0;
}

/* A traced function each: a program is loaded for one only. */
#define NT_DELIVERS(function, n)                                           \
	int on_entry_##function(struct bpf_raw_tracepoint_args *ctx)       \
	{                                                                  \
		return nt_delivered((const struct net *)ctx->args[0],      \
				    (const struct sk_buff *)ctx->args[n]); \
	}
NT_DELIVERS(ip_local_deliver_finish, 2)
NT_DELIVERS(ip6_input_finish, 2)
NT_DELIVERS(ip_protocol_deliver_rcu, 1)
NT_DELIVERS(ip6_protocol_deliver_rcu, 1)

#ifndef NT_HEADERS
int on_call_third(struct pt_regs *ctx)
{
	return nt_delivered((const struct net *)NT_PARM(ctx, 0),
			    (const struct sk_buff *)NT_PARM(ctx, 2));
}

int on_call_second(struct pt_regs *ctx)
{
	return nt_delivered((const struct net *)NT_PARM(ctx, 0),
			    (const struct sk_buff *)NT_PARM(ctx, 1));
}
#endif
