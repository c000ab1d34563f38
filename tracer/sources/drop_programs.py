"""
The programs that count and record drops, with all that finding places needs: one object.

What they are is described here, where no kernel is needed; `tracer.sources.drops` has
the use of them.
"""

from __future__ import annotations

from pathlib import Path

from bpf.loader import Loaded, ObjectSpec, ProgramSpec, load
from bpf.syscalls import PROG_TYPE_RAW_TRACEPOINT
from tracer.sources import bpf_hooks
from tracer.sources.bpf_armed import TABLES_MAX
from tracer.sources.bpf_calibrate import STACK_RING_BYTES, call_modules
from tracer.sources.bpf_deadline import Deadline
from tracer.sources.bpf_kinds import KINDS_MAX
from tracer.sources.bpf_ladder import FUNCTIONS, MARKS_MAX, PROGRAMS, TYPES
from tracer.sources.bpf_places import PLACES_MAX
from tracer.sources.bpf_rules import OFFSETS

__all__ = ["NETNS_MAX", "RING_BYTES", "load_programs"]

_PAGE = 4096
#: 116,000 records.
RING_BYTES = 1 << 24
#: Namespaces whose drops alone are recorded.
NETNS_MAX = 1024
#: The kernel reads modules from a disk.
_MODULES_S = 60.0
_SPEC = ObjectSpec(
    source="drops.bpf.c+calibrate.bpf.c+probes.bpf.c+links.bpf.c",
    programs=(
        *(
            ProgramSpec(name, PROG_TYPE_RAW_TRACEPOINT)
            for name in (
                *("on_kfree_skb_locate", "on_kfree_skb_count"),
                *("on_kfree_skb_sample", "on_peek"),
            )
        ),
        *PROGRAMS,
    ),
    maps=(
        *("config", "stats", "numbers", "kinds", "counts", "free_numbers", "places"),
        *("records", "recorded_netns", "recorded_flows", "tables", "rules", "seen_rules"),
        *("scratches", "stacks", "peeked", "sampled_mark", "marks"),
    ),
    types=(
        *("sk_buff", "net", "net_device", "sock", "dst_entry", "nf_hook_state"),
        *("xt_table", "nft_chain", "nft_table", *TYPES),
    ),
    enums=("skb_drop_reason",),
    offsets=(
        "sk_buff._nfct",
        "nft_table.family",
        "nft_pktinfo.state",
        *OFFSETS,
        *bpf_hooks.OFFSETS,
    ),
    functions=FUNCTIONS,
    defines={
        "NT_COUNTS_MAX": KINDS_MAX,
        "NT_PLACES_MAX": PLACES_MAX,
        "NT_NETNS_MAX": NETNS_MAX,
        "NT_RING_PAGES": RING_BYTES // _PAGE,
        "NT_TABLES_MAX": TABLES_MAX,
        "NT_MARKS_MAX": MARKS_MAX,
        "NT_STACK_PAGES": STACK_RING_BYTES // _PAGE,
    },
)


def load_programs(*, calls_modules: bool) -> Loaded:
    """
    Load them, once more where their types came with modules that we called.

    Modules are called where *calls_modules*, and types are missing.
    Errors: KernelUnsupportedError, KernelRefusedError.
    """
    loaded = load(_SPEC)
    if loaded.missing and calls_modules:
        before = _modules()
        call_modules(Deadline(_MODULES_S, 1.0))
        if _modules() != before:
            loaded.close()
            loaded = load(_SPEC)
    return loaded


def _modules() -> frozenset[str]:
    return frozenset(path.name for path in Path("/sys/module").iterdir())
