"""The HTML file: complete, without requests, the same for the same runs, safe to open, and opened in Chromium."""

import itertools
import re
import shutil
import subprocess
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from recorded_runs import SCRIPT, hostile_report, make_run, metrics, report_of

from quillgpt.lab.report.page import Report, html, prose, write_page
from quillgpt.lab.report.plot import RUNS_ON_DARK, RUNS_ON_LIGHT

VOID = {"meta", "br", "path", "use", "rect", "img", "input", "link"}


class Page(HTMLParser):
    """The elements of a page with their attributes, its text, and whether every element is closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.style = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data

    def values(self, attribute: str) -> Iterator[str]:
        return (value for _, attributes in self.elements if (value := attributes.get(attribute)) is not None)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return hostile_report(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(html(report))


def test_hostile_names_and_samples_are_text(page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "link", "base", "form"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count(SCRIPT) > 10
    assert "{{ 7 * 7 }}" in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", page.text)
    assert page.open == []


def test_nothing_is_requested_and_a_policy_forbids_it(page: Page) -> None:
    for attribute in ("src", "srcset", "action", "data", "poster", "background"):
        assert list(page.values(attribute)) == []
    for name in ("href", "xlink:href"):
        assert all(value.startswith("#") for value in page.values(name))
    for style in [page.style, *page.values("style")]:
        assert not re.search(r"@import|//|url\((?!#)", style)
    policies = [attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_ids_are_unique_and_references_resolve(page: Page) -> None:
    ids = list(page.values("id"))
    assert len(ids) == len(set(ids))
    referred = {value.removeprefix("#") for name in ("href", "xlink:href") for value in page.values(name)}
    referred |= {name for value in page.values("clip-path") for name in re.findall(r"url\(#([\w-]+)\)", value)}
    assert referred <= set(ids)


def test_figures_have_captions_with_numbers_and_descriptions(page: Page, report: Report) -> None:
    images = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    assert [attributes["aria-label"] for attributes in images] == [plot.alternative for plot in report.plots]
    text = page.text.replace("\u00a0", " ")
    for plot in report.plots:
        assert re.search(r"\d", plot.caption), plot.key
        assert plot.caption.split("; ")[0][-20:] in text


def test_headings_descend_and_tables_have_headers(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert {attributes["scope"] for tag, attributes in page.elements if tag == "th"} == {"row", "col"}
    assert dict(page.elements)["html"] == {"lang": "en"}


def test_figures_take_their_colours_from_the_page(page: Page) -> None:
    styles = " ".join(page.values("style"))
    assert re.findall(r"#[0-9a-f]{6}\b", styles) == []
    assert {"var(--run-0)", "var(--run-1)", "var(--muted)", "var(--line)"} <= set(re.findall(r"var\([\w-]+\)", styles))
    defined = set(re.findall(r"(--[\w-]+):", page.style))
    assert set(re.findall(r"var\((--[\w-]+)\)", styles + page.style)) <= defined
    assert "prefers-color-scheme: dark" in page.style


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    lines = [{"step": step, "tokens": step, "train_loss": 1 / step} for step in range(1, 30)]
    run = make_run(tmp_path / "a", lines, samples={10: "text"})
    assert html(report_of(run)) == html(report_of(run))


def test_a_page_stays_small_however_long_the_run(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, metrics(2_000, every=4)) for name in "abc"]
    assert write_page(report_of(*runs), tmp_path / "out" / "report.html") < 1_000_000
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]


def test_a_run_without_records_has_a_page(tmp_path: Path) -> None:
    text = html(report_of(make_run(tmp_path / "a", [], record={})))
    assert "There is nothing to draw: no step was logged." in text
    assert "There is no environment.json." in text


def test_prose_keeps_numbers_with_their_units_and_marks_commands() -> None:
    assert prose("`quill x` took 2 min 5 s") == "<code>quill x</code> took 2\u00a0min 5\u00a0s"
    assert prose("2.5 ± 0.1") == "2.5\u00a0±\u00a00.1"


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"),
]
MEASURE = """<!doctype html><title>x</title>
<iframe id="narrow" src="opened.html" style="width:390px;height:900px;border:0"></iframe>
<iframe id="wide" src="opened.html" style="width:1280px;height:900px;border:0;color-scheme:dark"></iframe>
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


def dom(page: Path, profile: Path) -> str:
    """The document after Chromium has loaded it; skips the test without a browser that starts."""
    for name in BROWSERS:
        path = shutil.which(name)
        if path and subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0:
            command = [path, *QUIET, f"--user-data-dir={profile}", "--allow-file-access-from-files", "--dump-dom"]
            done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            return done.stdout
    pytest.skip(f"no browser to open the page in: none of {', '.join(BROWSERS)} is on PATH and starts")


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[index : index + 2], 16)) for index in (1, 3, 5))})"


def test_chromium_shows_the_numbers_of_the_metrics(tmp_path: Path) -> None:
    write_page(report_of(make_run(tmp_path / "run")), tmp_path / "report.html")
    text = dom(tmp_path / "report.html", tmp_path / "profile")
    cards = dict(re.findall(r'<dt>([^<]+)</dt><dd><span class="value">([^<]+)</span>', text))
    last = metrics()[-1]
    assert cards["Validation loss"] == f"{last['val_loss']:.3f}"
    assert cards["Bits per byte"] == f"{last['val_bpb']:.3f}"
    assert cards["Tokens"] == f"{last['tokens']:,}"
    assert text.count("<figure") == 7


def test_in_chromium_nothing_is_too_wide_no_script_runs_and_the_dark_scheme_is_dark(
    report: Report, tmp_path: Path
) -> None:
    (tmp_path / "opened.html").write_text(html(report).replace("<details>", "<details open>"))
    (tmp_path / "measure.html").write_text(MEASURE)
    text = dom(tmp_path / "measure.html", tmp_path / "profile")
    for frame, width, colour in (("narrow", "390", RUNS_ON_LIGHT[0]), ("wide", "1280", RUNS_ON_DARK[0])):
        tag = re.search(rf'<iframe id="{frame}"[^>]*>', text)
        assert tag is not None
        assert {name: unescape(value) for name, value in re.findall(r'data-(\w+)="([^"]*)"', tag[0])} == {
            "scroll": width,
            "out": "",
            "shown": str(len(report.plots)),  # of the two drawings of the main figure, one
            "colour": rgb(colour),
            "title": "Two runs side by side · quillgpt report",
            "requests": "0",
        }
