"""What the documentation promises, held against the code."""

import re
from pathlib import Path

import pytest

from quillgpt.cli import COMMANDS
from quillgpt.errors import EXIT_CODES

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py")) + sorted((ROOT / "src").rglob("*.toml"))


def citations() -> set[str]:
    found: set[str] = set()
    for path in SOURCES:
        for bracket in re.findall(r"\[([A-Z][a-z]+ \d{4}[^\]]*)\]", path.read_text(encoding="utf-8")):
            found |= set(re.findall(r"[A-Z][a-z]+ (?:19|20)\d\d", bracket))
    return found


def test_every_citation_is_in_the_references_and_none_is_left_over() -> None:
    listed = set(re.findall(r"\*\*([A-Z][a-z]+ \d{4})\*\*", (ROOT / "docs" / "references.md").read_text()))
    assert citations() == listed


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_every_path_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"`((?:docs|tests|benchmarks|src)/[\w/.-]+)`", text):
        assert (ROOT / name).exists(), name


def test_how_it_works_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    names = re.findall(r"[├└]─ ([\w/]+\.py)", text)
    assert len(names) > 10
    for name in names:
        assert (ROOT / "src" / "quillgpt" / name).is_file(), name


def test_the_readme_lists_every_command_and_exit_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"quill {command}" in text, command
    for code in EXIT_CODES:
        assert re.search(rf"\b{code}\b", text), code
