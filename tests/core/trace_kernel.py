"""A small netfilter: what the kernel's traces would say of made-up packets, as columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain as joined
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tracer.core.events import EVENT, LEGACY, NO_PACKET, PACKET, TraceBatch
from tracer.core.journey import Verdict
from tracer.core.ruleset import Chain, Rule, Ruleset, Table
from tracer.core.trace_steps import StepTable, TraceStep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from random import Random

OWN = "nftrace_follow_1"
ROUTED = ("prerouting", "forward", "postrouting")
LOCAL = ("prerouting", "input")
_DEVICES = {
    "prerouting": (2, 0), "input": (2, 0), "forward": (2, 3), "postrouting": (0, 3),
}  # fmt: skip
_CODES = {
    Verdict.DROP: 0, Verdict.REJECT: 0, Verdict.ACCEPT: 1, Verdict.STOLEN: 2, Verdict.QUEUE: 3,
    Verdict.CONTINUE: -1, Verdict.JUMP: -3, Verdict.GOTO: -4, Verdict.RETURN: -5,
}  # fmt: skip
_GOES_ON = (Verdict.CONTINUE, Verdict.JUMP, Verdict.GOTO, Verdict.RETURN)
DNAT, SNAT = (0x0909090A, 22), 0x0707070A


@dataclass(frozen=True)
class Header:
    """What a packet's headers say; addresses are the first word."""

    fingerprint: int
    src: int = 0x0100000A
    dst: int = 0x0200000A
    sport: int = 4000
    dport: int = 80
    ttl: int = 64


@dataclass(frozen=True)
class Said:
    """One event of a packet; *header* None where the kernel sends none."""

    step: int
    header: Header | None
    legacy: bool
    mark: int
    iif: int
    oif: int


def _rule(number: int, text: str, verdict: Verdict, target: str | None, *, legacy: bool) -> Rule:
    form = "iptables" if legacy else "nft"
    handle = None if legacy else number + 10
    plain = legacy and text.startswith("-j ")
    return Rule(number, text, form, verdict, target, handle, unconditional=plain)


def make_chain(  # noqa: PLR0913 - a base chain's words
    name: str,
    *rules: tuple[str, Verdict] | tuple[str, Verdict, str],
    hook: str | None = None,
    priority: int | None = None,
    kind: str = "filter",
    policy: Verdict = Verdict.ACCEPT,
    legacy: bool = False,
) -> Chain:
    """Make a chain of (text, verdict, target) rules."""
    made = tuple(
        _rule(
            index,
            f"-A {name} {each[0]}" if legacy else each[0],
            each[1],
            (*each, None)[2],
            legacy=legacy,
        )
        for index, each in enumerate(rules, 1)
    )
    if legacy:
        made = tuple(
            replace(one, unconditional=each[0].startswith("-j "))
            for one, each in zip(made, rules, strict=True)
        )
    base = hook is not None
    return Chain(name, made, hook, priority, kind if base else None, policy if base else None)


def make_ruleset(*tables: tuple[str, str, Sequence[Chain]]) -> Ruleset:
    """Make a ruleset of (engine, name, chains), all of family ip."""
    return Ruleset(
        {
            (engine, "ip", name): Table(
                engine, "ip", name, "iptables" if engine == "legacy" else "nft",
                {chain.name: chain for chain in chains},
            )
            for engine, name, chains in tables
        }
    )  # fmt: skip


class Kernel:
    """
    Walks packets through a ruleset; *learns*: our chains behind conntrack are there.

    *choose* decides whether a rule that has a match meets the packet.
    """

    def __init__(self, ruleset: Ruleset, *, learns: bool = False, marks_end: bool = True) -> None:
        self.ruleset = ruleset
        self.table = StepTable()
        self._learns = learns
        self._marks_end = marks_end

    def walk(
        self,
        header: Header,
        choose: Callable[[Rule], bool],
        *,
        hooks: Sequence[str] = ROUTED,
        is_new: bool = True,
        armed: bool = True,
    ) -> list[Said]:
        """Return a packet's events; one that is not new has its translation from before."""
        walker = _Walker(self, header, choose, is_new=is_new)
        if armed:
            walker.own("armed", hooks[0])
        for hook in hooks:
            if not walker.pass_hook(hook, learns=self._learns):
                return walker.said
        if self._marks_end and armed:
            walker.own(f"last_{hooks[-1]}", hooks[-1])
        return walker.said


