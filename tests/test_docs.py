"""What the documentation promises, held against the code."""

import ast
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


def names_defined(path: Path) -> set[str]:
    """Functions, classes, methods as Class.method, and module-level names of a file."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
            names |= {f"{node.name}.{part.target.id}" for part in node.body if isinstance(part, ast.AnnAssign)}
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_explain_links_to_functions_that_exist_and_to_sections_of_other_pages() -> None:
    text = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")
    links = re.findall(r"\[([^\]]+)\]\(([^)#]+)(?:#([\w-]+))?\)", text)
    assert len(links) > 50
    for label, target, anchor in links:
        path = (ROOT / "docs" / target).resolve()
        assert path.is_file(), target
        if path.suffix == ".py" and not label.strip("`").endswith(".py"):
            assert label.strip("`") in names_defined(path), f"{label} in {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{target}#{anchor}"


def test_explain_speaks_of_the_functions_of_gpt2_py() -> None:
    text = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`([a-z_0-9]+)`", row)}
    assert named - {"held_out_losses"} <= names_defined(ROOT / "src" / "quillgpt" / "explain" / "gpt2.py")
    assert len(named) > 6


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
