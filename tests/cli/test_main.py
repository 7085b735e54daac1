"""`quill` as a process: every error is one line and a documented exit code, whatever the terminal is."""

import errno
import os
import signal
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from quillgpt import errors
from quillgpt.cli import COMMANDS
from quillgpt.errors import EXIT_CODES, QuillError

QUILL = [sys.executable, "-m", "quillgpt"]
WITH_A_COMMAND = """
import sys, types
from quillgpt.cli import COMMANDS, main
module = types.ModuleType("failing")
def command(arguments):
    {body}
module.main = command
sys.modules["failing"] = module
COMMANDS["fail"] = ("failing", "fails")
sys.argv = ["quill", "fail", *sys.argv[1:]]
main.main()
"""
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, QuillError)]


def quill(*words: str, **options) -> subprocess.CompletedProcess[str]:
    """Run `quill` with these words."""
    return subprocess.run([*QUILL, *words], text=True, timeout=60, **{"capture_output": True, **options})


def failing(body: str, *words: str, **options) -> subprocess.CompletedProcess[str]:
    """Run `quill fail`, a command of this body."""
    script = WITH_A_COMMAND.format(body=body)
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, text=True, timeout=60, **{"capture_output": True, **options})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_of_ours_is_one_line_and_its_exit_code(kind: type[QuillError]) -> None:
    done = failing(f"from quillgpt.errors import {kind.__name__}; raise {kind.__name__}('what, got; remedy')")
    assert (done.returncode, done.stdout, done.stderr) == (kind.exit_code, "", "quill: what, got; remedy\n")


@pytest.mark.parametrize(
    ("body", "end"),
    {
        "raise KeyboardInterrupt": (130, "quill: interrupted"),
        "raise MemoryError": (71, "quill: out of memory; use a smaller model, --batch-size or --context-length"),
        "raise RuntimeError('CUDA out of memory. Tried')": (71, "quill: out of memory; use a smaller model"),
        "raise RuntimeError('DefaultCPUAllocator: can\\'t allocate memory: you')": (71, "quill: out of memory; use"),
        f"raise OSError({errno.ENOMEM}, 'Cannot allocate memory')": (71, "quill: Cannot allocate memory"),
        f"raise OSError({errno.ENOSPC}, 'No space left on device', 'a/b')": (74, "quill: a/b: No space left on device"),
        f"raise OSError({errno.EROFS}, 'Read-only file system', 'a/b')": (74, "quill: a/b: Read-only file system"),
        f"raise OSError({errno.EIO}, 'Input/output error')": (74, "quill: Input/output error"),
        f"raise OSError({errno.EACCES}, 'Permission denied', 'a/b')": (65, "quill: a/b: Permission denied"),
        "raise OSError('plain words')": (65, "quill: plain words"),
        "raise KeyError('lost')": (1, "quill: a bug: KeyError: 'lost'; add --debug to see where, and please report it"),
        "raise RuntimeError('lost')": (1, "quill: a bug: RuntimeError: lost; add --debug"),
        "raise ValueError('two' + chr(10) + 'lines' + chr(27) + '[31m')": (
            1,
            "quill: a bug: ValueError: two\\nlines\\x1b",
        ),
        "raise BrokenPipeError": (0, ""),
        "raise SystemExit(0)": (0, ""),
        "return 75": (75, ""),
    }.items(),
    ids=lambda text: str(text)[:40],
)
def test_any_other_end_is_at_most_one_line_and_never_a_traceback(body: str, end: tuple[int, str]) -> None:
    code, line = end
    done = failing(body)
    assert done.returncode == code
    assert done.returncode in EXIT_CODES
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == (1 if line else 0)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "body", ["raise KeyError('lost')", "from quillgpt.errors import DataError; raise DataError('x')"]
)
def test_debug_shows_the_traceback_and_keeps_the_exit_code(body: str) -> None:
    shown = failing(body, "--debug")
    assert "Traceback" in shown.stderr
    assert shown.returncode == failing(body).returncode


