"""How threads are told to wait, in processes of their own: it can be said only before torch is loaded."""

import os
import subprocess
import sys

import pytest

from quillgpt.openmp import SPINS, USERS_OWN

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
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in done.stderr


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
    assert done.stdout.splitlines()[-1] == SPINS
