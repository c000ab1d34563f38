"""Frames of bridges are told apart, and each is one journey, handed up to ip or not."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tests.core.trace_kernel import OWN, Header, Mixed, Said, cut, interleave, journeys_of
from tracer.core.assemble import Assembler
from tracer.core.journey import Verdict
from tracer.core.ruleset import Chain, Ruleset, Table
from tracer.core.step_book import StepBook
from tracer.core.trace_steps import StepTable, TraceStep

if TYPE_CHECKING:
    from tracer.core.events import TraceBatch

NOW_NS = 1_795_454_534_000_000_000
PORT, BRIDGE = 2, 9
#: The device is a part of the trace id: what the bridge hands up has another one.
_OTHER_ID = 1 << 20
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")

PRE = (("bridge", "prerouting"),)
CROSSED = (*PRE, ("bridge", "forward"), ("bridge", "postrouting"))
# With br_netfilter; the ip tables see the frame while the bridge has it.
IN_TURN = (
    *(*PRE, ("ip", "prerouting"), ("bridge", "late"), ("bridge", "forward"), ("ip", "forward")),
    *(("bridge", "postrouting"), ("ip", "postrouting")),
)
HANDED = ((*PRE, ("bridge", "input")), (("ip", "prerouting"), ("ip", "input")))
ROUTED = (
    (*PRE, ("bridge", "input")),
    (("ip", "prerouting"), ("ip", "forward"), ("ip", "postrouting")),
)
# ip's prerouting was passed inside the bridge already: ip_sabotage_in().
SABOTAGED = ((*PRE, ("ip", "prerouting"), ("bridge", "late")), (("ip", "input"),))
WAYS = ((CROSSED, ()), (IN_TURN, ()), HANDED, ROUTED, SABOTAGED, (PRE, ()))


def _ruleset() -> Ruleset:
    chains = {hook: Chain(hook, (), hook, 0, "filter", Verdict.ACCEPT) for hook in _HOOKS}
    late = Chain("late", (), "prerouting", 50, "filter", Verdict.ACCEPT)
    tables = {
        ("nft", family, "t"): Table("nft", family, "t", "nft", {**chains, "late": late})
        for family in ("bridge", "ip")
    }
    return Ruleset(tables)


class _Frames:
    """Makes what the kernel says of frames that go one of `WAYS`, some dying on the way."""

    def __init__(self) -> None:
        self.table = StepTable()

    def walk(self, header: Header, random: Random, *, may_die: bool) -> list[Said]:
        """Return a frame's events; where it *may_die* nothing says so."""
        below, above = random.choice(WAYS)
        said = [self._say(header, OWN, ("bridge", "first_prerouting"), PORT)]
        said += [self._say(header, "t", place, PORT) for place in below]
        if above and above[0] == ("ip", "prerouting"):
            said.append(self._say(header, OWN, ("ip", "first_prerouting"), BRIDGE))
        said += [self._say(header, "t", place, BRIDGE) for place in above]
        return said[: random.randint(1, len(said)) if may_die and random.random() < 0.5 else None]

    def _say(self, header: Header, table: str, place: tuple[str, str], iif: int) -> Said:
        family, chain = place
        step = TraceStep("nft", family, None, table, chain, "policy", None, None, 1, None)
        number = self.table.find_or_add(step)
        assert number is not None
        return Said(number, header, legacy=False, mark=0, iif=iif, oif=0)


def _mix(seed: int, count: int, *, alive: int, alike: bool = False) -> tuple[_Frames, Mixed]:
    random = Random(seed)  # noqa: S311 - the same again for the same seed
    frames = _Frames()
    packets = [
        frames.walk(Header(1000 if alike else 1000 + number), random, may_die=not alike)
        for number in range(count)
    ]
    mixed = interleave(packets, random, alive=alive)
    events = mixed.batch.events
    events["trace_id"][events["iif"] == BRIDGE] += _OTHER_ID
    return frames, mixed


def _assemble(frames: _Frames, batches: list[TraceBatch]) -> list[tuple[int, ...]]:
    assembler, book = Assembler(), StepBook(frames.table, _ruleset())
    found = [assembler.add(batch, book, NOW_NS) for batch in batches]
    return sorted(journeys_of([*found, assembler.flush(book)]))


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 5), st.lists(st.integers(0, 60)))
def test_frames_on_several_processors_are_told_apart(
    seed: int, count: int, alive: int, cuts: list[int]
) -> None:
    """Bridged, handed up, in turn or stolen, however mixed: a journey is one frame's steps."""
    frames, mixed = _mix(seed, count, alive=alive)
    places = [place for place in cuts if place <= len(mixed.batch.events)]

    assert sorted(mixed.journeys) == _assemble(frames, cut(mixed.batch, places))


@given(st.integers(0, 2**32), st.integers(1, 30))
def test_equal_frames_in_a_row_are_told_apart(seed: int, count: int) -> None:
    """Nothing but their order tells these apart, and that does."""
    frames, mixed = _mix(seed, count, alive=1, alike=True)

    found = _assemble(frames, [mixed.batch])

    assert sorted(mixed.journeys) == found