def test_python_m_quillgpt_is_quill() -> None:
    script = Path(sys.executable).with_name("quill")
    if not script.exists():
        pytest.skip("quill is not installed beside this python")
    for words in (["--help"], ["--version"], ["train", "--help"], ["nothing"]):
        ours = subprocess.run([script, *words], capture_output=True, text=True, timeout=60)
        other = quill(*words)
        assert (ours.stdout, ours.stderr, ours.returncode) == (other.stdout, other.stderr, other.returncode)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_and_exit_code(words: list[str]) -> None:
    done = quill(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {command} " in done.stdout for command in COMMANDS)
    assert all(f" {code}  {meaning}" in done.stdout for code, meaning in EXIT_CODES.items())


def test_version_is_the_packages() -> None:
    assert quill("--version").stdout == f"quillgpt {version('quillgpt')}\n"


def test_an_unknown_command_is_told_the_nearest() -> None:
    done = quill("trian")
    assert done.returncode == 2
    assert done.stderr == "quill: no command 'trian' (did you mean train?); `quill --help` lists all\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_exits_0_without_torch(command: str) -> None:
    code = f"import sys; from quillgpt.cli.main import run\ntry: run(['{command}', '--help'])\n"
    code += "except SystemExit as stop: assert not stop.code\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage" in done.stdout


def processor_seconds(*words: str) -> float:
    """The median processor time of five runs; unlike the time on the clock, other processes hardly change it."""
    durations = []
    for _ in range(5):
        before = os.times()
        assert quill(*words).returncode == 0
        after = os.times()
        durations.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return statistics.median(durations)


@pytest.mark.parametrize(
    ("words", "limit"), [(["--help"], 0.3), (["train", "--help"], 0.6), (["prepare", "--help"], 0.6)]
)
def test_help_is_quick(words: list[str], limit: float) -> None:
    assert processor_seconds(*words) < limit


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]], ids=" ".join)
class TestStandardOutput:
    """What stands at the other end of the pipe."""

    @pytest.fixture(autouse=True)
    def buffering(self, unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)

    def test_a_closed_pipe_is_quiet(self, words: list[str]) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        done = quill(*words, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, "")

    def test_a_full_disk_is_one_line(self, words: list[str]) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        with open("/dev/full", "w") as full:
            done = quill(*words, capture_output=False, stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 74
        assert done.stderr.startswith("quill: ")
        assert done.stderr.endswith("No space left on device\n")
        assert done.stderr.count("\n") == 1

    def test_a_closed_output_is_no_crash(self, words: list[str]) -> None:
        done = subprocess.run(
            f"{' '.join(QUILL)} {' '.join(words)} >&-", shell=True, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_closed_or_full_error_output_changes_nothing(self, words: list[str]) -> None:
        line = f"{' '.join(QUILL)} {' '.join(words)}"
        for ending in ("2>&-", "2>/dev/full" if Path("/dev/full").exists() else "2>/dev/null", "<&-"):
            done = subprocess.run(f"{line} {ending}", shell=True, capture_output=True, text=True, timeout=60)
            assert (done.returncode, bool(done.stdout)) == (0, True), ending

    @pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
    def test_a_terminal_without_unicode_or_home_is_no_crash(self, words: list[str], encoding: str) -> None:
        keep = {name: os.environ[name] for name in ("PATH", "VIRTUAL_ENV") if name in os.environ}
        done = quill(*words, env={**keep, "LC_ALL": "C", "PYTHONIOENCODING": encoding, "TERM": "dumb"})
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.isascii() or encoding != "ascii"


def test_a_table_into_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    body = "from rich.console import Console; Console().print('row ' * 10**5); return 0"
    done = failing(body, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_terminal_cannot_show_is_escaped() -> None:
    done = failing("print('naïve 🙂'); return 0", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "na\\xefve \\U0001f642\n", "")


def test_an_error_keeps_its_code_where_nobody_can_be_told() -> None:
    line = " ".join([*QUILL, "nothing"])
    for ending in ("2>&-", ">&- 2>&-", "2>/dev/full" if Path("/dev/full").exists() else "2>/dev/null"):
        assert subprocess.run(f"{line} {ending}", shell=True, timeout=60).returncode == 2, ending


def test_ctrl_c_is_130_without_a_traceback() -> None:
    script = WITH_A_COMMAND.format(body="import time; print('ready', flush=True); time.sleep(30)")
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert (child.returncode, said) == (130, "quill: interrupted\n")
