"""The end of the story: what the journeys prove, as an incident report puts it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracer.core.journey import EndingKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.core.journey import Ending, Journey
    from tracer.demo.lab import Attempt, Lab
    from tracer.demo.page import Page

__all__ = ["conclude_broken", "conclude_fixed", "find_deaths"]

# The place where the case is known to end: router, chain and the rule's number in it.
KNOWN_CHAIN = "FIREWALL_172.17.21.105"
KNOWN_END = ("vr2", KNOWN_CHAIN, 5)


def find_deaths(journeys: Sequence[Journey]) -> list[Journey]:
    """Return the journeys that a rule or the kernel ended."""
    ends = (EndingKind.DROPPED, EndingKind.REJECTED)
    return [journey for journey in journeys if journey.ending.kind in ends]


def conclude_broken(page: Page, lab: Lab, attempt: Attempt, journeys: Sequence[Journey]) -> bool:
    """
    Write the report of the failing case; say whether it ended where it is known to.

    Nothing is reported that the journeys do not show: another end is told as such.
    """
    page.heading("conclusion")
    deaths = find_deaths(journeys)
    if not deaths:
        page.paragraph("✗ No packet was seen to die, so nothing is proved.", "bold red")
        return False
    first = deaths[0]
    same = [one for one in deaths if _place(one) == _place(first)]
    page.paragraph(f"✗ ssh: {attempt.error} after {attempt.elapsed_s:.1f} s.", "bold red")
    died = f"{len(same)} packets died in {first.netns}"
    page.item("Where", f"{died}, {_say_place(first.ending)}:", [first.ending.text or "its policy"])
    if len(same) < len(deaths):
        page.item("", f"{len(deaths) - len(same)} more died elsewhere.")
    for change in _say_translations(journeys):
        page.item("On the way", change)
    if _place(first) != KNOWN_END:
        page.item("The cause", "is not known: this is not the end that the case has elsewhere.")
        return False
    _explain(page, lab)
    return True


def conclude_fixed(page: Page, attempt: Attempt, journeys: Sequence[Journey]) -> bool:
    """Write the report of the solved case; say whether ssh got through with nothing lost."""
    page.heading("conclusion")
    deaths = find_deaths(journeys)
    if attempt.greeting is None or deaths:
        page.paragraph(f"✗ ssh: {attempt.error}, {len(deaths)} packets died.", "bold red")
        return False
    page.paragraph(f"✓ ssh connects, in {attempt.elapsed_s * 1000:.0f} ms.", "bold green")
    page.item("It answers", attempt.greeting)
    page.item(
        "On vr1", "61.146.164.82 is translated to 172.17.21.212, an inner address of its own."
    )
    page.item(
        "On vr2",
        "the customer's filter stands at 172.17.21.212, where only his own traffic arrives;"
        " the chain of 172.17.21.105 lets port 22 in and nothing else.",
    )
    return True


def _explain(page: Page, lab: Lab) -> None:
    rules = _chain_rules(lab.rules("vr2"), KNOWN_CHAIN)
    number = KNOWN_END[2]
    page.item(
        "The rule",
        f"drops what rules 1 to {number - 1} of its chain have not let through:",
        [f"{index}  {rule}" for index, rule in enumerate(rules[: number - 1], 1)],
        "A new connection to port 22 is none of these.",
    )
    page.item(
        "The cause",
        "vr1 translates both public addresses to one inner address. The chain was written for"
        " 61.146.164.82, which the customer had bound and opened for tcp 300-65535; it judges"
        " 61.146.164.120's management traffic as well, because at vr2 the two look alike.",
    )
    page.item(
        "What helps",
        "is one of these:",
        [
            "1  translate the management port before the filter",
            "2  filter on vr1 by public address, without the chain on vr2",
            "3  give the bound address an inner address of its own",
        ],
        "The third is what `nftrace demo --fixed` shows.",
    )


def _place(journey: Journey) -> tuple[str, str | None, int | None]:
    return (journey.netns, journey.ending.chain, journey.ending.rule)


def _say_place(ending: Ending) -> str:
    words = [f"{ending.table or 'no table'} {(ending.hook or 'outside netfilter').upper()}"]
    if ending.chain and ending.chain.upper() != (ending.hook or "").upper():
        words.append(f" › {ending.chain}")  # noqa: RUF001 - the path sign is meant
    if ending.rule is not None:
        words.append(f", rule {ending.rule}")
    return "".join(words)


def _say_translations(journeys: Sequence[Journey]) -> list[str]:
    seen: dict[str, None] = {}
    for journey in journeys:
        for step in journey.steps:
            if "dst" in step.changes or "dport" in step.changes:
                packet = journey.packet
                dst = step.changes.get("dst", (packet.dst or "",) * 2)
                dport = step.changes.get("dport", (packet.dport or 0,) * 2)
                text = f"{journey.netns} translated {dst[0]}:{dport[0]} → {dst[1]}:{dport[1]}."
                seen[text] = None
    return list(seen)


def _chain_rules(listing: str, chain: str) -> list[str]:
    """Return a chain's rules in order, out of an iptables-save or an nft listing."""
    appended = re.findall(rf"^-A {re.escape(chain)} (.*)$", listing, re.MULTILINE)
    if appended:
        return appended
    body = re.search(
        rf"^\tchain {re.escape(chain)} \{{\n(.*?)^\t\}}", listing, re.DOTALL | re.MULTILINE
    )
    return [line.strip() for line in body.group(1).splitlines()] if body else []
