"""The page in Chromium: nothing is wider than a telephone, no script runs, and the numbers are there to read."""

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from hostile_run import hostile_contents
from recorded_runs import contents, make_run, metrics

from quillgpt.report.page import write_page
from quillgpt.report.palette import RUNS_ON_DARK, RUNS_ON_LIGHT

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"),
]
MEASURE = """<iframe id="narrow" src="NARROW" style="width:390px;height:900px;border:0"></iframe>
<iframe id="wide" title="dark" src="WIDE" style="width:1280px;height:900px;border:0;color-scheme:dark"></iframe>
<script>
onload = () => {
  for (const frame of document.querySelectorAll("iframe")) {
    const inside = frame.contentDocument, right = frame.clientWidth;
    const out = [...inside.querySelectorAll("body *")].filter(element =>
      element.getClientRects().length && !element.closest("svg svg, clipPath, defs, thead") &&
      element.getBoundingClientRect().right > right + 0.5);
    frame.dataset.scroll = inside.documentElement.scrollWidth;
    frame.dataset.out = out.map(element => element.tagName + "." + element.className).slice(0, 5).join(" ");
    frame.dataset.shown = [...inside.querySelectorAll("figure svg")].filter(svg => svg.getClientRects().length).length;
    frame.dataset.colour = getComputedStyle(inside.querySelector("figure svg path[style*=run-0]")).stroke;
    frame.dataset.title = inside.title;
    frame.dataset.requests = inside.defaultView.performance.getEntriesByType("resource").length;
  }
};
</script>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser; one that is only a name, as where it is a package of another kind, is none."""
    for name in NAMES:
        path = shutil.which(name)
        if path and subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0:
            return path
    pytest.skip(f"no browser to open the page in: none of {', '.join(NAMES)} is on PATH and starts")


def dom(chromium: str, page: Path, profile: Path) -> str:
    """The document after it was loaded, as Chromium writes it."""
    command = [chromium, *QUIET, f"--user-data-dir={profile}", "--allow-file-access-from-files", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rgb(colour: str) -> str:
    """A colour as a browser computes it."""
    return f"rgb({', '.join(str(int(colour[index : index + 2], 16)) for index in (1, 3, 5))})"


def attributes(text: str, frame: str) -> dict[str, str]:
    """What the script has written on a frame."""
    tag = re.search(rf'<iframe id="{frame}"[^>]*>', text)
    assert tag is not None
    return {name: unescape(value) for name, value in re.findall(r'data-(\w+)="([^"]*)"', tag[0])}


class TestInChromium:
    def test_the_numbers_of_the_metrics_can_be_read(self, chromium: str, tmp_path: Path) -> None:
        write_page(contents(make_run(tmp_path / "run")), tmp_path / "report.html")
        text = dom(chromium, tmp_path / "report.html", tmp_path / "profile")
        cards = dict(re.findall(r'<dt>([^<]+)</dt><dd><span class="value">([^<]+)</span>', text))
        last = metrics()[-1]
        assert cards["Held-out loss"] == f"{last['held_out_loss']:.3f}"
        assert cards["Bits per byte"] == f"{last['held_out_bits_per_byte']:.3f}"
        assert cards["Tokens"] == f"{last['tokens']:,}"
        assert text.count("<figure") == 7

    def test_nothing_is_too_wide_no_script_runs_and_the_dark_scheme_is_dark(
        self, chromium: str, tmp_path: Path
    ) -> None:
        report = hostile_contents(tmp_path)
        write_page(report, tmp_path / "report.html")
        opened = (tmp_path / "report.html").read_text().replace("<details>", "<details open>")
        (tmp_path / "opened.html").write_text(opened)
        frames = MEASURE.replace("NARROW", "opened.html").replace("WIDE", "opened.html")
        (tmp_path / "measure.html").write_text(f"<!doctype html><title>x</title>{frames}")
        text = dom(chromium, tmp_path / "measure.html", tmp_path / "profile")
        narrow, wide = attributes(text, "narrow"), attributes(text, "wide")
        assert (narrow["scroll"], narrow["out"]) == ("390", "")
        assert (wide["scroll"], wide["out"]) == ("1280", "")
        plots = len([*report.figures, *report.score_figures, *report.statistics])
        assert narrow["shown"] == wide["shown"] == str(plots)  # of the main figure's two drawings one
        assert [frame["colour"] for frame in (narrow, wide)] == [rgb(RUNS_ON_LIGHT[0]), rgb(RUNS_ON_DARK[0])]
        assert narrow["title"] == "Two runs side by side · quillgpt report"
        assert narrow["requests"] == "0"
