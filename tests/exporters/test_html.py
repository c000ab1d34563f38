"""The page: one file that needs nothing, reads on a phone and in the dark, and trusts no text."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.html import render_page
from exporters.html_parts import safe
from tests.timelines import BEFORE, FIXED, INSTALLED, drops, route, ruleset, story
from tracer.core.timeline import build_timeline

if TYPE_CHECKING:
    from pathlib import Path

    from tracer.core.timeline_events import Timeline

_PHONE = 360
_VOID = {"meta", "rect", "br"}


def _told() -> Timeline:
    return build_timeline(
        story(
            [
                ruleset(1, "", BEFORE, "stands"),
                ruleset(10, BEFORE, INSTALLED, pid=4711),
                route(15, "10.77.0.0/16"),
                ruleset(80, INSTALLED, FIXED, pid=17),
            ],
            [drops(21, 29, 7), drops(41, 49, 11), drops(61, 69, 13)],
        )
    )


class _Page(HTMLParser):
    """Holds that tags nest and close, and collects what would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.fetched: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in _VOID:
            self.open.append(tag)
        self.fetched += [name for name, _ in attrs if name in {"src", "href", "data", "action"}]
        self.fetched += [name for name, _ in attrs if name.startswith("on")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_what_the_terminal_says() -> None:
    """How many died where, because of whom, with the diff, since when it is over; all in one."""
    page = _Page(render_page(_told(), "--dport 22"))

    assert ([], []) == (page.open, page.fetched)
    assert (3, 0, 0) == tuple(page.counts.get(tag, 0) for tag in ("rect", "script", "link"))
    for words in (
        "31 SYNs of 1 client died in vr2, mangle PREROUTING",
        "Because chain C was installed",
        "(pid 4711)",
        "+ -A C -j DROP",
        "Over since",
        "(pid 17)",
        "route 10.77.0.0/16 came",
        "tcp 183.62.15.118 → 172.17.21.105:22",
    ):
        assert words in page.text


@given(st.text())
def test_no_text_is_markup(text: str) -> None:
    """Whatever somebody names a chain or a process, it is words on the page, and visible."""
    shown = safe(text)

    assert not re.search(r"[<>\"'\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert len(html.unescape(shown)) >= len(text)


def test_a_hostile_name_stays_a_name() -> None:
    """A command and a namespace that are markup close no tag and open none."""
    told = _told()
    evil = '</pre><script>alert(1)</script><img src=x onerror="x">'
    killers = tuple(
        replace(one, place=replace(one.place, netns=evil), base=evil) for one in told.killers
    )
    page = _Page(render_page(replace(told, killers=killers), evil))

    assert ([], []) == (page.open, page.fetched)
    assert evil in page.text


def test_no_drop_is_a_page_too() -> None:
    """With changes alone, and with nothing, the page says so."""
    for changes in ([route(5, "10.77.0.0/16")], []):
        page = _Page(render_page(build_timeline(story(changes, [])), "everything"))

        assert "No drop in this time" in page.text


_MEASURE = """<!DOCTYPE html><meta charset="utf-8"><title>0</title>
<iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe><script>
onload = () => {{
  const inner = document.querySelector("iframe").contentDocument;
  const looks = inner.defaultView.getComputedStyle(inner.body);
  const marks = [...inner.querySelectorAll(".mark")].map(one => one.getBoundingClientRect().left);
  document.title = JSON.stringify({{
    wide: inner.documentElement.scrollWidth, back: looks.backgroundColor, marks,
    bars: [...inner.querySelectorAll("rect")].map(one => one.getBoundingClientRect().height),
  }});
}};
</script>"""


@pytest.mark.parametrize(
    ("scheme", "back"), [("0", "rgb(18, 20, 23)"), ("1", "rgb(255, 255, 255)")]
)
def test_a_browser_shows_it_on_a_phone_in_the_dark_and_in_the_light(
    scheme: str, back: str, tmp_path: Path
) -> None:
    """Nothing is wider than a phone, colours follow the reader, bars are as high as counts."""
    page = html.escape(render_page(_told(), "--dport 22"), quote=True)
    outer = tmp_path / "outer.html"
    outer.write_text(_MEASURE.format(width=_PHONE, page=page), encoding="utf-8")
    seen = _look(outer, tmp_path, scheme)

    assert seen["wide"] <= _PHONE
    assert back == seen["back"]
    assert [7 / 13, 11 / 13, 1.0] == pytest.approx(
        [height / seen["bars"][2] for height in seen["bars"]], abs=0.01
    )
    assert 3 == len(seen["marks"])


def _look(file: Path, folder: Path, scheme: str) -> dict[str, Any]:
    """Open *file* in a browser that has no network, and return what it measured."""
    browser = shutil.which("chromium")
    assert browser is not None, "install chromium, as ./dev setup does"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [
        f"--user-data-dir={folder}/browser",
        f"--blink-settings=preferredColorScheme={scheme}",
    ]
    done = subprocess.run(
        ["unshare", "--net", *command, file.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    told: dict[str, Any] = json.loads(html.unescape(title[1]))
    return told
