"""Pages as a browser lays them out: headless Chromium measures what is on them."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from labctl.reports import html
from tests.unit.test_matrix import example
from tests.unit.test_pages import DRAWN

NAMES = "chromium", "chromium-browser", "google-chrome"
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")
FLAGS = """
--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking
--disable-component-update --disable-sync --virtual-time-budget=20000 --dump-dom
"""
WIDTHS = 360, 375, 820, 1280
MEASURE = """<script>
const found = [], range = document.createRange();
for (const text of document.querySelectorAll("svg text"))
  for (const line of text.childNodes) {
    range.selectNodeContents(line);
    const r = range.getBoundingClientRect();
    if (r.width) found.push([r.top, r.left, r.right, r.height, line.textContent]);
  }
const broken = [], walker = document.createTreeWalker(document.querySelector("main"), 4);
for (let node; (node = walker.nextNode()); )
  if (!node.parentElement.closest("svg, details:not([open])"))
    for (const word of node.data.matchAll(/[^\\s]+/g)) {
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const tops = new Set([...range.getClientRects()].map((r) => Math.round(r.top)));
      if (word[0].length <= 24 && tops.size > 1) broken.push(word[0]);
    }
const page = document.documentElement;
const width = page.clientWidth, needs = page.scrollWidth;
parent.postMessage({name: window.name, width, needs, found, broken}, "*");
</script>"""
COLLECT = """<script>
const all = {};
addEventListener("message", (m) => { all[m.data.name] = m.data;
  document.querySelector("pre").textContent = JSON.stringify(all); });
</script><pre></pre>"""


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium or google-chrome")
def test_nothing_touches_or_breaks_and_nothing_is_wider_than_the_screen(tmp_path: Path) -> None:
    frames = []
    pages = {name: html.page(run()) for name, run in DRAWN.items()}
    shown = [replace(run(), theme=name[:1]) for name, run in DRAWN.items()]
    pages["index"] = html.index(shown)
    other = (
        "x.html",
        replace(DRAWN["inward"](), name="old plain, new both, bind EADDRINUSE, " * 3),
    )
    pages["beside"] = html.page(DRAWN["inward"](), html.Place("index.html", other, other))
    pages["places"] = html.comparison(example())
    for number, (name, text) in enumerate(pages.items()):
        (tmp_path / f"{number}.html").write_text(text + MEASURE, "utf-8")
        frames += [
            f'<iframe name="{name} at {width}" src="{number}.html" width={width} height=900>'
            f"</iframe>"
            for width in WIDTHS
        ]
    (tmp_path / "all.html").write_text(COLLECT + "".join(frames), "utf-8")
    profile, page = f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path}/all.html"
    command = [CHROMIUM, *FLAGS.split(), profile, page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    seen = json.loads(unescape(done.stdout.partition("<pre>")[2].partition("</pre>")[0]))
    assert len(seen) == len(frames)
    for name, shown in seen.items():
        assert shown["needs"] <= shown["width"], name
        assert not shown["broken"], name
        texts = sorted(shown["found"])
        assert texts or name.startswith(("index", "places"))
        for n, (top, left, right, height, words) in enumerate(texts):
            for below, begin, end, _, others in texts[n + 1 :]:
                if below >= top + 0.8 * height:  # what is below the letters is space
                    break
                assert begin >= right - 0.5 or end <= left + 0.5, (name, words, others)
