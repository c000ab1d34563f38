"""
What counting, naming and recording drops costs the traffic, as shares lost within one run.

`./dev bench drops [PART…]`: cost, peers, record, forward, start, scale; all of them where
none is named. Each prints one JSON object a line. See `tests.bench.drop_load` for the load
and for how shares are taken.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import drop_load as load
from tests.kernel import nets
from tracer.core.drops import Rung
from tracer.sources.drops import RULE_RATE, DropSource, Mode
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PACKETS = 60_000
_ROUNDS = 30
_RECORDS = 2_000_000
_READER_CPU = 1
#: The ring has room for a tenth of a second.
_READ_EVERY_S = 0.005
_NAMESPACES = 20


@dataclass(frozen=True, slots=True)
class _On:
    """How a source is set: with *rules* 0 as it comes, sampling by itself; 1 never."""

    rung: Rung
    mode: Mode = Mode.COUNT
    rules: int = 1


class _Attached:
    """A source that is put on and off. Its ring is emptied between the rounds."""

    def __init__(self, source: DropSource) -> None:
        self.source = source

    def resume(self) -> None:
        """Attach."""
        self.source.resume()

    def pause(self) -> None:
        """Detach."""
        self.source.pause()
        self.source.read()


@contextlib.contextmanager
def _opened(on: _On, victims: tuple[str, ...] = (load.VICTIM,)) -> Iterator[_Attached]:
    source = DropSource([find_namespace(name) for name in victims], on.rung)
    source.open()
    with contextlib.closing(source):
        if on.rules:
            source.set_mode(on.mode, rules=on.rules)
        else:
            source.set_mode(on.mode)
            source.set_rule_rate(RULE_RATE)
        source.pause()
        yield _Attached(source)


def _tell(part: str, **row: object) -> None:
    sys.stdout.write(json.dumps({"part": part, **row}) + "\n")
    sys.stdout.flush()


def _compare(
    part: str, name: str, rules: tuple[str, str], on: dict[str, _On], rounds: int = _ROUNDS
) -> None:
    with contextlib.ExitStack() as stack:
        injector = stack.enter_context(load.injecting(rules))
        switches: dict[str, load.Switch] = {"off": load.Off()}
        for what, one in on.items():
            switches[what] = stack.enter_context(_opened(one))
        for what, cost in load.measure(injector, switches, _PACKETS, rounds).items():
            switch = switches[what]
            losses = switch.source.losses() if isinstance(switch, _Attached) else None
            lost = {k: v for k, v in losses._asdict().items() if v} if losses else {}
            _tell(part, rules=name, configuration=what, **cost.row(), counted=lost)


def cost() -> None:
    """Tell the share of a drop load's throughput that each rung takes."""
    counting = {"reason": _On(Rung.REASON), "hook": _On(Rung.HOOK)}
    _compare("cost", "nft", load.nft(), counting)
    _compare("cost", "legacy", load.legacy(1), counting)
    for dropping in (1, 4, 40):
        on = {"rule": _On(Rung.RULE), "rule, as it comes": _On(Rung.RULE, rules=0)}
        _compare("cost", f"legacy, {dropping} dropping", load.legacy(dropping), on)


#: What bpftrace is to do at every drop. Both have to open their files, which it prints.
_PEERS = {
    "bpftrace, a line a drop": 'tracepoint:skb:kfree_skb { printf("%d\\n", args->reason); }',
    "bpftrace, counting": "tracepoint:skb:kfree_skb { @[args->reason] = count(); }",
}


class _Peer:
    """bpftrace, which attaches when it starts and detaches when it ends."""

    def __init__(self, program: str) -> None:
        self._program = program

    def resume(self) -> None:
        """Start it, and wait until it says that it has attached."""
        words = ["bpftrace", "-e", f'BEGIN {{ printf("ready\\n"); }} {self._program}']
        self._out = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed by pause()
        env = {**os.environ, "BPFTRACE_PERF_RB_PAGES": "1024"}
        self._process = subprocess.Popen(
            words, stdout=self._out, stderr=subprocess.DEVNULL, env=env
        )
        nets.wait_until(lambda: b"ready" in self._read(), 20, "bpftrace")

    def _read(self) -> bytes:
        return Path(self._out.name).read_bytes()[:64]

    def pause(self) -> None:
        """Interrupt it and wait for its end."""
        self._process.send_signal(2)
        self._process.wait(20)
        self._out.close()


