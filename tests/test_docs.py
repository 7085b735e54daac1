"""What the documentation claims about names, paths, commands and citations, compared with the code."""

import ast
import re
from pathlib import Path

from quillgpt.cli import COMMANDS
from quillgpt.errors import EXIT_CODES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "quillgpt"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted([*DOCS.glob("*.md"), *(ROOT / "examples").rglob("*.md")])
NEW_FILE = "src/quillgpt/model/attention/cosine.py"  # the reader writes it
README_LINES, DOCS_LINES = 150, 2000


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_every_citation_is_in_the_references_and_none_is_left_over() -> None:
    sources = [path for folder in ("src", "examples") for path in (ROOT / folder).rglob("*")]
    brackets = [
        bracket
        for path in sources
        if path.suffix in (".py", ".toml", ".md")
        for bracket in re.findall(r"\[([A-Z][a-z]+ \d{4}[^\]]*)\]", read(path))
    ]
    cited = {work for bracket in brackets for work in re.findall(r"[A-Z][a-z]+ (?:19|20)\d\d", bracket)}
    assert cited == set(re.findall(r"\*\*([A-Z][a-z]+ \d{4})\*\*", read(DOCS / "references.md")))


def test_every_path_and_link_of_a_page_exists() -> None:
    missing = []
    for page in PAGES:
        text = read(page)
        named = set(re.findall(r"`((?:docs|tests|benchmarks|examples|src)/[\w/.-]+)`", text)) - {NEW_FILE}
        paths = [ROOT / name for name in named]
        paths += [ROOT / name for name in re.findall(r"\b(benchmarks/\w+\.py)\b", text)]
        paths += [page.parent / name for name in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text)]
        missing += [f"{page.name}: {path}" for path in paths if not path.exists()]
        missing += [
            f"{page.name}: {name}#{anchor}"
            for name, anchor in re.findall(r"\]\(([\w.-]*\.md|)#([\w-]+)\)", text)
            if anchor not in anchors(page.parent / name if name else page)
        ]
    assert missing == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def names_defined(path: Path) -> set[str]:
    """Functions, classes, methods as Class.method, and module-level names of a file."""
    names: set[str] = set()
    for node in ast.parse(read(path)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
            names |= {f"{node.name}.{part.target.id}" for part in node.body if isinstance(part, ast.AnnAssign)}
            names |= {f"{node.name}.{part.attr}" for part in ast.walk(node) if isinstance(part, ast.Attribute)}
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_functions_that_pages_link_or_name_exist() -> None:
    links = re.findall(r"\[`([^\]]+)`\]\(([^)#]+\.py)\)", read(DOCS / "explain.md"))
    links = [(label, (DOCS / target).resolve()) for label, target in links if not label.endswith(".py")]
    rows = re.findall(r"`(src/[\w/]+\.py)`: ([^|]*)", read(DOCS / "how-it-works.md"))
    links += [(name, ROOT / path) for path, names in rows for name in re.findall(r"`([\w.]+)[(`]", names)]
    entries = re.findall(
        r"^\| [^|]* \| ((?:`[A-Z]+`(?:, )?)+) \| (.*) \|$", read(DOCS / "how-it-works.md"), re.MULTILINE
    )
    menus = 0
    for dicts, place in entries:
        files = re.findall(r"`([\w/]+\.py)`", place)
        folder = next(iter(re.findall(r"`(src/[\w/]+)`", place)), "")
        defined = {name for file in files for name in names_defined(ROOT / folder / file)}
        links += [(name, ROOT / folder / files[0]) for name in re.findall(r"`([A-Z]+)`", dicts) if name not in defined]
        menus += 1
    assert len(links) > 45
    assert menus > 8
    assert [(name, str(path)) for name, path in links if name not in names_defined(path)] == []


def test_the_page_on_the_one_file_names_its_functions() -> None:
    rows = [line.split(" | ")[0] for line in read(DOCS / "explain.md").splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`([a-z_0-9]+)`", row)}
    assert named - {"validation_losses"} <= names_defined(PACKAGE / "explain" / "gpt2.py")
    assert len(named) > 6


def test_the_tree_of_how_it_works_is_that_of_the_package() -> None:
    text = read(DOCS / "how-it-works.md")
    opened = re.findall(r"[├└]─ ([\w/]+\.py)", text)
    assert len(opened) > 12
    assert [name for name in opened if not (PACKAGE / name).is_file()] == []
    tree = text.partition("## The tree")[2].partition("## One run")[0]
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert {name for name in folders if f"{name}/" not in tree} == set()


def test_commands_recipes_and_exit_codes_are_listed() -> None:
    readme, page = read(ROOT / "README.md"), read(DOCS / "commands.md")
    assert [command for command in COMMANDS if f"quill {command}" not in readme] == []
    assert [code for code in EXIT_CODES if f"`{code}`" not in page] == []
    recipes = {path.stem for path in (PACKAGE / "recipes").glob("*.toml")}
    listed = set(re.findall(r"`([\w-]+)`", "".join(re.findall(r"^\| `.*? \|", page, re.MULTILINE))))
    assert listed == recipes


def test_the_documentation_stays_short() -> None:
    assert len(read(ROOT / "README.md").splitlines()) <= README_LINES
    assert sum(len(read(path).splitlines()) for path in DOCS.glob("*.md")) <= DOCS_LINES