class _Walker:
    def __init__(
        self, kernel: Kernel, header: Header, choose: Callable[[Rule], bool], *, is_new: bool
    ) -> None:
        self._kernel = kernel
        self._header = header
        self._choose = choose
        self._is_new = is_new
        self._mark = 0
        self._hook = ""
        self._headed = False
        self.said: list[Said] = []

    def own(self, chain: str, hook: str) -> None:
        """Pass a chain of ours, which accepts."""
        self._hook = hook
        self._headed = True
        self._say(TraceStep("nft", "ip", None, OWN, chain, "rule", None, 3, 1, None))

    def pass_hook(self, hook: str, *, learns: bool) -> bool:
        """Pass all base chains of a hook; False if the packet died there."""
        self._hook = hook
        if hook == "forward":
            self._header = replace(self._header, ttl=self._header.ttl - 1)
        found = sorted(
            (chain.priority or 0, table.engine == "legacy", table.name, chain.name)
            for table in self._kernel.ruleset.tables.values()
            for chain in table.chains.values()
            if chain.hook == hook
        )
        learned = not learns or hook != "prerouting"
        for priority, legacy, table, name in found:
            if not learned and priority > -199:
                self.own("old_prerouting", hook)
                learned = True
            engine = "legacy" if legacy else "nft"
            owner = self._kernel.ruleset.tables[engine, "ip", table]
            chain = owner.chains[name]
            if chain.type == "nat" and not self._is_new:
                self._translate(hook)
                continue
            self._headed = True
            pass_chain = self._pass_legacy if legacy else self._pass_nft
            verdict = pass_chain(owner, chain)
            if verdict is None:
                verdict = chain.policy or Verdict.ACCEPT
                self._say_policy(owner, chain, verdict)
            if verdict in (Verdict.DROP, Verdict.REJECT, Verdict.STOLEN):
                return False
        return True

    def _say_policy(self, table: Table, chain: Chain, verdict: Verdict) -> None:
        if table.engine == "legacy":
            self._say_legacy(table, chain, "policy", len(chain.rules) + 1)
        else:
            code = _CODES[verdict]
            self._say(
                TraceStep(
                    "nft", "ip", None, table.name, chain.name, "policy", None, None, code, None
                )
            )

    def _translate(self, hook: str) -> None:
        if hook == "postrouting":
            self._header = replace(self._header, src=SNAT)
        else:
            self._header = replace(self._header, dst=DNAT[0], dport=DNAT[1])

    def _act(self, rule: Rule) -> None:
        if "DNAT" in rule.text or "dnat" in rule.text:
            self._translate("prerouting")
        if "MASQUERADE" in rule.text or "masquerade" in rule.text:
            self._translate("postrouting")
        if "MARK" in rule.text or "mark set" in rule.text:
            self._mark += 7

    def _pass_nft(self, table: Table, chain: Chain) -> Verdict | None:
        for rule in chain.rules:
            if "always" not in rule.text and not self._choose(rule):
                continue
            verdict = rule.verdict or Verdict.CONTINUE
            if "mark set" in rule.text:
                self._act(rule)
            self._say(
                TraceStep(
                    "nft", "ip", None, table.name, chain.name, "rule", None, rule.handle,
                    _CODES[verdict], rule.target,
                )
            )  # fmt: skip
            if "mark set" not in rule.text:
                self._act(rule)
            if verdict not in _GOES_ON:
                return verdict
            if verdict is Verdict.RETURN:
                return None
            if rule.target is not None:
                inner = self._pass_nft(table, table.chains[rule.target])
                if inner is not None or verdict is Verdict.GOTO:
                    return inner
        self._say(
            TraceStep("nft", "ip", None, table.name, chain.name, "rule", None, None, -1, None)
        )
        return None

    def _pass_legacy(self, table: Table, chain: Chain) -> Verdict | None:
        for rule in chain.rules:
            if not rule.unconditional and not self._choose(rule):
                continue
            verdict = rule.verdict or Verdict.CONTINUE
            word = "rule"
            if rule.unconditional and verdict in (Verdict.ACCEPT, Verdict.DROP, Verdict.RETURN):
                word = "return" if chain.hook is None else "policy"
            self._say_legacy(table, chain, word, rule.number)
            self._act(rule)
            if verdict not in _GOES_ON:
                return verdict
            if verdict is Verdict.RETURN:
                return None
            if rule.target is not None:
                inner = self._pass_legacy(table, table.chains[rule.target])
                if inner is not None or verdict is Verdict.GOTO:
                    return inner
        if chain.hook is None:
            self._say_legacy(table, chain, "return", len(chain.rules) + 1)
        return None

    def _say_legacy(self, table: Table, chain: Chain, word: str, number: int) -> None:
        self._say(
            TraceStep(
                "legacy", "ip", self._hook, table.name, chain.name, word, number, None, None, None
            )
        )

    def _say(self, step: TraceStep) -> None:
        number = self._kernel.table.find_or_add(step)
        assert number is not None
        legacy = step.engine == "legacy"
        shown = legacy or self._headed
        self._headed = False
        iif, oif = _DEVICES[self._hook]
        header = self._header if shown else None
        self.said.append(Said(number, header, legacy, self._mark, iif, oif))