def peers() -> None:
    """Compare counting and recording with bpftrace's, in fewer rounds: it starts slowly."""
    nets.run("mount", "-t", "tracefs", "t", "/sys/kernel/tracing", check=False)
    with contextlib.ExitStack() as stack:
        injector = stack.enter_context(load.injecting(load.nft()))
        switches: dict[str, load.Switch] = {"off": load.Off()}
        switches["reason"] = stack.enter_context(_opened(_On(Rung.REASON)))
        switches["hook, recorded"] = stack.enter_context(_opened(_On(Rung.HOOK, Mode.RECORD)))
        switches |= {name: _Peer(program) for name, program in _PEERS.items()}
        for what, told in load.measure(injector, switches, _PACKETS, 7).items():
            _tell("peers", rules="nft", configuration=what, **told.row())


def record() -> None:
    """
    Record every one of many drops, one process reading on a CPU of its own.

    As many as the kernel takes in: one rule alone is in their way.
    """
    for rung in (Rung.REASON, Rung.HOOK):
        with load.injecting(load.nft(1)) as injector, _opened(_On(rung, Mode.RECORD)) as attached:
            os.sched_setaffinity(0, {_READER_CPU})
            source = attached.source
            source.resume()
            injector.start(_RECORDS)
            read, began, used = 0, time.monotonic(), time.process_time()
            while read < _RECORDS and time.monotonic() < began + 60:
                read += len(source.read())
                time.sleep(_READ_EVERY_S)
            elapsed, used = time.monotonic() - began, time.process_time() - used
            ns = injector.wait()
            read += len(source.read())
            os.sched_setaffinity(0, set(range(os.cpu_count() or 1)))
            losses = source.losses()
            _tell(
                "record",
                rung=rung,
                drops=losses.seen,
                recorded=read,
                unrecorded=losses.unrecorded,
                drops_a_second=round(_RECORDS / ns * 1e9),
                reader_share=round(used / elapsed, 3),
            )


def forward() -> None:
    """Forward packets of which none is dropped, with the rung that is chosen here, and off."""
    names = ("snd", "rtr")
    for name in names:
        nets.add_netns(name, forward=name == "rtr")
    nets.veth("snd", "s0", "10.0.0.1/24", "rtr", "r0", "10.0.0.2/24")
    nets.route("snd", "10.0.1.0/24", "via", "10.0.0.2")
    # It takes in without a word what was not redirected to it, and that is no drop.
    nets.ip_batch("rtr", ["link add sink type ifb", "link set sink up"])
    nets.route("rtr", "10.0.1.0/24", "dev", "sink")
    nets.load_rules("rtr", "legacy", "*filter\n-A FORWARD -p tcp -j DROP\nCOMMIT\n")
    source = DropSource([find_namespace("rtr")])
    source.open()
    attached = _Attached(source)
    attached.pause()
    switches: dict[str, load.Switch] = {"off": load.Off(), "on": attached, "off again": load.Off()}
    taken: dict[str, list[float]] = {name: [] for name in switches}
    for _ in range(60):
        for name, switch in switches.items():
            switch.resume()
            done = nets.flood("snd", "10.0.1.1", 9, 20_000, cpu=load.CPU)
            switch.pause()
            taken[name].append(done.elapsed_ns / done.sent)
    seen = source.losses().seen
    source.close()
    for name in names:
        nets.delete_netns(name)
    for what, told in load.costs(taken).items():
        _tell("forward", configuration=what, rung=source.rung, drops=seen, **told.row())


