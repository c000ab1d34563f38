"""
The kernel's drop reasons in an operator's words, each with what to look at next.

The names are those of enum skb_drop_reason without its prefix, include/net/dropreason-
core.h; numbers differ from kernel to kernel and are never used here.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Explanation", "explain"]


class Explanation(NamedTuple):
    """What happened, and what to look at next; the latter may be empty."""

    what: str
    look_at: str


_CHECKSUM = "ethtool -K DEV rx off on one end shows whether offloading is to blame"
_NEIGHBOUR = "ip neigh show; is the next hop up, and on this wire?"
_WINDOW = "often harmless: retransmissions and reordering do this; ss -ti shows the connection"
_QUEUE = "tc -s qdisc show: the sender is faster than the device or its shaper"
_TC = "tc filter show dev DEV; bpftool net show"
_FRAGMENTS = "fragments are lost or late: nstat -az | grep Reasm; is a smaller MTU better?"

_KNOWN: dict[str, Explanation] = {
    name: Explanation(what, look_at)
    for name, what, look_at in (
        ("NOT_SPECIFIED", "the kernel does not say why", "the freeing function may tell"),
        ("NO_SOCKET", "nobody listens on the port", "ss -lntup in that namespace"),
        ("SOCKET_FILTER", "the receiving socket's own filter", "the application attached it"),
        ("SOCKET_RCVBUFF", "the application reads too slowly: buffer full", "ss -nmp; rmem_max"),
        ("SOCKET_BACKLOG", "the socket's backlog is full", "nstat -az TcpExtTCPBacklogDrop"),
        ("SOCKET_CLOSE", "the socket was closed with data unread", ""),
        ("PKT_TOO_SMALL", "the packet is shorter than its header", "the sender, or tunnel MTUs"),
        ("TCP_CSUM", "bad TCP checksum", _CHECKSUM),
        ("UDP_CSUM", "bad UDP checksum", _CHECKSUM),
        ("IP_CSUM", "bad IP header checksum", _CHECKSUM),
        ("ICMP_CSUM", "bad ICMP checksum", _CHECKSUM),
        ("SKB_CSUM", "bad checksum", _CHECKSUM),
        ("NETFILTER_DROP", "netfilter: a rule, a policy, or connection tracking", "the rule"),
        ("OTHERHOST", "addressed to another host's MAC", "normal on a promiscuous device"),
        ("IP_INHDR", "malformed IP header", "tcpdump -vv on the device"),
        (
            "IP_RPFILTER",
            "reverse path filter: the way back would leave by another device",
            "sysctl net.ipv4.conf.{all,DEV}.rp_filter; ip route get SOURCE",
        ),
        ("IP_OUTNOROUTES", "no route to the destination", "ip route get DESTINATION"),
        ("IP_INNOROUTES", "no route to the destination", "ip route get DESTINATION from SOURCE"),
        (
            "IP_INADDRERRORS",
            "not for this host, and no route or no forwarding",
            "ip route get DESTINATION; sysctl net.ipv4.ip_forward",
        ),
        ("IP_LOCAL_SOURCE", "it came from outside with one of our own addresses", "a loop?"),
        ("IP_INVALID_SOURCE", "the source address is none that may be used", "ip route; spoofing?"),
        ("IP_INVALID_DEST", "the destination address is none that may be used", ""),
        ("IP_LOCALNET", "127.0.0.0/8 on a real device", "sysctl net.ipv4.conf.DEV.route_localnet"),
        ("IP_NOPROTO", "no handler for this IP protocol", "is the module loaded?"),
        ("IPV6DISABLED", "IPv6 is switched off there", "sysctl net.ipv6.conf.DEV.disable_ipv6"),
        ("UNICAST_IN_L2_MULTICAST", "unicast IP in a broadcast frame", "a misconfigured switch"),
        ("XFRM_POLICY", "IPsec policy says no", "ip xfrm policy; ip xfrm state"),
        ("PKT_TOO_BIG", "larger than the MTU and not to be fragmented", "ip link; tracepath"),
        ("NEIGH_FAILED", "the next hop does not answer ARP or ND", _NEIGHBOUR),
        ("NEIGH_QUEUEFULL", "too many packets waiting for the next hop's MAC", _NEIGHBOUR),
        ("NEIGH_CREATEFAIL", "no neighbour entry could be made", "sysctl net.ipv4.neigh.default"),
        ("NEIGH_DEAD", "the neighbour entry is going away", _NEIGHBOUR),
        ("PROTO_MEM", "the protocol's memory limit", "sysctl net.ipv4.tcp_mem net.ipv4.udp_mem"),
        ("NOMEM", "no memory", "free -m; dmesg"),
        ("TCP_FLAGS", "TCP flags that make no sense together", "a scan?"),
        ("TCP_INVALID_SYN", "a SYN that makes no sense", "a scan?"),
        ("TCP_LISTEN_OVERFLOW", "the accept queue is full", "ss -lnt: Recv-Q against Send-Q"),
        ("TCP_RESET", "the other side reset the connection", ""),
        ("TCP_CLOSE", "the connection was closed", ""),
        ("TCP_OLD_DATA", "TCP data that came before", _WINDOW),
        ("TCP_OLD_SEQUENCE", "a TCP sequence number that is over", _WINDOW),
        ("TCP_INVALID_SEQUENCE", "a TCP sequence number outside the window", _WINDOW),
        ("TCP_OVERWINDOW", "TCP data beyond the window", _WINDOW),
        ("TCP_ZEROWINDOW", "TCP data at a closed window", "the application reads too slowly"),
        ("TCP_OLD_ACK", "a TCP acknowledgement that is over", _WINDOW),
        ("TCP_OFOMERGE", "out-of-order TCP data that came before", _WINDOW),
        ("TCP_MD5NOTFOUND", "no TCP MD5 signature where one is due", "the BGP peer's password"),
        ("TCP_MD5FAILURE", "wrong TCP MD5 signature", "the BGP peer's password"),
        ("QDISC_DROP", "the queueing discipline dropped it", _QUEUE),
        ("QDISC_OVERLIMIT", "the queueing discipline is full", _QUEUE),
        ("QDISC_CONGESTED", "the queueing discipline says that it is congested", _QUEUE),
        ("FQ_FLOW_LIMIT", "one flow has too many packets in the queue", _QUEUE),
        ("CPU_BACKLOG", "a CPU's backlog is full", "sysctl net.core.netdev_max_backlog; RPS"),
        ("XDP", "an XDP program", "bpftool net show"),
        ("TC_INGRESS", "a tc filter at ingress", _TC),
        ("TC_EGRESS", "a tc filter at egress", _TC),
        ("BPF_CGROUP_EGRESS", "a cgroup's eBPF program", "bpftool cgroup tree"),
        ("SECURITY_HOOK", "SELinux or another security module", "ausearch -m avc"),
        ("UNHANDLED_PROTO", "nobody handles this EtherType", "often harmless: LLDP, STP"),
        ("DEV_READY", "the device is down", "ip link show"),
        ("DEV_HDR", "no link-layer header could be made", "ip link show; ip neigh show"),
        ("FULL_RING", "the device's ring is full", "ethtool -S DEV; the reader of a tap device"),
        ("HDR_TRUNC", "the packet is cut off in its headers", "tcpdump -vv on the device"),
        ("DUP_FRAG", "a fragment that came before", _FRAGMENTS),
        ("FRAG_REASM_TIMEOUT", "not all fragments came in time", _FRAGMENTS),
        ("FRAG_TOO_FAR", "a fragment of a packet long gone", _FRAGMENTS),
        ("INVALID_PROTO", "a protocol that does not belong there", ""),
        ("MAC_INVALID_SOURCE", "the source MAC is none that may be used", "ip -d link show"),
        ("LOCAL_MAC", "it came from outside with our own MAC", "a loop between switches?"),
        ("BRIDGE_INGRESS_STP_STATE", "the bridge port does not forward yet", "bridge link show"),
        ("RECURSION_LIMIT", "too many devices stacked, or a loop of tunnels", "ip -d link show"),
        ("QUEUE_PURGE", "a queue was emptied, as when a socket or device goes", ""),
    )
}


def explain(reason: str) -> Explanation:
    """
    Return *reason*, the kernel's name for it, in words.

    A name that is not known comes back in lower case: new kernels have new ones.
    """
    known = _KNOWN.get(reason)
    return known or Explanation(reason.replace("_", " ").lower(), "")
