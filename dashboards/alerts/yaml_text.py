"""As much YAML as rule files need: mappings, lists and texts; a text of several lines as block."""

from __future__ import annotations

import json
from typing import TypeAlias

__all__ = ["Tree", "render_yaml"]

Tree: TypeAlias = "dict[str, Tree] | list[Tree] | str | int | bool"


def render_yaml(tree: dict[str, Tree]) -> str:
    """Return *tree* as YAML; texts stand as JSON's, which are YAML's as well."""
    return "\n".join(_lines(tree)) + "\n"


def _lines(tree: Tree) -> list[str]:
    if isinstance(tree, dict):
        return [line for key, value in tree.items() for line in _entry(f"{key}:", value)]
    if isinstance(tree, list):
        return [line for value in tree for line in _item(_lines(value))]
    return [json.dumps(tree, ensure_ascii=False)]


def _entry(key: str, value: Tree) -> list[str]:
    if isinstance(value, str) and "\n" in value:
        return [f"{key} |-", *(f"  {line}" for line in value.split("\n"))]
    lines = _lines(value)
    if isinstance(value, dict | list) and value:
        return [key, *(f"  {line}" for line in lines)]
    return [f"{key} {lines[0] if lines else '[]'}"]


def _item(lines: list[str]) -> list[str]:
    return [f"{'  ' if at else '- '}{line}" for at, line in enumerate(lines)]
