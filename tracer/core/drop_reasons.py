"""
The kernel's drop reasons in an operator's words, each with what to look at next.

The names are those of enum skb_drop_reason without its prefix, include/net/dropreason-
core.h; numbers differ from kernel to kernel and are never used here.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Explanation", "explain", "explain_expired", "explain_hook"]


class Explanation(NamedTuple):
    """What happened, and what to look at next; the latter may be empty."""

    what: str
    look_at: str


_CHECKSUM = "ethtool -K DEV rx off on one end shows whether offloading is to blame"
_NEIGHBOUR = "ip neigh show; is the next hop up, and on this wire?"
_WINDOW = "often harmless: retransmissions and reordering do this; ss -ti shows the connection"
_QUEUE = "tc -s qdisc show: the sender is faster than the device or its shaper"
_TC = "tc filter show dev DEV; bpftool net show"
_AUTHENTICATION = "the TCP-AO or MD5 keys on both ends; ss -tin shows the connection"
_DISCOVERY = "harmless once; often: tcpdump -vv icmp6 shows who sends it"
_VXLAN = "ip -d link show type vxlan on both ends"
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
        ("IP_INHDR", "malformed IP header, or no TTL left", "tcpdump -vv on the device; tracepath"),
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
        ("UNIX_DISCONNECT", "a unix socket was connected to another peer", ""),
        ("UNIX_SKIP_OOB", "urgent data on a unix socket, which nobody read", ""),
        ("TCP_AUTH_HDR", "two TCP authentication options, or a broken one", _AUTHENTICATION),
        ("TCP_MD5UNEXPECTED", "a TCP MD5 signature where none is due", "the BGP peer's password"),
        ("TCP_AONOTFOUND", "no TCP-AO signature where one is due", _AUTHENTICATION),
        ("TCP_AOUNEXPECTED", "a TCP-AO signature where none is due", _AUTHENTICATION),
        ("TCP_AOKEYNOTFOUND", "a TCP-AO key that is not known", _AUTHENTICATION),
        ("TCP_AOFAILURE", "wrong TCP-AO signature", _AUTHENTICATION),
        ("TCP_ABORT_ON_DATA", "TCP data for a socket that was closed", "the application"),
        ("TCP_RFC7323_PAWS", "a TCP timestamp of before: an old duplicate", _WINDOW),
        ("TCP_RFC7323_PAWS_ACK", "a TCP acknowledgement with a timestamp of before", _WINDOW),
        (
            "TCP_RFC7323_TW_PAWS",
            "a SYN with a timestamp older than the connection just closed",
            "clients behind one NAT address? sysctl net.ipv4.tcp_timestamps",
        ),
        ("TCP_RFC7323_TSECR", "a TCP timestamp echo that was never sent", _WINDOW),
        ("TCP_INVALID_END_SEQUENCE", "TCP data that ends outside the window", _WINDOW),
        ("TCP_INVALID_ACK_SEQUENCE", "a TCP acknowledgement outside the window", _WINDOW),
        ("TCP_FASTOPEN", "TCP Fast Open data that came again", ""),
        ("TCP_TOO_OLD_ACK", "a TCP acknowledgement of long ago", _WINDOW),
        ("TCP_ACK_UNSENT_DATA", "a TCP acknowledgement of what was never sent", _WINDOW),
        ("TCP_OFO_QUEUE_PRUNE", "no memory for out-of-order TCP data", "sysctl net.ipv4.tcp_rmem"),
        ("TCP_OFO_DROP", "no room for out-of-order TCP data", "sysctl net.ipv4.tcp_rmem"),
        ("TCP_MINTTL", "a TTL below the socket's minimum", "is the BGP peer further than it says?"),
        ("NEIGH_HH_FILLFAIL", "the next hop's MAC could not be filled in", _NEIGHBOUR),
        ("CAKE_FLOOD", "the cake queueing discipline calls it a flood", _QUEUE),
        ("FQ_BAND_LIMIT", "one band of the fq queueing discipline is full", _QUEUE),
        ("FQ_HORIZON_LIMIT", "to be sent too far in the future", "SO_TXTIME; tc -s qdisc show"),
        ("DUALPI2_STEP_DROP", "the dualpi2 queueing discipline is beyond its step", _QUEUE),
        ("SKB_GSO_SEG", "a large packet could not be cut into frames", "ethtool -k DEV"),
        ("SKB_UCOPY_FAULT", "the program's memory could not be copied", "the sending program"),
        ("TAP_FILTER", "the tap device's own filter", "the program that holds the tap device"),
        ("TAP_TXFILTER", "the tap device's filter of addresses", "the program that holds it"),
        ("IPV6_BAD_EXTHDR", "a malformed IPv6 extension header", "tcpdump -vv on the device"),
        ("IPV6_NDISC_FRAG", "a neighbour discovery message in fragments", _DISCOVERY),
        ("IPV6_NDISC_HOP_LIMIT", "neighbour discovery from beyond a router", "spoofing?"),
        ("IPV6_NDISC_BAD_CODE", "a neighbour discovery message of an unknown code", _DISCOVERY),
        ("IPV6_NDISC_BAD_OPTIONS", "neighbour discovery with malformed options", _DISCOVERY),
        ("IPV6_NDISC_NS_OTHERHOST", "a neighbour solicitation for another host", "normal"),
        ("TC_COOKIE_ERROR", "tc could not keep its place in a chain of filters", _TC),
        ("TC_CHAIN_NOTFOUND", "a tc filter jumps to a chain that is not there", _TC),
        ("TC_RECLASSIFY_LOOP", "tc filters that send it round in a circle", _TC),
        ("PACKET_SOCK_ERROR", "a capturing program could not take it: its copy only", "tcpdump -B"),
        ("VXLAN_INVALID_HDR", "a malformed VXLAN header", _VXLAN),
        ("VXLAN_VNI_NOT_FOUND", "a VXLAN network that no device here has", _VXLAN),
        ("VXLAN_ENTRY_EXISTS", "a MAC that the VXLAN device knows elsewhere", "bridge fdb show"),
        ("NO_TX_TARGET", "the device knows nobody to send it to", "bridge fdb show; ip -d link"),
        ("IP_TUNNEL_ECN", "the tunnel's congestion marks make no sense together", "RFC 6040"),
        ("TUNNEL_TXINFO", "a tunnel that has not been told where to", "ip route; tc filter show"),
        ("ARP_PVLAN_DISABLE", "ARP for a host on the same port", "proxy_arp_pvlan of the device"),
        ("MAC_IEEE_MAC_CONTROL", "a MAC control frame, as of PAUSE", "normal"),
        ("CAN_RX_INVALID_FRAME", "a malformed CAN frame", "candump -e"),
        ("CANFD_RX_INVALID_FRAME", "a malformed CAN FD frame", "candump -e"),
        ("CANXL_RX_INVALID_FRAME", "a malformed CAN XL frame", "candump -e"),
        ("PFMEMALLOC", "memory is so short that only what frees some goes on", "free -m; dmesg"),
        ("PSP_INPUT", "PSP encryption: not what the socket demands", "the PSP keys on both ends"),
        ("PSP_OUTPUT", "PSP encryption: could not be sent so", "the PSP keys on both ends"),
        ("QUEUE_PURGE", "a queue was emptied, as when a socket or device goes", ""),
    )
}


_CONNTRACK = (
    "connection tracking: its table is full, or it can make nothing of the packet",
    "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max; conntrack -S",
)
_CLASH = (
    "connection tracking: another connection has these addresses and ports",
    "conntrack -S (insert_failed): NAT out of ports? two DNS queries at once?",
)
#: By how a hook function's name begins. Source: nf_hook_ops of net/ and security/.
_HOOKS = tuple(
    (begin, Explanation(what, look_at))
    for begin, what, look_at in (
        ("ipv4_conntrack_defrag", "a fragment: defragmentation kept or refused it", _FRAGMENTS),
        ("ipv6_defrag", "a fragment: defragmentation kept or refused it", _FRAGMENTS),
        ("ipv4_conntrack", *_CONNTRACK),
        ("ipv6_conntrack", *_CONNTRACK),
        ("nf_ct_bridge", *_CONNTRACK),
        # The same for both families since Linux 6.3.
        ("nf_confirm", *_CLASH),
        ("ipv4_confirm", *_CLASH),
        ("ipv6_confirm", *_CLASH),
        ("nf_nat", "NAT: no free port or address", "conntrack -S; a wider range in the rule"),
        ("selinux_", "SELinux", "ausearch -m avc"),
        ("smack_", "Smack", "dmesg"),
        ("apparmor_", "AppArmor", "dmesg | grep DENIED"),
        ("ip_vs_", "IPVS", "ipvsadm -Ln --stats"),
        ("br_nf_", "a bridge's netfilter", "sysctl net.bridge; ebtables -L"),
        ("ebt_", "ebtables", "ebtables-legacy -L --Lc"),
        ("arpt_", "arptables", "arptables-legacy -L -v"),
        ("nf_flow_offload", "the flow table", "nft list flowtables; conntrack -L | grep OFFLOAD"),
        ("nf_hook_run_bpf", "an eBPF program on a netfilter hook", "bpftool net show"),
        ("synproxy", "SYNPROXY", "cat /proc/net/stat/synproxy"),
    )
)


def explain_hook(function: str | None) -> Explanation:
    """Say what the netfilter hook *function*, which is no table's, may have dropped for."""
    for begin, words in _HOOKS:
        if function is not None and function.startswith(begin):
            return words
    name = f": {function}()" if function else ""
    return Explanation(f"a netfilter hook that is no table's{name}", "lsmod; dmesg")


def explain_expired() -> Explanation:
    """Say what a packet whose TTL or hop limit ran out died of; the kernel has no word."""
    return Explanation("no TTL left: too many routers, or a loop", "tracepath -n DESTINATION")


def explain(reason: str) -> Explanation:
    """
    Return *reason*, the kernel's name for it, in words.

    A name that is not known comes back in lower case: new kernels have new ones.
    """
    known = _KNOWN.get(reason)
    return known or Explanation(reason.replace("_", " ").lower(), "")
