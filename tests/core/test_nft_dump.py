"""Laws of reading nf_tables' dumps: what is found, what may change, what is malformed."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from tracer.core.nft_dump import NftRow, lay_out_chains, lay_out_rules, table_handles

NEWTABLE, NEWCHAIN, NEWRULE = 0xA00, 0xA03, 0xA06
NESTED = 0x8000


def attribute(kind: int, value: bytes) -> bytes:
    """Give one attribute, padded."""
    return struct.pack("<HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def message(kind: int, *attributes: bytes, family: int = 1, port: int = 9, gen: int = 5) -> bytes:
    """Give a whole message as a dump has it."""
    body = b"".join(attributes)
    head = struct.pack("<IHHII", 20 + len(body), kind, 2, 0, port)
    return head + struct.pack("<BBH", family, 0, gen) + body


def counter(packets: int, octets: int) -> bytes:
    """Give a counter's content, bytes first as a rule has it."""
    return attribute(1, struct.pack(">Q", octets)) + attribute(2, struct.pack(">Q", packets))


def expression(name: bytes, data: bytes) -> bytes:
    """Give one expression of a rule."""
    inner = attribute(1, name + b"\0") + attribute(2 | NESTED, data)
    return attribute(1 | NESTED, inner)


def rule(handle: int, *expressions: bytes, table: bytes = b"t", port: int = 9) -> bytes:
    """Give a rule of chain c."""
    return message(
        NEWRULE,
        attribute(1, table + b"\0"),
        attribute(2, b"c\0"),
        attribute(3, struct.pack(">Q", handle)),
        attribute(4 | NESTED, b"".join(expressions)),
        port=port,
    )


def chain(name: bytes, *more: bytes) -> bytes:
    """Give a chain of table t."""
    return message(NEWCHAIN, attribute(1, b"t\0"), attribute(3, name + b"\0"), *more)


def every(_: str) -> bool:
    """Want all tables."""
    return True


def test_a_rules_last_counter_is_its_counter() -> None:
    """Each rule has its handle and the counter next to its verdict; none is told as none."""
    dump = rule(
        4,
        expression(b"counter", counter(100, 1000)),
        expression(b"limit", attribute(1, bytes(8))),
        expression(b"counter", counter(13, 1300)),
    ) + rule(5, expression(b"immediate", b""))

    found = lay_out_rules(dump, every)

    assert (NftRow("inet", "t", "c", 4), NftRow("inet", "t", "c", 5)) == found.rows
    assert [[13, 0], [1300, 0]] == found.counters(dump).tolist()
    assert [True, False] == (found.packets != 0).tolist()


def test_what_packets_change_does_not_make_other_rules() -> None:
    """Counters, quotas, the asking port and the generation differ from dump to dump."""
    first = rule(4, expression(b"counter", counter(1, 2)), expression(b"quota", bytes(12)))
    later = rule(
        4, expression(b"counter", counter(1 << 40, 9)), expression(b"quota", b"x" * 12), port=77
    )
    found = lay_out_rules(first, every)

    assert found.fits(later)
    assert [[1 << 40], [9]] == found.counters(later).tolist()


def test_what_makes_other_rules_is_noticed() -> None:
    """Another handle, chain, text or length is another ruleset."""
    first = rule(4, expression(b"counter", counter(1, 2)), expression(b"cmp", b"abcd"))
    others = (
        rule(5, expression(b"counter", counter(1, 2)), expression(b"cmp", b"abcd")),
        rule(4, expression(b"counter", counter(1, 2)), expression(b"cmp", b"abce")),
        rule(4, expression(b"counter", counter(1, 2)), expression(b"cmp", b"abcdefgh")),
        b"",
        first + rule(5),
    )
    found = lay_out_rules(first, every)

    assert found.fits(first)
    assert not any(map(found.fits, others))


def test_tables_that_are_not_wanted_do_not_matter() -> None:
    """Whether they are there or not, and what they hold, the digest is the same."""
    mine, own = rule(4, expression(b"counter", counter(13, 2))), rule(9, table=b"nftrace_1")

    def wanted(table: str) -> bool:
        return not table.startswith("nftrace_")

    alone, beside = lay_out_rules(mine, wanted), lay_out_rules(own + mine, wanted)

    assert alone.digest == beside.digest
    assert alone.rows == beside.rows
    assert [[13], [2]] == beside.counters(own + mine).tolist()


def test_policies_have_counters_where_the_chain_has() -> None:
    """A chain of iptables-nft counts its policy; one without statistics is told as that."""
    dump = chain(b"INPUT", attribute(8 | NESTED, counter(7, 70))) + chain(b"own")

    found = lay_out_chains(dump, every)

    assert (NftRow("inet", "t", "INPUT", None), NftRow("inet", "t", "own", None)) == found.rows
    assert [[7, 0], [70, 0]] == found.counters(dump).tolist()


def test_tables_have_handles() -> None:
    """Each table's number is found by family and name."""
    dump = message(NEWTABLE, attribute(1, b"t\0"), attribute(4, struct.pack(">Q", 3)), family=10)

    assert {("ip6", "t"): 3} == table_handles(dump)
    assert {} == table_handles(dump[:-4])


RULES = rule(4, expression(b"counter", counter(1, 2)), expression(b"cmp", b"abcd")) + rule(
    5, expression(b"counter", counter(3, 4)), expression(b"quota", bytes(12))
)


def test_cut_at_each_byte_it_has_the_rules_that_are_whole() -> None:
    """A dump that ends too early loses the cut rule and no other, and nothing is raised."""
    first = len(rule(4, expression(b"counter", counter(1, 2)), expression(b"cmp", b"abcd")))
    for end in range(len(RULES)):
        found = lay_out_rules(RULES[:end], every)
        assert (end >= first) == len(found.rows)
        assert 2 * len(found.rows) == found.counters(RULES[:end]).size


@given(st.data())
def test_no_length_leads_out_of_the_dump(data: st.DataObject) -> None:
    """Whatever two bytes of it say, every place that is found lies within the dump."""
    at = data.draw(st.integers(0, len(RULES) - 2))
    dump = RULES[:at] + data.draw(st.binary(min_size=2, max_size=2)) + RULES[at + 2 :]

    for lay_out in (lay_out_rules, lay_out_chains):
        found = lay_out(dump, every)
        assert found.fits(dump)
        assert found.counters(dump).shape == (2, len(found.rows))
    table_handles(dump)


@given(st.binary(max_size=400))
def test_any_bytes_are_taken(dump: bytes) -> None:
    """Bytes that are no dump are an empty or a shorter one."""
    found = lay_out_rules(dump, every)

    assert found.fits(dump)
    assert len(dump) >= 20 * (len(found.rows) + found.skipped)


def test_messages_of_other_kinds_and_without_names_are_skipped() -> None:
    """What is no rule, or lacks what a rule has, is counted and changes no digest."""
    odd = chain(b"c") + message(NEWRULE, attribute(1, b"t\0"), attribute(2, b"c\0"))
    odd += rule(6, attribute(1 | NESTED, attribute(2, b"")), expression(b"counter", b""))

    found = lay_out_rules(odd + RULES, every)

    assert (3, [4, 5]) == (found.skipped, [row.handle for row in found.rows])
    assert lay_out_rules(RULES, every).digest == found.digest
    assert 3 == lay_out_chains(message(NEWCHAIN, attribute(1, b"t\0")) + RULES, every).skipped
