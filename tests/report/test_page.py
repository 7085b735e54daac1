"""The HTML file: complete, quiet on the network, the same for the same runs, and nobody's script."""

import itertools
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hostile_run import SCRIPT, hostile_contents
from recorded_runs import contents, make_run, metrics

from quillgpt.report.contents import Contents
from quillgpt.report.page import html, prose, write_page

VOID = {"meta", "br", "path", "use", "rect", "img", "input", "link"}


class Page(HTMLParser):
    """The elements of a page with their attributes, its text, and whether every element is closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.style = ""
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
def report(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    return hostile_contents(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def page(report: Contents) -> Page:
    return Page(html(report))


def test_hostile_names_and_samples_are_text(page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "link", "base", "form"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count(SCRIPT) > 10
    assert "{{ 7 * 7 }}" in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", page.text)
    assert page.open == []


def test_nothing_is_fetched_and_nothing_may_be(page: Page) -> None:
    for attribute in ("src", "srcset", "action", "data", "poster", "background"):
        assert list(page.values(attribute)) == []
    for name in ("href", "xlink:href"):
        assert all(value.startswith("#") for value in page.values(name))
    for style in [page.style, *page.values("style")]:
        assert "@import" not in style
        assert "//" not in style
        assert re.findall(r"url\((?!#)", style) == []
    policies = [attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_every_id_is_there_once_and_every_reference_has_one(page: Page) -> None:
    ids = list(page.values("id"))
    assert len(ids) == len(set(ids))
    referred = {value.removeprefix("#") for name in ("href", "xlink:href") for value in page.values(name)}
    referred |= {name for value in page.values("clip-path") for name in re.findall(r"url\(#([\w-]+)\)", value)}
    assert referred <= set(ids)


def test_figures_have_captions_with_numbers_and_a_name_for_those_who_cannot_see_them(
    page: Page, report: Contents
) -> None:
    images = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    plots = [*report.figures, *report.score_figures, *report.statistics]
    assert [attributes["aria-label"] for attributes in images] == [plot.alternative for plot in plots]
    for plot in plots:
        assert re.search(r"\d", plot.caption), plot.key
        assert plot.caption.replace(" ± ", "\u00a0±\u00a0").split("; ")[0][-20:] in page.text.replace(
            "\u00a0", " "
        ).replace(" ± ", "\u00a0±\u00a0")


def test_headings_descend_and_tables_have_headers(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    headers = [attributes["scope"] for tag, attributes in page.elements if tag == "th"]
    assert {"row", "col"} == set(headers)
    assert dict(page.elements)["html"] == {"lang": "en"}


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    lines = [{"step": step, "tokens": step, "loss": 1 / step} for step in range(1, 30)]
    run = make_run(tmp_path / "a", lines, samples={10: "text"})
    assert html(contents(run)) == html(contents(run))


def test_figures_follow_the_scheme_of_the_page(page: Page) -> None:
    styles = " ".join(page.values("style"))
    assert re.findall(r"#[0-9a-f]{6}\b", styles) == []
    assert {"var(--run-0)", "var(--run-1)", "var(--muted)", "var(--line)"} <= set(re.findall(r"var\([\w-]+\)", styles))
    defined = set(re.findall(r"(--[\w-]+):", page.style))
    assert set(re.findall(r"var\((--[\w-]+)\)", styles + page.style)) <= defined
    assert "prefers-color-scheme: dark" in page.style


def test_a_page_stays_small_however_long_the_run(tmp_path: Path) -> None:
    lines = metrics(2_000, every=4)
    runs = [make_run(tmp_path / name, lines) for name in "abc"]
    assert write_page(contents(*runs), tmp_path / "out" / "report.html") < 1_000_000
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]


def test_a_run_with_nothing_on_record_has_a_page(tmp_path: Path) -> None:
    text = html(contents(make_run(tmp_path / "a", [], record={})))
    assert "There is nothing to draw: no step was logged." in text
    assert "There is no environment.json." in text


def test_prose_keeps_numbers_with_their_units_and_marks_commands() -> None:
    assert prose("`quill x` took 2 min 5 s") == "<code>quill x</code> took 2\u00a0min 5\u00a0s"
    assert prose("2.5 ± 0.1") == "2.5\u00a0±\u00a00.1"
