"""The words of the field: no private dialect in the source, the README, the docs and the examples."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

PRIVATE = (
    r"held[ _-]out",
    r"\btold\b",
    r"\bso many\b",
    r"\bbesides?\b",
    r"\banew\b",
    r"\bsomebody\b",
    r"\bin vain\b",
    r"\bgoes on\b",
    r"\bbend(s|ing)?\b",
    r"\bbent\b",
    r"\bwritten[ _]out\b",
    r"\bby[ _]hand\b",
    r"\bis not possible\b",
    r"\bwhat it is made of\b",
    r"\bBrainLinear\b",
    r"\bSingleLinear\b",
    r"\bfirst_goes_first\b",
    r"\bfrom_first\b",
    r"\bstarting_(point|model)\b",
    r"\bkernel statistics\b",
    r"\bnobody\b",
)


def test_no_private_words_in_source_readme_and_docs() -> None:
    files = [
        *sorted((ROOT / "src").rglob("*.py")),
        *sorted((ROOT / "src").rglob("*.toml")),
        *sorted((ROOT / "src").rglob("*.html")),
        *sorted((ROOT / "examples").rglob("*.*")),
        *sorted((ROOT / "docs").glob("*.md")),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ]
    pattern = re.compile("|".join(PRIVATE), re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        if path.suffix in (".py", ".toml", ".html", ".md")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, f"{len(found)} lines\n" + "\n".join(found[:80])
