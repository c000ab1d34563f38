"""Finding registers in copied stacks: fabricated ones, with noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.core.drop_layout import Drop, Layout, solve

_LOCATION = 0xFFFFFFFF81F28E4D
_CALLER = 0xFFFFFFFF81F28E13
_HEAP = 0xFFFF888100000000
_TRUE = Layout(location=21, state=53, index=54, entries=55, rule=18, caller=63, caller_ip=_CALLER)


def _drop(way: str, at: int, seed: int, shift: int = 0, handle: int | None = None) -> Drop:
    """Make a stack of noise with the true words in it; the caller's word *shift* higher."""
    noise = np.random.default_rng(seed)
    words = noise.integers(_HEAP, _HEAP + (1 << 30), 96, dtype=np.uint64)
    targets = noise.integers(1 << 16, 1 << 63, 96, dtype=np.uint64) | np.uint64(0x8001)
    count, hook = at + 3, (1, 0, 3)[seed % 3]
    words[5] = words[_TRUE.location] = _LOCATION
    words[_TRUE.index] = at
    targets[_TRUE.entries] = count
    targets[_TRUE.state] = 2 << 8 | hook
    words[_TRUE.caller + shift] = _CALLER
    # Addresses of code that differ from way to way lie between.
    words[58] = 0xFFFFFFFF81F70000 + len(way)
    if handle is not None:
        targets[_TRUE.rule] = handle << 13 | 40 << 1 | 0x1FF << 55
    return Drop(way, at, count, hook, 2, handle, _LOCATION, words, targets)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 1 << 30), min_size=5, max_size=9, unique=True))
def test_the_true_words_are_found_in_noise(seeds: list[int]) -> None:
    """Location, state, index and entries, whatever else lies on the stack."""
    drops = [_drop("legacy", at, seed) for at, seed in enumerate(seeds)]
    found = solve(drops, in_hook_slow=True)

    assert {"legacy": Layout(location=21, state=53, index=54, entries=55)} == found


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 1 << 30), min_size=8, max_size=8, unique=True))
def test_each_way_has_its_own_caller(seeds: list[int]) -> None:
    """Two hook functions with frames of two sizes each get their word."""
    drops = [_drop("ip", at, seed, handle=7 + at) for at, seed in enumerate(seeds[:4])]
    drops += [_drop("inet", at, seed, 3, 90 + at) for at, seed in enumerate(seeds[4:])]
    found = solve(drops, in_hook_slow=False)

    wider = Layout(21, 53, 54, 55, 18, 66, _CALLER)
    assert {"ip": _TRUE, "inet": wider} == found


def test_one_way_alone_cannot_tell_its_caller() -> None:
    """With nothing to compare, no layout is given for nft."""
    drops = [_drop("ip", at, at, handle=3) for at in range(4)]

    assert {} == solve(drops, in_hook_slow=False)


@pytest.mark.parametrize("word", [_TRUE.index, _TRUE.state, _TRUE.location])
def test_a_missing_word_leaves_the_way_out(word: int) -> None:
    """Where one register is nowhere to be found, nothing is claimed."""
    drops = [_drop("legacy", at, at) for at in range(5)]
    drops[2].words[[5, word]] = 0x1234567
    drops[2].targets[word] = 0

    assert {} == solve(drops, in_hook_slow=True)


def test_no_drops_no_layouts() -> None:
    """An empty calibration has an empty result."""
    assert {} == solve([], in_hook_slow=True)
