"""promtool, and what it is asked."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path


def promtool(*words: str | Path) -> str:
    """
    Run promtool and return what it printed.

    Errors: AssertionError with its words where it is not content, or not installed.
    """
    try:
        done = subprocess.run(("promtool", *words), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise AssertionError("promtool is not installed: ./dev setup installs it") from None
    assert done.returncode == 0, f"promtool {words}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_rule_test(folder: Path, rule: dict[str, Any], test: dict[str, Any]) -> None:
    """Hold one alert *rule* against promtool's *test*; AssertionError where it fails."""
    rules, file = folder / "rules.yml", folder / "test.yml"
    rules.write_text(
        yaml.safe_dump({"groups": [{"name": "one", "rules": [rule]}]}), encoding="utf-8"
    )
    # Evaluated as often as anything was scraped.
    tree = {
        "rule_files": [str(rules)],
        "evaluation_interval": test["interval"],
        "tests": [test],
    }
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    promtool("test", "rules", file)