def start() -> None:
    """Tell how long it takes until drops are counted, and what a watching process holds."""
    with load.injecting(load.legacy(40)):
        for rung in (Rung.REASON, None):
            taken = []
            for _ in range(7):
                source = DropSource([find_namespace(load.VICTIM)], rung)
                began = time.monotonic()
                source.open()
                taken.append(time.monotonic() - began)
                stands = source.rung
                source.close()
            what = "without calibration" if rung is Rung.REASON else "with calibration"
            seconds = {"median": statistics.median(taken), "worst": max(taken)}
            told = {name: round(value, 3) for name, value in seconds.items()}
            _tell("start", what=what, rung=stands, seconds=told)
        words = [sys.executable, "-c", _WATCH]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=nets.ROOT)
        _tell("start", what="resident beside the ring", megabytes=float(done.stdout))


#: The ring's pages are mapped, and count as resident where they were read.
_WATCH = """
import gc, re
from tracer.sources.drops import DropSource
source = DropSource()
source.open()
source.counts()
source.read()
gc.collect()
rows = open("/proc/self/smaps").read().split("VmFlags")
ring = sum(
    int(re.search(r"Rss: +([0-9]+)", row)[1]) for row in rows if "anon_inode:bpf-map" in row
)
rss = sum(int(n) for row in rows for n in re.findall(r"Rss: +([0-9]+)", row))
print(round((rss - ring) / 1024, 1))
"""


def scale() -> None:
    """Tell how the cost of a drop grows with 1,000 rules, and with twenty namespaces."""
    on = {"rule": _On(Rung.RULE), "rule, as it comes": _On(Rung.RULE, rules=0)}
    kinds, lines = load.legacy(40)
    more = "".join(f"-A many -p tcp --dport {n} -j ACCEPT\n" for n in range(1000))
    _compare("scale", "40 dropping", (kinds, lines), on, 15)
    many = lines.replace("*mangle\n", "*mangle\n:many - [0:0]\n").replace(
        "COMMIT\n", more + "COMMIT\n"
    )
    _compare("scale", "40 dropping, and 1,000 in a chain beside", (kinds, many), on, 15)
    drops = "".join(f"-A many -p tcp --dport {n} -j DROP\n" for n in range(1000))
    many = lines.replace("*mangle\n", "*mangle\n:many - [0:0]\n").replace(
        "COMMIT\n", drops + "COMMIT\n"
    )
    _compare("scale", "40 dropping, and 1,000 that drop beside", (kinds, many), on, 15)
    _scale_namespaces()


def _scale_namespaces() -> None:
    names = tuple(f"b{number}" for number in range(_NAMESPACES))
    with contextlib.ExitStack() as stack:
        injectors = [stack.enter_context(load.injecting(load.legacy(4), name)) for name in names]
        attached = stack.enter_context(_opened(_On(Rung.RULE), names))
        for count in (1, _NAMESPACES):
            switches: dict[str, load.Switch] = {"off": load.Off(), "rule": attached}
            taken: dict[str, list[float]] = {name: [] for name in switches}
            for _ in range(15):
                for what, switch in switches.items():
                    switch.resume()
                    each = _PACKETS // count
                    taken[what].append(statistics.fmean(i.send(each) for i in injectors[:count]))
                    switch.pause()
            for what, told in load.costs(taken).items():
                _tell("scale", rules=f"{count} namespaces", configuration=what, **told.row())
        began = time.monotonic()
        attached.source.counts()
        _tell("scale", rules=f"{_NAMESPACES} namespaces", counts_s=time.monotonic() - began)


_PARTS: dict[str, Callable[[], None]] = {
    part.__name__: part for part in (cost, peers, record, forward, start, scale)
}


def main() -> None:
    """Run the parts that are named, or all."""
    names = sys.argv[1:] or list(_PARTS)
    unknown = [name for name in names if name not in _PARTS]
    if unknown:
        sys.stderr.write(f"no such part: {unknown[0]}; there are {', '.join(_PARTS)}\n")
        raise SystemExit(2)
    nets.enter_private_namespaces()
    gc.disable()
    for name in names:
        _PARTS[name]()


if __name__ == "__main__":
    main()
