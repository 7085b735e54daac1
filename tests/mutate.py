"""Apply one-line mutations to a copy of the package, one at a time, and check that the tests catch each of them.

    python tests/mutate.py                   all mutations of tests/mutations.toml
    python tests/mutate.py --only 3,17       some of them by number, counted from 1
    python tests/mutate.py --locate          after files were moved: find the snippets again, rewrite the list

The tests first run on the unchanged copy, because a test that fails anyway proves nothing. Caught means that a test ran
and failed (pytest's exit code 1); what cannot be imported, or a test that no longer exists, is an error.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LIST, PACKAGE = ROOT / "tests" / "mutations.toml", Path("src") / "quillgpt"
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "runs", "dist")
CAUGHT, SURVIVED, TIMEOUT_SECONDS = "caught", "SURVIVED", 900


class Mutation(NamedTuple):
    """One line of the package, in `file` below src/quillgpt, that `tests` guard: `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: list[str]


def run_tests(copy: Path, tests: list[str]) -> tuple[str, str]:
    """Run pytest in the copy until a failure: CAUGHT, SURVIVED or an error; the test that failed, or the last line."""
    variables = {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=short", *tests]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    try:
        ended = subprocess.run(command, cwd=copy, env=os.environ | variables, timeout=TIMEOUT_SECONDS, **pipes)
    except subprocess.TimeoutExpired:
        return f"ERROR: no end after {TIMEOUT_SECONDS} s", ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::[^\s\[]+)", ended.stdout, re.MULTILINE)
    by = failed[1] if failed else ended.stdout[-100:].strip()
    return {0: SURVIVED, 1: CAUGHT}.get(ended.returncode, f"ERROR: pytest exit {ended.returncode}"), by


def tried(mutation: Mutation, copies: "queue.Queue[Path]") -> tuple[str, str, float]:
    """Apply a mutation to a free copy, run its tests and undo it: what `run_tests` says, and the seconds."""
    copy, started = copies.get(), time.perf_counter()
    path = copy / PACKAGE / mutation.file
    source = path.read_text(encoding="utf-8") if path.is_file() else ""
    try:
        if source.count(mutation.old) != 1:
            return f"ERROR: `old` occurs {source.count(mutation.old)} times in {mutation.file}", "", 0.0
        compile(mutated := source.replace(mutation.old, mutation.new), mutation.file, "exec")
        path.write_text(mutated, encoding="utf-8")
        return *run_tests(copy, mutation.tests), time.perf_counter() - started
    except SyntaxError as error:
        return f"ERROR: {error}", "", 0.0
    finally:
        if source:
            path.write_text(source, encoding="utf-8")
        copies.put(copy)


def locate(mutations: list[Mutation]) -> int:
    """Write down the new file of each snippet that is elsewhere now; return how many are in no or in several places."""
    blocks = re.split(r"(?m)^(?=\[\[mutation\]\])", LIST.read_text(encoding="utf-8"))
    texts = {str(p.relative_to(ROOT / PACKAGE)): p.read_text("utf-8") for p in (ROOT / PACKAGE).rglob("*.py")}
    lost = 0
    for number, mutation in enumerate(mutations, 1):
        if mutation.old in texts.get(mutation.file, ""):
            continue
        found = [file for file, text in texts.items() for _ in range(text.count(mutation.old))]
        lost += len(found) != 1
        print(f"{number:3}  {mutation.file} -> {', '.join(found) or 'NOWHERE'}: {mutation.old}")
        if len(found) == 1:
            blocks[number] = blocks[number].replace(f'\nfile = "{mutation.file}"', f'\nfile = "{found[0]}"')
    LIST.write_text("".join(blocks), encoding="utf-8")
    return lost


def main() -> int:
    """Print a line for each mutation; 1 if any was not caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="numbers with commas")
    parser.add_argument("--jobs", type=int, default=1, help="mutations at a time, each in a copy of its own")
    parser.add_argument("--locate", action="store_true", help="find the snippets whose file has changed")
    arguments = parser.parse_args()
    mutations = [Mutation(**entry) for entry in tomllib.loads(LIST.read_text(encoding="utf-8"))["mutation"]]
    if arguments.locate:
        return int(locate(mutations) > 0)
    numbers = [int(number) for number in arguments.only.split(",") if number] or range(1, len(mutations) + 1)
    chosen, copies, statuses = [mutations[number - 1] for number in numbers], queue.Queue[Path](), list[str]()
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder, ThreadPoolExecutor(arguments.jobs) as threads:
        (Path(folder) / "shared").symlink_to(ROOT.parent / "shared")  # where tests look for GPT-2's vocabulary
        for job in range(arguments.jobs):
            copies.put(shutil.copytree(ROOT, Path(folder) / str(job), ignore=LEFT_OUT))
        before = run_tests(Path(folder) / "0", list(dict.fromkeys(test for one in chosen for test in one.tests)))
        print("unchanged:", "passed" if before[0] == SURVIVED else before, flush=True)
        if before[0] != SURVIVED:
            return 1
        results = threads.map(lambda mutation: tried(mutation, copies), chosen)
        for number, mutation, (status, by, seconds) in zip(numbers, chosen, results, strict=True):
            statuses.append(status)
            print(f"{number:3}  {mutation.name:<72}  {status:<8} {seconds:5.1f} s  {by}", flush=True)
    print(f"{statuses.count(CAUGHT)} of {len(statuses)} caught, {statuses.count(SURVIVED)} survived")
    return int(statuses.count(CAUGHT) < len(statuses))


if __name__ == "__main__":
    sys.exit(main())
