/* SPDX-License-Identifier: Apache-2.0 */
/* What a program reads out of an skb: namespace, headers, flow. */
#ifndef NT_PACKET_H
#define NT_PACKET_H

#include "kernel.h"
#include "records.h"

#define NT_NFPROTO_IPV4 2
#define NT_NFPROTO_IPV6 10
#define NT_ETH_IPV4 0x0800
#define NT_ETH_IPV6 0x86dd

NT_INLINE __u16 nt_swap16(__u16 value)
{
	return __builtin_bswap16(value);
}

NT_INLINE __u32 nt_net_inode(const struct net *net)
{
	__u32 inode = 0;

	if (net)
		nt_read(&inode, &net->ns.inum);
	return inode;
}

NT_INLINE const struct net *nt_dev_net(const struct net_device *dev)
{
	const struct net *net = NULL;

	if (dev)
		nt_read(&net, &dev->nd_net.net);
	return net;
}

/* The socket that received what is dropped, which the tracepoint tells since Linux 6.11. */
#if NT_KFREE_SKB_ARGS > 3
#define NT_RECEIVER(ctx) ((const struct sock *)(ctx)->args[3])
#else
#define NT_RECEIVER(ctx) ((const struct sock *)NULL)
#endif

/*
 * The namespace of a packet: its device's; before routing gave it one, or when it has come
 * as far as a socket, which is *sk* or its own, that one's; else its route's.
 */
NT_INLINE const struct net *nt_skb_net(const struct sk_buff *skb,
				       const struct net_device *dev,
				       const struct sock *sk)
{
	const struct net *net = nt_dev_net(dev);
	const struct dst_entry *dst = NULL;
	unsigned long refdst = 0;

	if (net)
		return net;
	if (!sk)
		nt_read(&sk, &skb->sk);
	if (sk)
		nt_read(&net, &sk->__sk_common.skc_net.net);
	if (net)
		return net;
	nt_read(&refdst, &skb->_skb_refdst);
	dst = (const struct dst_entry *)(refdst & ~3UL); /* SKB_DST_NOREF */
	if (dst) {
		nt_read(&dev, &dst->dev);
		net = nt_dev_net(dev);
	}
	return net;
}

/*
 * Copy the headers that begin at *from* into *raw*, and say in *lengths* how many bytes of
 * the network and of the transport header were copied; all else there becomes zero. The
 * transport header is cut to what the packet has of it before *end*, like in nft's traces.
 * That of IPv6 is only found without extension headers.
 *
 * A read costs as much as all the rest together, so the usual packet takes one. The kernel
 * keeps 320 bytes of its own behind a packet's: reading beyond the end does no harm.
 */
NT_INLINE void nt_read_headers(const unsigned char *from,
			       const unsigned char *end, __u8 *raw,
			       __u8 *lengths)
{
	__u32 *word = (__u32 *)raw;
	__u32 header = NT_NETWORK_BYTES;
	__u32 total;
	__s64 room;
	int i;

	__builtin_memset(raw, 0, NT_NETWORK_BYTES + NT_TRANSPORT_BYTES);
	lengths[0] = NT_NETWORK_BYTES;
	lengths[1] = 0;
	nt_read_words(word, from, NT_NETWORK_BYTES / 4);
	room = end - from;
	if ((raw[0] >> 4) == 4) {
		header = (raw[0] & 15) * 4;
		total = raw[2] << 8 | raw[3];
		if (header < NT_NETWORK_BYTES)
			lengths[0] = header;
		if ((raw[6] << 8 | raw[7]) & 0x1fff)
			room = 0; /* a later fragment has no transport header */
	} else if ((raw[0] >> 4) == 6) {
		total = header + (raw[4] << 8 | raw[5]);
	} else {
		__builtin_memset(raw, 0, NT_NETWORK_BYTES);
		lengths[0] = 0;
		return;
	}
	if (room > total)
		room = total;
	room -= header;
	if (header <= 20) {
		if (header == 20 && room >= NT_TRANSPORT_BYTES) {
#pragma unroll
			for (i = 10; i < 15; i++)
				word[i] = word[i - 5];
			lengths[1] = NT_TRANSPORT_BYTES;
		}
		__builtin_memset(raw + 20, 0, 20);
	}
	if (lengths[1] || room <= 0)
		return;
	if (room > NT_TRANSPORT_BYTES)
		room = NT_TRANSPORT_BYTES;
	if (!bpf_probe_read_kernel(raw + NT_NETWORK_BYTES, room, from + header))
		lengths[1] = room;
}

/* The flow of headers as nt_read_headers() left them; 0 for what is not IP. */
NT_INLINE int nt_flow_of(const __u8 *raw, __u8 transport_length,
			 struct nt_flow *flow)
{
	int i;

	__builtin_memset(flow, 0, sizeof(*flow));
	if ((raw[0] >> 4) == 4) {
		flow->family = 4;
		flow->proto = raw[9];
		flow->src[0] = *(__u32 *)(raw + 12);
		flow->dst[0] = *(__u32 *)(raw + 16);
	} else if ((raw[0] >> 4) == 6) {
		flow->family = 6;
		flow->proto = raw[6];
#pragma unroll
		for (i = 0; i < 4; i++) {
			flow->src[i] = *(__u32 *)(raw + 8 + 4 * i);
			flow->dst[i] = *(__u32 *)(raw + 24 + 4 * i);
		}
	} else {
		return 0;
	}
	/* TCP, UDP, SCTP, DCCP, UDP-Lite begin with the ports. */
	if (transport_length &&
	    (flow->proto == 6 || flow->proto == 17 || flow->proto == 132 ||
	     flow->proto == 33 || flow->proto == 136)) {
		flow->sport = *(__u16 *)(raw + NT_NETWORK_BYTES);
		flow->dport = *(__u16 *)(raw + NT_NETWORK_BYTES + 2);
	}
	return 1;
}

/* Whether one match names the flow. Both are eleven words. */
NT_INLINE int nt_matches_flow(const struct nt_match *match,
			      const struct nt_flow *flow)
{
	const __u32 *value = (const __u32 *)&match->value;
	const __u32 *mask = (const __u32 *)&match->mask;
	const __u32 *word = (const __u32 *)flow;
	__u32 differs = 0;
	int i;

#pragma unroll
	for (i = 0; i < sizeof(struct nt_flow) / 4; i++)
		differs |= (word[i] & mask[i]) ^ value[i];
	return !differs;
}

#endif
