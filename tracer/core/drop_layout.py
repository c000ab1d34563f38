"""
Where the kernel keeps its registers when it frees a packet: found from known drops.

nf_hook_slow() holds the hook's state, its entries and the index of the entry that said
drop in callee-saved registers, nft_do_chain() the rule. The functions that they call on
the way to the tracepoint save those registers on the stack, all but one that none of them
needs: Debian's 6.1 keeps the entries there. Where is up to the compiler, and the same for
every drop by the same way. So drops whose index, number of entries,
hook and rule are known are made, each stack is copied, and the words are kept that hold
the known values in every one of them. One word is the address that freed the packet,
another the return address into nf_hook_slow(): a drop whose stack does not have both
there came another way, and nothing is claimed of it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt

__all__ = ["Drop", "Layout", "solve"]


@dataclass(frozen=True, slots=True)
class Drop:
    """
    One drop that was made, and the stack it left.

    *way* names who called: drops of one way have one layout. *index* of *count* entries
    at *hook* of *family* said drop; *handle* is the nft rule's, None for a policy and for
    legacy. *words* `(n,)` are the stack's upward from the program's frame pointer,
    *targets* `(n,)` the eight bytes that each points at, 0 where it is no pointer.
    """

    way: str
    index: int
    count: int
    hook: int
    family: int
    handle: int | None
    location: int
    words: npt.NDArray[np.uint64]
    targets: npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Layout:
    """
    Positions in words; *caller_ip*, *rule* and *entries* are 0 where there is no such.

    Without *entries* those that stand at the hook are looked at.
    """

    location: int
    state: int
    index: int
    entries: int
    rule: int = 0
    caller: int = 0
    caller_ip: int = 0


def solve(drops: Iterable[Drop], *, in_hook_slow: bool) -> dict[str, Layout]:
    """
    Return the layout of each way that has one; a way that fits nothing is left out.

    *in_hook_slow*: the packets were freed by nf_hook_slow() itself, so that the location
    already is the return address into it.
    """
    ways: defaultdict[str, list[Drop]] = defaultdict(list)
    for drop in drops:
        ways[drop.way].append(drop)
    # The tracepoint's arguments hold the location as well, below the frame's own.
    location = _choose(ways, lambda d: d.words == np.uint64(d.location), last=True)
    index = _choose(ways, lambda d: d.words & np.uint64(0xFFFFFFFF) == d.index)
    entries = _choose(ways, lambda d: _is_at(d, d.count))
    state = _choose(ways, lambda d: _is_at(d, d.family << 8 | d.hook))
    named = {way: made for way, made in ways.items() if made[0].handle is not None}
    rule = _choose(named, _holds_rule)
    found = {
        way: Layout(location[way], state[way], index[way], entries.get(way, 0), rule.get(way, 0))
        for way in ways
        if all(way in words for words in (location, index, state))
        # nft_do_chain() and what calls it need registers, so that the entries are saved.
        and (way in entries or in_hook_slow)
        and (way in rule or way not in named)
    }
    if in_hook_slow:
        return found
    return _with_callers({way: ways[way] for way in found}, found)


def _choose(
    ways: dict[str, list[Drop]],
    holds: Callable[[Drop], npt.NDArray[np.bool_]],
    *,
    last: bool = False,
) -> dict[str, int]:
    """
    Return for each way the word that holds what it should in every drop.

    Of several, one that all ways share: what fits by chance in one fits in no other.
    """
    fits = {w: np.logical_and.reduce([holds(drop) for drop in made]) for w, made in ways.items()}
    fits = {way: fit for way, fit in fits.items() if fit.any()}
    if not fits:
        return {}
    shared = np.logical_and.reduce(list(fits.values()))
    chosen = {}
    for way, fit in fits.items():
        words = np.flatnonzero(shared if shared.any() else fit)
        chosen[way] = int(words[-1] if last else words[0])
    return chosen


def _is_at(drop: Drop, value: int) -> npt.NDArray[np.bool_]:
    # The kernel half of the address space, so that small numbers are no pointers.
    pointers: npt.NDArray[np.bool_] = drop.words >> np.uint64(47) == np.uint64(0x1FFFF)
    fits: npt.NDArray[np.bool_] = drop.targets & np.uint64(0xFFFF) == np.uint64(value)
    return pointers & fits


def _holds_rule(drop: Drop) -> npt.NDArray[np.bool_]:
    # struct nft_rule_dp: is_last:1, dlen:12, handle:42
    last = drop.targets & np.uint64(1)
    handle = drop.targets >> np.uint64(13) & np.uint64((1 << 42) - 1)
    holds: npt.NDArray[np.bool_] = (last == 0) & (handle == np.uint64(drop.handle or 0))
    return holds


def _with_callers(ways: dict[str, list[Drop]], found: dict[str, Layout]) -> dict[str, Layout]:
    """
    Add the return address into nf_hook_slow() to each layout; none where it is not clear.

    It lies above the registers that were saved since, and is the lowest address of code
    there that is the same in every drop of every way: what lies between differs from one
    hook function to the next. Two ways at least are needed to tell.
    """
    if len(ways) < 2:  # noqa: PLR2004
        return {}
    code = {way: _constant_code(made, found[way]) for way, made in ways.items()}
    common = set.intersection(*(set(words.values()) for words in code.values()))
    for address in next(iter(code.values())).values():
        if address in common:
            words = {way: _word_of(address, code[way]) for way in ways}
            return {
                way: replace(layout, caller=words[way], caller_ip=address)
                for way, layout in found.items()
            }
    return {}


def _word_of(address: int, code: dict[int, int]) -> int:
    return next(word for word, value in code.items() if value == address)


def _constant_code(made: list[Drop], layout: Layout) -> dict[int, int]:
    """Map the words that hold one address of code in all drops of a way, upward."""
    first = made[0]
    floor = max(layout.location, layout.state, layout.index, layout.entries)
    near = first.words >> np.uint64(31) == np.uint64(first.location >> 31)
    same = np.logical_and.reduce([drop.words == first.words for drop in made])
    words = np.flatnonzero(near & same & (first.targets != 0))
    return {int(word): int(first.words[word]) for word in words if word > floor}
