"""The C structures and their numpy mirror are one fact."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bpf import layout
from tracer.core.drop_events import SkbEventKind

if TYPE_CHECKING:
    import numpy as np

_BPF = Path(layout.__file__).parent

MIRRORS: dict[str, np.dtype[np.void]] = {
    "nt_config": layout.CONFIG,
    "nt_drop_count": layout.DROP_COUNT,
    "nt_drop_key": layout.DROP_KEY,
    "nt_drop_record": layout.DROP_RECORD,
    "nt_event": layout.EVENT_RECORD,
    "nt_exec": layout.EXEC_RECORD,
    "nt_flow": layout.FLOW,
    "nt_layout": layout.LAYOUT,
    "nt_mark": layout.MARK,
    "nt_mark_key": layout.MARK_KEY,
    "nt_match": layout.MATCH,
    "nt_matches": layout.MATCHES,
    "nt_numbers": layout.NUMBERS,
    "nt_peek": layout.PEEK,
    "nt_place": layout.PLACE,
    "nt_place_key": layout.PLACE_KEY,
    "nt_rules": layout.RULES,
    "nt_seen_rules": layout.SEEN_RULES,
    "nt_stack": layout.STACK,
    "nt_stats": layout.STATS,
}
ENUMS = {"NT_SITE_": layout.Site, "NT_MODE_": layout.Mode, "NT_STAT_": layout.Stat}
ENUMS |= {"NT_EVENT_": SkbEventKind}
CONSTANTS = {
    "NT_FUNCTION_LEGACY": layout.FUNCTION_LEGACY,
    "NT_MARK_SOLE": layout.MARK_SOLE,
    "NT_NO_HOOK": layout.NO_HOOK,
    "NT_LAYOUTS_MAX": layout.LAYOUTS_MAX,
    "NT_MATCHES_MAX": layout.MATCHES_MAX,
    "NT_RULES_MAX": layout.RULES_MAX,
    "NT_WORDS": layout.WORDS,
    "NT_PEEK_BYTES": layout.PEEK_BYTES,
    "NT_EXEC_BYTES": layout.EXEC_BYTES,
}


@pytest.fixture(scope="module")
def in_c(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Compile a program that prints every size, offset and constant that we mirror."""
    lines = []
    for struct, dtype in MIRRORS.items():
        lines.append(f'P("{struct}", sizeof(struct {struct}))')
        lines += [
            f'P("{struct}.{name}", offsetof(struct {struct}, {name}))' for name in dtype.names or ()
        ]
    names = [f"{prefix}{member.name}" for prefix, enum in ENUMS.items() for member in enum]
    lines += [f'P("{name}", {name})' for name in (*names, *CONSTANTS)]
    folder = tmp_path_factory.mktemp("layout")
    source = folder / "layout.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n"
        f'#include "{_BPF}/records.h"\n'
        '#define P(name, value) printf("%s %zu\\n", name, (size_t)(value));\n'
        "int main(void) {" + "".join(lines) + "}\n",
        encoding="ascii",
    )
    program = folder / "layout"
    subprocess.run(["gcc", "-o", program, source], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in map(str.split, printed.splitlines())}


@pytest.mark.parametrize("struct", MIRRORS)
def test_sizes_and_offsets_agree(in_c: dict[str, int], struct: str) -> None:
    """Every member lies where numpy looks for it, and nothing is behind the last."""
    dtype = MIRRORS[struct]
    fields = dtype.fields or {}
    mirrored = {struct: dtype.itemsize}
    mirrored |= {f"{struct}.{name}": fields[name][1] for name in dtype.names or ()}

    compiled = {name: in_c[name] for name in in_c if re.fullmatch(rf"{struct}(\..*)?", name)}

    assert mirrored == compiled


def test_constants_agree(in_c: dict[str, int]) -> None:
    """Limits and enumerations have one value on both sides."""
    mirrored = {f"{prefix}{m.name}": int(m) for prefix, enum in ENUMS.items() for m in enum}
    mirrored |= CONSTANTS

    assert mirrored == {name: in_c[name] for name in mirrored}


def test_every_structure_is_mirrored() -> None:
    """No structure of records.h is without a mirror."""
    declared = re.findall(
        r"^struct (nt_\w+) \{", (_BPF / "records.h").read_text(encoding="ascii"), re.MULTILINE
    )

    assert sorted(MIRRORS) == sorted(declared)
