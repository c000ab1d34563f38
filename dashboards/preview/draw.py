"""From Prometheus' answers to pictures: Grafana's components by npm, chromium, pngquant."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dashboards.grafana.model import Json

__all__ = ["draw", "fetch_components", "find_height"]

PAGE: Final = Path(__file__).resolve().parent / "page"
#: As page.jsx has them: a cell of the grid with the gap below it, and what stands around.
_CELL: Final = 38
_AROUND: Final = 104
_WIDTH: Final = 1440
_NPM_S: Final = 600.0
_DRAW_S: Final = 120.0
#: How long the page's own clock runs before the picture is taken.
_PAGE_MS: Final = 8000
_CHROMIUM: Final = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--allow-file-access-from-files"),
)


def find_height(dashboard: Json) -> int:
    """Return how many pixels *dashboard* takes from its title to its last panel's end."""
    rows: int = max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in dashboard["panels"])
    return _AROUND + rows * _CELL


def fetch_components(work: Path) -> None:
    """
    Fetch what package-lock.json names into *work* and bundle the page there.

    Errors: CalledProcessError where npm or esbuild has one, FileNotFoundError without npm.
    """
    shutil.copytree(PAGE, work, dirs_exist_ok=True)
    npm = ("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
    subprocess.run(npm, cwd=work, check=True, timeout=_NPM_S)
    bundle = (
        *("node_modules/.bin/esbuild", "page.jsx", "--bundle", "--minify", "--outdir=out"),
        *("--jsx=automatic", "--loader:.woff2=dataurl", "--loader:.ttf=empty"),
        *('--define:process.env.NODE_ENV="production"', "--log-level=warning"),
    )
    subprocess.run(bundle, cwd=work, check=True, timeout=_DRAW_S)
    shutil.copytree(
        work / "node_modules/@grafana/ui/dist/public/img",
        work / "out/public/build/img",
        dirs_exist_ok=True,
    )
    shutil.copy(PAGE / "page.html", work / "out")


def draw(answers: Json, work: Path, picture: Path) -> None:
    """
    Draw one dashboard's *answers*, as collect() returns them, into the PNG file *picture*.

    Errors: CalledProcessError where chromium or pngquant has one, RuntimeError with the
    page's words where that has one: the picture would be of half a dashboard.
    """
    text = f"window.answers = {json.dumps(answers)};\n"
    (work / "out/answers.js").write_text(text, encoding="utf-8")
    size = f"--window-size={_WIDTH},{find_height(answers['dashboard'])}"
    with tempfile.TemporaryDirectory() as profile:
        command = (
            *(*_CHROMIUM, f"--user-data-dir={profile}", size),
            *(f"--virtual-time-budget={_PAGE_MS}", f"--screenshot={picture}"),
            "--enable-logging=stderr",
            (work / "out/page.html").as_uri(),
        )
        done = subprocess.run(
            command, check=True, timeout=_DRAW_S, stderr=subprocess.PIPE, text=True
        )
    wrong = [line for line in done.stderr.splitlines() if "Uncaught" in line]
    if wrong:
        raise RuntimeError(f"{picture.name}: {wrong[0]}")
    quant = ("pngquant", "--force", "--ext=.png", "--speed=1", "--strip", str(picture))
    subprocess.run(quant, check=True, timeout=_DRAW_S)
