"""
How many trace messages one core decodes in a second.

Run as `python -m tests.bench.bench_decode`. Recorded messages are repeated to fill the
batches; the 300 chains are made to order, with 6,000 rules and names of all lengths.
pyroute2 knows the group but has no class for the message: the one here is the least
that reads the same attributes. Ratios mean more than numbers: the speed of a shared
core changes while it is measured.
"""

from __future__ import annotations

import random
import time
from itertools import cycle, islice
from typing import Any, ClassVar

from pyroute2.netlink import nlmsg

from tests.core.trace_messages import ipv4, lay_out, nflog_message, nft_message, recorded, udp
from tracer.core.decode import TraceDecoder

MESSAGES = 4096 * 8
BATCHES = (1, 5, 63, 64, 512, 4096)
CHAINS, RULES = 300, 6_000

#: Each measure ends after this time, in seconds, or after all messages.
BUDGET_S = 1.0


class NftTrace(nlmsg):  # type: ignore[misc]
    """An nft trace for pyroute2, with the attributes that the decoder reads."""

    prefix = "NFTA_TRACE_"
    fields = (("family", "B"), ("version", "B"), ("res_id", ">H"))
    nla_map: ClassVar = (
        (1, "NFTA_TRACE_TABLE", "asciiz"),
        (2, "NFTA_TRACE_CHAIN", "asciiz"),
        (3, "NFTA_TRACE_RULE_HANDLE", "be64"),
        (4, "NFTA_TRACE_TYPE", "be32"),
        (5, "NFTA_TRACE_VERDICT", "cdata"),
        (6, "NFTA_TRACE_ID", "be32"),
        (7, "NFTA_TRACE_LL_HEADER", "cdata"),
        (8, "NFTA_TRACE_NETWORK_HEADER", "cdata"),
        (9, "NFTA_TRACE_TRANSPORT_HEADER", "cdata"),
        (10, "NFTA_TRACE_IIF", "be32"),
        (12, "NFTA_TRACE_OIF", "be32"),
        (14, "NFTA_TRACE_MARK", "be32"),
        (15, "NFTA_TRACE_NFPROTO", "be32"),
        (16, "NFTA_TRACE_POLICY", "be32"),
        (18, "NFTA_TRACE_CT_ID", "be32"),
    )


class Nflog(nlmsg):  # type: ignore[misc]
    """An NFLOG packet for pyroute2, the same way."""

    prefix = "NFULA_"
    fields = (("family", "B"), ("version", "B"), ("res_id", ">H"))
    nla_map: ClassVar = (
        (1, "NFULA_PACKET_HDR", "cdata"),
        (2, "NFULA_MARK", "be32"),
        (4, "NFULA_IFINDEX_INDEV", "be32"),
        (5, "NFULA_IFINDEX_OUTDEV", "be32"),
        (9, "NFULA_PAYLOAD", "cdata"),
        (10, "NFULA_PREFIX", "asciiz"),
        (12, "NFULA_SEQ", "be32"),
        (13, "NFULA_SEQ_GLOBAL", "be32"),
    )


def many_rules() -> list[bytes]:
    """Return messages of 300 chains and 6,000 rules, nft and legacy in turn."""
    chance = random.Random(1)  # noqa: S311 - a mix to measure with
    names = [b"c" * chance.randint(1, 30) + b"%d" % number for number in range(CHAINS)]
    messages = []
    for number in range(MESSAGES):
        rule = chance.randrange(RULES)
        chain = names[rule % CHAINS]
        packet = ipv4(udp(rule, number % 60_000, bytes(12)), ip_id=number)
        if number % 2:
            prefix = b"TRACE: filter:%s:rule:%d \0" % (chain, rule)
            messages.append(nflog_message(prefix=prefix, payload=packet, iif=2, sequence=number))
        else:
            headers: dict[str, bytes] = {}
            if number % 3 == 0:
                headers = {"network": packet[:20], "transport": packet[20:]}
            messages.append(nft_message(chain=chain + b"\0", handle=rule, iif=2, **headers))
    return messages


def measure(messages: list[bytes], size: int) -> float:
    """Return messages a second in batches of *size*, steps known from a first pass."""
    words, starts, lengths = lay_out(messages)
    decoder = TraceDecoder()
    decoder.decode(words, starts, lengths)
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < BUDGET_S:
        at = count % len(messages)
        decoder.decode(words, starts[at : at + size], lengths[at : at + size])
        count += min(size, len(messages) - at)
    return count / elapsed


def measure_pyroute2(messages: list[bytes]) -> float:
    """Return messages a second by pyroute2's message classes."""
    began = time.perf_counter()
    for count, message in enumerate(cycle(messages), start=1):
        decoded: Any = (NftTrace if message[5] == 10 else Nflog)(message)
        decoded.decode()
        if (elapsed := time.perf_counter() - began) > BUDGET_S:
            return count / elapsed
    return 0.0


def main() -> None:
    """Print a table of messages a second."""
    kinds = {
        "nft, drops": recorded("nft_drops"),
        "nft, router": recorded("nft_router"),
        "legacy": recorded("legacy_drops"),
        "both engines": recorded("mixed"),
        f"{CHAINS} chains, {RULES} rules": many_rules(),
    }
    print("messages a second, by messages a batch")  # noqa: T201
    header = "".join(f"{size:>11,}" for size in BATCHES)
    print(f"{'':24}{header}{'pyroute2':>11}{'ratio':>8}")  # noqa: T201
    for name, messages in kinds.items():
        repeated = list(islice(cycle(messages), MESSAGES))
        rates = [measure(repeated, size) for size in BATCHES]
        other = measure_pyroute2(messages)
        cells = "".join(f"{rate:>11,.0f}" for rate in [*rates, other])
        print(f"{name:24}{cells}{rates[-1] / other:>8.0f}")  # noqa: T201


if __name__ == "__main__":
    main()
