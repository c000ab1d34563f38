"""Write every generated file, or name those that are not as they would be written."""

from __future__ import annotations

import sys
from pathlib import Path

from dashboards.files import render_files

ROOT = Path(__file__).resolve().parent


def main() -> int:
    """Write all files below dashboards/; return 0."""
    for name, text in render_files().items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