def packet_rows(headers: Iterable[Header]) -> np.ndarray:
    """Return headers as `PACKET` rows."""
    made = list(headers)
    rows = np.zeros(len(made), PACKET)
    for index, header in enumerate(made):
        row = rows[index]
        for name in ("fingerprint", "sport", "dport", "ttl"):
            row[name] = getattr(header, name)
        row["src"][0], row["dst"][0] = header.src, header.dst
        row["family"], row["proto"] = 4, 17
        row["length"], row["network_length"], row["transport_length"] = 60, 20, 8
    return rows


def batch_of(rows: Sequence[tuple[Said, int]]) -> TraceBatch:
    """Return (event, trace id) as a batch; `ct_id` counts the events, from 1."""
    events = np.zeros(len(rows), EVENT)
    headers: list[Header] = []
    for index, (said, trace_id) in enumerate(rows):
        packet = NO_PACKET
        if said.header is not None:
            packet = len(headers)
            headers.append(said.header)
        flags = LEGACY if said.legacy else 0
        events[index] = (
            said.step, packet, 0 if said.legacy else trace_id, said.iif, said.oif, said.mark,
            index + 1, flags,
        )  # fmt: skip
    return TraceBatch(events, packet_rows(headers))


@dataclass(frozen=True)
class Mixed:
    """Packets' events, interleaved; *journeys* has each packet's `ct_id`s."""

    batch: TraceBatch
    journeys: list[tuple[int, ...]]


def interleave(packets: Sequence[Sequence[Said]], random: Random, *, alive: int = 3) -> Mixed:
    """
    Mix packets at random, at most *alive* at a time; each has a trace id while it lives.

    Ids come from a pool of *alive* and are used again at once.
    """
    waiting = [(number, list(said)) for number, said in enumerate(packets) if said]
    waiting.reverse()
    free = list(range(1, alive + 1))
    living: list[tuple[int, int, list[Said]]] = []
    rows: list[tuple[Said, int]] = []
    journeys: list[list[int]] = [[] for _ in packets]
    while waiting or living:
        if waiting and free and (not living or random.random() < 0.5):
            number, said = waiting.pop()
            living.append((free.pop(random.randrange(len(free))), number, said[::-1]))
        trace_id, number, left = one = random.choice(living)
        rows.append((left.pop(), trace_id))
        journeys[number].append(len(rows))
        if not left:
            living.remove(one)
            free.append(trace_id)
    return Mixed(batch_of(rows), [tuple(each) for each in journeys if each])


def cut(batch: TraceBatch, places: Iterable[int]) -> list[TraceBatch]:
    """Cut a batch in front of the events at *places*, which may repeat."""
    edges = [0, *sorted(places), len(batch.events)]
    parts = []
    for start, end in pairwise(edges):
        events = batch.events[start:end].copy()
        headed = events["packet"] != NO_PACKET
        packets = batch.packets[events["packet"][headed]]
        events["packet"][headed] = np.arange(len(packets))
        parts.append(TraceBatch(events, packets))
    return parts


