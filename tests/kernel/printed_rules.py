"""What the user's own tools print: the truth that a journey's texts are held against."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.kernel import nets

if TYPE_CHECKING:
    from tests.kernel.follow_helper import Told

__all__ = ["check_texts", "nft_rules", "saved_rules"]

_SAVE = {
    ("legacy", "ip"): "iptables-legacy-save",
    ("legacy", "ip6"): "ip6tables-legacy-save",
    ("nft", "ip"): "iptables-nft-save",
    ("nft", "ip6"): "ip6tables-nft-save",
}
_HANDLED = re.compile(r"\t\t(.+?) # handle (\d+)\n", re.DOTALL)


def saved_rules(ns: str, engine: str, family: str, table: str, chain: str) -> list[str]:
    """Return a chain's rules as iptables-save or a relative prints them, in order."""
    text = nets.ip_netns_exec(ns, _SAVE[engine, family], "-t", table).stdout
    return [line for line in text.split("\n") if line.startswith(f"-A {chain} ")]


def nft_rules(ns: str, family: str, table: str, chain: str) -> list[tuple[str, int]]:
    """Return a chain's rules as (text, handle) as nft lists them, each in one line."""
    text = nets.ip_netns_exec(ns, "nft", "-s", "-a", "list", "chain", family, table, chain).stdout
    body = re.sub(r"^\t\ttype .* policy \w+;\n", "", text.partition("{")[2], flags=re.MULTILINE)
    body = body.partition("\n")[2]
    return [(re.sub(r"\n\t+", " ", line), int(handle)) for line, handle in _HANDLED.findall(body)]


def check_texts(told: Told, ns: str) -> int:
    """
    Hold every step of every journey against what the tools print in *ns* now.

    A rule has its chain's line of its number (and, of nft, that line's handle); a policy
    has neither number nor text. Returns how many rules were held.
    """
    printed: dict[tuple[str, ...], list[tuple[str, int | None]]] = {}
    held = 0
    for journey in told.journeys:
        for step in journey["steps"]:
            if step["kind"] == "policy":
                assert (None, None, None) == (step["rule"], step["handle"], step["text"]), step
                continue
            place = tuple(step[name] for name in ("form", "engine", "family", "table", "chain"))
            if place not in printed:
                printed[place] = _read(ns, step)
            _check(step, printed[place])
            held += 1
        _check_ending(journey)
    return held


def _read(ns: str, step: dict[str, Any]) -> list[tuple[str, int | None]]:
    engine, family, table, chain = (step[name] for name in ("engine", "family", "table", "chain"))
    if step["form"] == "nft":
        return list(nft_rules(ns, family, table, chain))
    texts = saved_rules(ns, engine, family, table, chain)
    if engine == "legacy":
        return [(text, None) for text in texts]
    listing = nets.ip_netns_exec(ns, "nft", "-s", "-a", "list", "table", family, table).stdout
    body = listing.partition(f"\tchain {chain} {{")[2].partition("\n\t}")[0] + "\n"
    handles = [int(handle) for _, handle in _HANDLED.findall(body.partition("\n")[2])]
    return list(zip(texts, handles, strict=True))


def _check(step: dict[str, Any], rules: list[tuple[str, int | None]]) -> None:
    assert step["kind"] == "rule", step
    assert step["rule"] is not None, step
    assert rules[step["rule"] - 1] == (step["text"], step["handle"]), (step, rules)


def _check_ending(journey: dict[str, Any]) -> None:
    # A drop has the place of the last step.
    ending = journey["ending"]
    if ending["kind"] not in ("dropped", "rejected"):
        return
    names = ("hook", "engine", "family", "table", "chain", "rule", "handle", "text")
    last = journey["steps"][-1]
    assert {name: last[name] for name in names} == {name: ending[name] for name in names}
