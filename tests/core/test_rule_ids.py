"""Laws of the names that rules keep when others come above them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tracer.core.iptables import parse_iptables_save
from tracer.core.journey import Verdict
from tracer.core.nft_text import parse_nft
from tracer.core.rule_ids import CountedRule, find_comment, identify, make_rule_id, policy_id
from tracer.core.ruleset import Chain, Rule, Table

_TEXTS = st.lists(st.sampled_from(["drop", "accept", "tcp dport 22 drop"]), max_size=12)


def table_of(texts: list[str]) -> Table:
    """Give a table of one chain with these rules."""
    rules = tuple(Rule(n, text, "nft", None, None, n) for n, text in enumerate(texts, start=1))
    return Table("nft", "inet", "t", "nft", {"c": Chain("c", rules)})


def ids_of(texts: list[str]) -> list[str]:
    """Give the ids of a chain's rules in their order."""
    return [rule.rule_id for rule in identify(table_of(texts))]


@given(_TEXTS, st.data())
def test_a_rule_above_changes_no_id(texts: list[str], data: st.DataObject) -> None:
    """A rule of another text, inserted anywhere, leaves all other rules' ids as they were."""
    at = data.draw(st.integers(0, len(texts)))

    with_it = ids_of([*texts[:at], "udp dport 53 drop", *texts[at:]])

    assert ids_of(texts) == with_it[:at] + with_it[at + 1 :]


@given(_TEXTS)
def test_equal_rules_are_told_apart(texts: list[str]) -> None:
    """No two rules of a chain have one id, however often their text is there."""
    assert len(texts) == len(set(ids_of(texts)))


def test_chain_and_text_do_not_run_into_each_other() -> None:
    """The same characters, divided otherwise into chain and text, are another id."""
    assert make_rule_id("a b", "c", 0) != make_rule_id("a", "b c", 0)


def test_bytes_that_are_no_utf_8_have_an_id() -> None:
    """A name that the kernel allows and UTF-8 does not is hashed as it is."""
    assert make_rule_id("\udcff", "drop", 0) != make_rule_id("\udcfe", "drop", 0)


def test_policies_stand_behind_their_chains_rules() -> None:
    """Each base chain has its policy, once for drop and once for accept, a user chain none."""
    (table,) = parse_iptables_save(
        "*filter\n:INPUT DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:own - [0:0]\n"
        "-A INPUT -j own\n-A own -j DROP\nCOMMIT\n",
        "legacy",
        "ip",
    )

    assert [
        ("INPUT", 1, Verdict.JUMP),
        ("INPUT", None, Verdict.DROP),
        ("OUTPUT", None, Verdict.ACCEPT),
        ("own", 1, Verdict.DROP),
    ] == [(rule.chain, rule.number, rule.verdict) for rule in identify(table)]
    assert ["policy drop", "policy accept"] == [
        rule.rule_id for rule in identify(table) if rule.is_policy
    ]
    assert policy_id(Verdict.DROP) == "policy drop"


def test_only_drop_and_reject_are_dropping() -> None:
    """A rule that decides by a map, or lets pass, is not a dropping one."""
    made = {
        verdict: CountedRule("c", 1, 1, "", "", verdict, "").is_dropping
        for verdict in (*Verdict, None)
    }

    assert {Verdict.DROP, Verdict.REJECT} == {verdict for verdict, is_one in made.items() if is_one}


def test_comments_are_found_in_either_language() -> None:
    """The author's comment is told without quotes, and what only looks like one is not."""
    (saved,) = parse_iptables_save(
        "*filter\n:INPUT ACCEPT [0:0]\n"
        '-A INPUT -m comment --comment "keep \\"out\\"" -j DROP\n'
        "-A INPUT -m comment --comment short -j DROP\n"
        '-A INPUT -m string --string " --comment no" -j DROP\n'
        "-A INPUT -j DROP\nCOMMIT\n",
        "legacy",
        "ip",
    )
    (listed,) = parse_nft(
        'table inet t { # handle 1\n\tchain c { # handle 1\n\t\tdrop comment "why not" # handle 2\n'
        "\t\tdrop # handle 3\n\t}\n}\n"
    )

    assert ['keep "out"', "short", "", ""] == [
        find_comment(rule) for rule in saved.chains["INPUT"].rules
    ]
    assert ["why not", ""] == [find_comment(rule) for rule in listed.chains["c"].rules]
