"""Who may import whom, so that the core stays free of the machine."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
OURS = ("bpf", "dashboards", "exporters", "tracer")

# Each part, and the parts that it may import besides itself. The errors and the version
# are leaves that every part may use. The demo is an application of its own: it builds a
# network, enters its namespaces as sources do and prints with the command line's look.
MAY_IMPORT = {
    "tracer": set(),
    "tracer.errors": set(),
    "tracer.core": set(),
    "bpf": set(),
    "tracer.sources": {"tracer.core", "bpf"},
    "tracer.pipeline": {"tracer.core"},
    "tracer.settle": {"tracer.pipeline", "tracer.core"},
    "exporters": {"tracer.core"},
    # They are about metrics, and take their names from where they are declared.
    "dashboards": {"exporters"},
    # It lets packets die in the demo's network, to have something to draw.
    "dashboards.preview": {"dashboards", "tracer.demo", "tracer.sources"},
    "tracer.daemon": {
        "tracer.sources",
        "tracer.pipeline",
        "tracer.settle",
        "exporters",
        "tracer.core",
    },
    "tracer.demo": {"tracer.sources", "tracer.core", "tracer.cli.theme"},
    "tracer.cli": {
        "tracer.sources",
        "tracer.pipeline",
        "tracer.settle",
        "exporters",
        "tracer.core",
        "tracer.demo",
        "tracer.daemon",
    },
}
LEAVES = {"tracer", "tracer.errors"}
CORE_LEAVES = {"tracer.errors"}

# What reaches the machine, waits, tells the time or logs. ipaddress does what the core
# would want of socket.
IMPURE = {
    "asyncio",
    "bcc",
    "ctypes",
    "fcntl",
    "io",
    "logging",
    "mmap",
    "multiprocessing",
    "nftables",
    "os",
    "pathlib",
    "pyroute2",
    "random",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "structlog",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
}
IMPURE_BUILTINS = {"open", "print", "input", "breakpoint"}


def _modules() -> dict[str, Path]:
    found = {}
    for top in OURS:
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = _modules()


def _imports(name: str) -> Iterator[str]:
    """Yield every module that *name* imports, wherever in the file, absolute."""
    path = MODULES[name]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            # `from tracer.core import journey` imports a module, not a name of one.
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)


def _part(module: str) -> str:
    """Return the longest key of MAY_IMPORT that *module* is or is in."""
    parts = module.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in MAY_IMPORT), module)


def _is_in(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


@pytest.mark.parametrize("name", MODULES)
def test_a_part_imports_only_what_it_may(name: str) -> None:
    """Imports among our own packages follow the directions of MAY_IMPORT."""
    part = _part(name)
    leaves = CORE_LEAVES if part == "tracer.core" else LEAVES
    wrong = [
        module
        for module in _imports(name)
        if module.split(".")[0] in OURS
        and _part(module) not in leaves | {part}
        and not any(_is_in(module, allowed) for allowed in MAY_IMPORT[part])
    ]

    assert not wrong


@pytest.mark.parametrize("name", [name for name in MODULES if _is_in(name, "tracer.core")])
def test_the_core_reaches_nothing_outside(name: str) -> None:
    """Core modules import nothing that does I/O, waits, tells the time or logs."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }

    assert not {module for module in _imports(name) if module.split(".")[0] in IMPURE}
    assert not called & IMPURE_BUILTINS


def test_every_module_belongs_to_a_part() -> None:
    """A new part must be given its directions before it can import anything."""
    parts = {_part(name) for name in MODULES}

    assert parts <= MAY_IMPORT.keys()
    # `tracer` itself stands for the version alone, not for whatever has no part.
    assert [name for name in MODULES if _part(name) == "tracer"] == ["tracer"]


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("tracer.core.journey", "tracer.sources.netns", False),
        ("tracer.core.journey", "tracer.errors", True),
        ("tracer.sources.netns", "tracer.core.events", True),
        ("exporters.json_lines", "tracer.sources.netns", False),
        ("tracer.sources.netns", "tracer.cli.theme", False),
        ("tracer.demo.demo", "tracer.cli.theme", True),
        ("tracer.demo.demo", "tracer.cli.main", False),
    ],
)
def test_the_directions_are_as_designed(importer: str, imported: str, *, allowed: bool) -> None:
    """The table above says what the design says, for the cases that tempt most."""
    part = _part(importer)
    permitted = _part(imported) in LEAVES | {part} or any(
        _is_in(imported, other) for other in MAY_IMPORT[part]
    )

    assert allowed == permitted
