"""
Draw the dashboards, as root: `python -m dashboards.preview [SECONDS]`.

Grafana's components come by npm into .cache/preview, the numbers from a real daemon and a
real Prometheus over real drops, in namespaces with no way out. The pictures go to
docs/images/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dashboards.files import make_dashboards
from dashboards.preview.answers import Window, collect
from dashboards.preview.draw import draw, fetch_components
from dashboards.preview.traffic import run_traffic
from tracer.demo.lab import Backend, Lab
from tracer.demo.private import run_in_private
from tracer.demo.services import Services, wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashboards.grafana.model import Json

ROOT: Final = Path(__file__).resolve().parents[2]
WORK: Final = ROOT / ".cache" / "preview"
#: Not the demo's two seconds: a picture needs no haste, and a busy machine more time.
_SCRAPE_S: Final = 5
_WITHIN_S: Final = 60.0
_LEAST_S: Final = 60
#: Programs that have their Debian packages' names.
_PROGRAMS: Final = ("npm", "chromium", "pngquant", "prometheus")
_WATCHED: Final = ("inet", "vr1", "vr2")
_CHAIN: Final = "FIREWALL_172.17.21.105"
_ANY: Final = {"host": ".*", "netns": ".*", "table": ".*", "chain": ".*"}


def main(words: Sequence[str] | None = None) -> int:
    """Fetch, watch, draw; return the exit status: 2 wrong usage, 3 a program is missing."""
    lasts_s = _read_seconds(words)
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        names = " ".join(missing)
        sys.stderr.write(f"preview: {names} not installed: apt-get install {names}\n")
        return 3
    WORK.mkdir(parents=True, exist_ok=True)
    fetch_components(WORK)
    status = run_in_private(lambda _pid: _watch(lasts_s))
    if status == 0:
        for name in make_dashboards():
            answers = json.loads(_path_of(name).read_text(encoding="utf-8"))
            draw(answers, WORK, ROOT / "docs" / "images" / f"{Path(name).stem}.png")
    return status


def _read_seconds(words: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dashboards.preview")
    parser.add_argument("seconds", nargs="?", type=int, default=300, help="how long packets die")
    seconds: int = parser.parse_args(words).seconds
    if seconds < _LEAST_S:
        parser.error(f"{seconds} seconds: lines need {_LEAST_S} or more")
    return seconds


def _watch(lasts_s: int) -> int:
    """Let packets die under a daemon's eyes and keep what Prometheus has to say of it."""
    subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
    with Lab(Backend.NFT) as lab, Services(Path("/run/nftrace-preview")) as services:
        services.start_daemon(_WATCHED)
        rules = ROOT / "dashboards" / "alerts" / "nftrace.rules.yml"
        services.start_prometheus(rules, "router", scrape_s=_SCRAPE_S)
        seen = "count_over_time(nftrace_build_info[1m]) >= 2"
        wait_for("a second scrape", _WITHIN_S, lambda: services.ask(seen) or None)
        started_s = time.time()
        run_traffic(lab, lasts_s)
        # Where a scrape was not answered in time, nothing is there until the next.
        known = f'nftrace_rule_info{{chain="{_CHAIN}"}}'
        (rule,) = wait_for(known, _WITHIN_S, lambda: services.ask(known) or None)
        _write(Window(started_s, time.time(), _SCRAPE_S), rule["metric"])
    return 0


def _write(window: Window, rule: Json) -> None:
    of_rule = {name: rule[name] for name in ("netns", "table", "chain")}
    for name, dashboard in make_dashboards().items():
        values = {**_ANY, "rule": rule["rule_id"]}
        shown = dict.fromkeys(_ANY, "All")
        if "rule" in {one["name"] for one in dashboard["templating"]["list"]}:
            values |= of_rule
            shown |= {**of_rule, "rule": rule["text"]}
        answers = {**collect(dashboard, window, values), "shown": shown}
        _path_of(name).write_text(json.dumps(answers), encoding="utf-8")


def _path_of(name: str) -> Path:
    return WORK / f"{Path(name).stem}-answers.json"


if __name__ == "__main__":
    sys.exit(main())
