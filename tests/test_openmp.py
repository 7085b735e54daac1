"""How threads are told to wait, in processes of their own: it can be said only before torch is loaded."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quillgpt import openmp
from quillgpt.openmp import SPINS_WHEN_BUSY, SPINS_WHEN_QUIET, USERS_OWN

ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in USERS_OWN}
SHOW = "import os; print(os.environ.get('GOMP_SPINCOUNT', 'unset'))"


def shown(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=ENVIRONMENT | environment,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is what torch brings on Linux")
def test_the_library_that_torch_loads_takes_it() -> None:
    done = shown("from quillgpt.openmp import spin_briefly; spin_briefly(); import torch", OMP_DISPLAY_ENV="verbose")
    assert re.search(f"GOMP_SPINCOUNT = '({SPINS_WHEN_BUSY}|{SPINS_WHEN_QUIET})'", done.stderr)


@pytest.mark.parametrize(
    ("running", "cores", "spins"),
    [
        ([1], 2, SPINS_WHEN_QUIET),
        ([2, 2, 1], 2, SPINS_WHEN_QUIET),
        ([2, 3, 2], 2, SPINS_WHEN_BUSY),
        ([3], 16, SPINS_WHEN_QUIET),
        ([4, 4, 4], 16, SPINS_WHEN_BUSY),
    ],
)
def test_how_long_follows_from_what_else_the_machine_does(
    running: list[int], cores: int, spins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(running)
    monkeypatch.setattr(openmp, "running_threads", lambda: next(looks))
    monkeypatch.setattr(openmp.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(openmp.os, "environ", {})
    monkeypatch.setattr(openmp.sys, "modules", {})
    openmp.spin_briefly()
    assert openmp.os.environ == {"GOMP_SPINCOUNT": spins}


@pytest.mark.parametrize(("content", "running"), [("0.20 0.18 0.12 3/80 11206\n", 3), ("", 1), ("a b c d e", 1)])
def test_the_threads_that_run_are_read(
    content: str, running: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loadavg").write_text(content)
    monkeypatch.setattr(openmp, "LOAD", tmp_path / "loadavg")
    assert openmp.running_threads() == running


def test_a_machine_that_does_not_tell_its_load_counts_as_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openmp, "LOAD", Path("/nowhere"))
    assert not openmp.is_busy()


@pytest.mark.parametrize(
    ("name", "value", "left"), [("OMP_WAIT_POLICY", "active", "unset"), ("GOMP_SPINCOUNT", "7", "7")]
)
def test_what_the_user_has_said_stays(name: str, value: str, left: str) -> None:
    code = f"from quillgpt.openmp import spin_briefly; spin_briefly(); {SHOW}"
    assert shown(code, **{name: value}).stdout.strip() == left


def test_with_torch_already_there_nothing_is_said_that_would_not_hold() -> None:
    code = f"import sys; sys.modules['torch'] = sys; from quillgpt.openmp import spin_briefly; spin_briefly(); {SHOW}"
    assert shown(code).stdout.strip() == "unset"


def test_the_command_line_says_it() -> None:
    code = f"import sys, atexit; sys.argv = ['quill', '--help']; atexit.register(lambda: exec({SHOW!r}))"
    done = shown(f"{code}; from quillgpt.cli.main import main; main()")
    assert done.stdout.splitlines()[-1] in (SPINS_WHEN_BUSY, SPINS_WHEN_QUIET)