def journeys_of(found: Iterable[object]) -> list[tuple[int, ...]]:
    """Return the `ct_id`s of each journey in several `Journeys`."""
    return list(
        joined.from_iterable(
            [
                tuple(each.events["ct_id"][start:end].tolist())
                for start, end in zip(each.bounds[:-1], each.bounds[1:], strict=True)
            ]
            for each in found  # type: ignore[attr-defined]
        )
    )


_A, _D, _J, _G, _R, _C = (
    Verdict.ACCEPT, Verdict.DROP, Verdict.JUMP, Verdict.GOTO, Verdict.RETURN, Verdict.CONTINUE
)  # fmt: skip

#: A user chain that is called twice, a goto, equal priorities in one hook, NAT on both sides.
NFT_TABLES = (
    ("nft", "early", [
        make_chain("pre", ("a jump inner", _J, "inner"), ("b meta mark set 7", _C),
                   ("c goto outer", _G, "outer"), ("d drop", _D),
                   hook="prerouting", priority=-150),
        make_chain("inner", ("e return", _R), ("f accept", _A)),
        make_chain("outer", ("g jump inner", _J, "inner"), ("h jump inner", _J, "inner")),
    ]),
    ("nft", "nat", [
        make_chain("dst", ("i dnat to 10.9.9.9:22", _A), hook="prerouting", priority=-100,
                   kind="nat"),
        make_chain("src", ("j masquerade", _A), hook="postrouting", priority=100, kind="nat"),
    ]),
    ("nft", "one", [make_chain("fwd", ("k accept", _A), ("l drop", _D), hook="forward", priority=0),
                    make_chain("inp", ("m accept", _A), hook="input", priority=0)]),
    ("nft", "two", [make_chain("fwd", ("n reject", Verdict.REJECT), hook="forward", priority=0)]),
)  # fmt: skip


def _legacy(name: str, *rules: tuple[str, Verdict] | tuple[str, Verdict, str], priority: int,
            kind: str = "filter") -> Chain:  # fmt: skip
    return make_chain(
        name, *rules, hook=name.lower(), priority=priority, kind=kind, legacy=True
    )  # fmt: skip


LEGACY_TABLES = (
    ("legacy", "raw", [_legacy("PREROUTING", ("-a -j CT", _C), priority=-300)]),
    ("legacy", "mangle", [
        _legacy("PREROUTING", ("-b -j TWICE", _J, "TWICE"), ("-c -j MARK", _C),
                ("-d -j TWICE", _J, "TWICE"), ("-e -g AWAY", _G, "AWAY"), ("-f -j RETURN", _R),
                priority=-150),
        make_chain("TWICE", ("-g -j RETURN", _R), ("-h -j AWAY", _J, "AWAY"), ("-i -j ACCEPT", _A),
                   legacy=True),
        make_chain("AWAY", ("-j -j DROP", _D), ("-k -g DEEP", _G, "DEEP"), legacy=True),
        make_chain("DEEP", ("-l -j MARK", _C), ("-j RETURN", _R), legacy=True),
        _legacy("FORWARD", priority=-150),
    ]),
    ("legacy", "nat", [
        _legacy("PREROUTING", ("-m -j DNAT", _A), priority=-100, kind="nat"),
        _legacy("POSTROUTING", ("-j MASQUERADE", _A), priority=100, kind="nat"),
    ]),
    ("legacy", "filter", [
        _legacy("FORWARD", ("-n -j ACCEPT", _A), ("-o -j REJECT", Verdict.REJECT), ("-j DROP", _D),
                priority=0),
        _legacy("INPUT", ("-p -j DROP", _D), priority=0),
    ]),
)  # fmt: skip

RULESETS = {
    "nft": make_ruleset(*NFT_TABLES),
    "legacy": make_ruleset(*LEGACY_TABLES),
    "mixed": make_ruleset(*NFT_TABLES, *LEGACY_TABLES),
}
