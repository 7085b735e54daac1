"""How long idle threads spin, which can be set only before torch is loaded."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quillgpt import openmp
from quillgpt.openmp import SPINS_WHEN_BUSY, SPINS_WHEN_QUIET, USERS_OWN


def spin_count(
    monkeypatch: pytest.MonkeyPatch,
    running: list[int],
    *,
    cores: int = 2,
    environment: dict[str, str] | None = None,
    modules: tuple[str, ...] = (),
) -> dict[str, str]:
    """The environment afterwards, on a machine with these numbers of running threads."""
    samples = iter(running)
    with monkeypatch.context() as patch:
        patch.setattr(openmp, "running_threads", lambda: next(samples))
        patch.setattr(openmp.os, "cpu_count", lambda: cores)
        patch.setattr(openmp.os, "environ", dict(environment or {}))
        patch.setattr(openmp.sys, "modules", dict.fromkeys(modules))
        openmp.spin_briefly()
        return openmp.os.environ


def test_the_spin_count_depends_on_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    for running, cores, spins in (
        ([1], 2, SPINS_WHEN_QUIET),
        ([2, 2, 1], 2, SPINS_WHEN_QUIET),
        ([2, 3, 2], 2, SPINS_WHEN_BUSY),
        ([3], 16, SPINS_WHEN_QUIET),
        ([4, 4, 4], 16, SPINS_WHEN_BUSY),
    ):
        assert spin_count(monkeypatch, running, cores=cores) == {"GOMP_SPINCOUNT": spins}


def test_the_users_own_setting_stays_and_a_loaded_torch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in USERS_OWN:
        assert spin_count(monkeypatch, [1], environment={name: "7"}) == {name: "7"}
    assert spin_count(monkeypatch, [1], modules=("torch",)) == {}


def test_running_threads_are_read_and_an_unreadable_load_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openmp, "LOAD", tmp_path / "loadavg")
    assert not openmp.is_busy()
    for content, running in (("0.20 0.18 0.12 3/80 11206\n", 3), ("", 1), ("a b c d e", 1)):
        (tmp_path / "loadavg").write_text(content)
        assert openmp.running_threads() == running


@pytest.mark.skipif(sys.platform != "linux", reason="torch has libgomp on Linux")
def test_the_command_line_sets_it_for_the_libgomp_of_torch() -> None:
    """In a process that imports torch at its end."""
    environment = {name: value for name, value in os.environ.items() if name not in USERS_OWN}
    code = "import atexit, sys; sys.argv = ['quill', '--help']; atexit.register(__import__, 'torch')\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}from quillgpt.cli.main import main; main()"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=environment | {"OMP_DISPLAY_ENV": "verbose"},
    )
    assert re.search(f"GOMP_SPINCOUNT = '({SPINS_WHEN_BUSY}|{SPINS_WHEN_QUIET})'", done.stderr)
