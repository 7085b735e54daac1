"""`quill`: every error is one line and a documented exit code, whatever standard output and error are."""

import errno
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from quillgpt import errors
from quillgpt.cli import COMMANDS, main
from quillgpt.errors import EXIT_CODES, ConfigError, DataError, QuillError

QUILL = [sys.executable, "-m", "quillgpt"]
FULL = "/dev/full" if Path("/dev/full").exists() else "/dev/null"
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, QuillError)]
IN_A_PROCESS = """
import sys
from types import SimpleNamespace
from quillgpt.cli import COMMANDS, main
def command(arguments):
    {body}
sys.modules["failing"] = SimpleNamespace(main=command)
COMMANDS["fail"] = ("failing", "fails")
sys.argv = ["quill", "fail"]
main.main()
"""

End = tuple[int, str, str]
"""exit code, standard output, standard error"""
Ended = Callable[..., End]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ended:
    """Run `quill fail`, a command that raises an error or returns a number, in this process."""
    monkeypatch.setattr(main, "spin_briefly", lambda: None)
    monkeypatch.setitem(COMMANDS, "fail", ("failing", "fails"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def act(result: BaseException | int, *words: str) -> End:
        def command(arguments: list[str]) -> int:
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setitem(sys.modules, "failing", SimpleNamespace(main=command))
        monkeypatch.setattr(sys, "argv", ["quill", "fail", *words])
        try:
            main.main()
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:  # Python calls the hook and exits with 1
            sys.excepthook(type(error), error, error.__traceback__)
            code = 1
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return act


def quill(*words: str, **options) -> subprocess.CompletedProcess[str]:
    """Run `quill` in a process with these words."""
    return subprocess.run([*QUILL, *words], text=True, timeout=60, **{"capture_output": True, **options})


def in_a_process(body: str, **options) -> subprocess.CompletedProcess[str]:
    """Run a command of this body in a process."""
    command = [sys.executable, "-c", IN_A_PROCESS.format(body=body)]
    return subprocess.run(command, text=True, timeout=60, **{"capture_output": True, **options})


def test_every_error_of_ours_is_one_line_and_its_exit_code(ended: Ended) -> None:
    for kind in KINDS:
        assert ended(kind("what, got; remedy")) == (kind.exit_code, "", "quill: what, got; remedy\n")


def test_any_other_end_is_at_most_one_line_and_never_a_traceback(ended: Ended) -> None:
    for result, code, line in (
        (KeyboardInterrupt(), 130, "quill: interrupted"),
        (MemoryError(), 71, "quill: out of memory; use a smaller model, --batch-size or --context-length"),
        (RuntimeError("CUDA out of memory. Tried"), 71, "quill: out of memory; use a smaller model"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), 71, "quill: out of memory; use"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 71, "quill: Cannot allocate memory"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 74, "quill: a/b: No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), 74, "quill: a/b: Read-only file system"),
        (OSError(errno.EIO, "Input/output error"), 74, "quill: Input/output error"),
        (OSError(errno.EACCES, "Permission denied", "a/b"), 65, "quill: a/b: Permission denied"),
        (OSError("plain words"), 65, "quill: plain words"),
        (KeyError("lost"), 1, "quill: a bug: KeyError: 'lost'; add --debug to see where, and please report it"),
        (RuntimeError("lost"), 1, "quill: a bug: RuntimeError: lost; add --debug"),
        (ValueError("two\nlines\x1b[31m"), 1, "quill: a bug: ValueError: two\\nlines\\x1b"),
        (BrokenPipeError(), 0, ""),
        (SystemExit(0), 0, ""),
        (75, 75, ""),
    ):
        found, _, shown = ended(result)
        assert (found, shown.startswith(line), shown.count("\n")) == (code, True, 1 if line else 0), shown
        assert found in EXIT_CODES
        assert "Traceback" not in shown


def test_debug_shows_the_traceback_and_keeps_the_exit_code(ended: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, code in ((KeyError("lost"), 1), (DataError("x"), 65)):
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        found, _, shown = ended(error, "--debug")
        assert (found, "Traceback" in shown) == (code, True)


def test_help_lists_every_command_and_exit_code_and_mistakes_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main.run(words) == 0
        shown = capsys.readouterr().out
        assert all(f"  {command} " in shown for command in COMMANDS)
        assert all(f" {code}  {meaning}" in shown for code, meaning in EXIT_CODES.items())
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"quillgpt {version('quillgpt')}\n"
    with pytest.raises(ConfigError, match=r"^no command 'trian' \(did you mean train\?\); `quill --help` lists all$"):
        main.run(["trian"])


def test_python_m_quillgpt_is_quill() -> None:
    script = Path(sys.executable).with_name("quill")
    if not script.exists():
        pytest.skip("quill is not installed in this environment")
    for words in (["train", "--help"], ["nothing"]):
        ours = subprocess.run([script, *words], capture_output=True, text=True, timeout=60)
        other = quill(*words)
        assert (ours.stdout, ours.stderr, ours.returncode) == (other.stdout, other.stderr, other.returncode)


def test_the_help_of_every_command_does_not_import_torch() -> None:
    code = """
import sys
from quillgpt.cli.main import COMMANDS, run
for command in COMMANDS:
    try:
        assert run([command, "--help"]) == 0, command
    except SystemExit as stop:
        assert not stop.code, command
    assert "torch" not in sys.modules, command
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage") >= len(COMMANDS)


def test_help_is_quick() -> None:
    """In processor time, which other processes hardly change."""
    for words, limit in ((["--help"], 0.3), (["train", "--help"], 0.6)):
        seconds = []
        for _ in range(3):
            before = os.times()
            assert quill(*words).returncode == 0
            after = os.times()
            used = after.children_user + after.children_system - before.children_user - before.children_system
            seconds.append(used)
        assert statistics.median(seconds) < limit, words


@pytest.mark.parametrize(("words", "unbuffered"), [("--help", ""), ("train --help", "1"), ("train --help", "")])
def test_standard_output_may_be_closed_full_or_without_unicode(
    words: str, unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reader, writer = os.pipe()
    os.close(reader)
    done = quill(*words.split(), capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    if FULL == "/dev/full":
        with open(FULL, "w") as full:
            done = quill(*words.split(), capture_output=False, stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr.count("\n")) == (74, 1)
        assert done.stderr.startswith("quill: ")
        assert done.stderr.endswith("No space left on device\n")
    line = f"{' '.join(QUILL)} {words}"
    done = subprocess.run(f"{line} >&-", shell=True, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    for ending in ("2>&- <&-", f"2>{FULL}"):
        done = subprocess.run(f"{line} {ending}", shell=True, capture_output=True, text=True, timeout=60)
        assert (done.returncode, bool(done.stdout)) == (0, True), ending
    keep = {name: os.environ[name] for name in ("PATH", "VIRTUAL_ENV", "PYTHONPATH") if name in os.environ}
    done = quill(*words.split(), env={**keep, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "TERM": "dumb"})
    assert (done.returncode, done.stderr, done.stdout.isascii()) == (0, "", True)


def test_a_table_into_a_closed_pipe_is_quiet_and_unknown_characters_are_escaped() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    body = "from rich.console import Console; Console().print('row ' * 10**5); return 0"
    done = in_a_process(body, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    done = in_a_process("print('naïve 🙂'); return 0", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "na\\xefve \\U0001f642\n", "")


def test_an_error_keeps_its_code_if_it_cannot_be_shown() -> None:
    for ending in (">&- 2>&-", f"2>{FULL}"):
        assert subprocess.run(f"{' '.join(QUILL)} nothing {ending}", shell=True, timeout=60).returncode == 2, ending


def test_ctrl_c_is_130_without_a_traceback_and_a_bug_is_one_line() -> None:
    assert in_a_process("raise KeyError('lost')").stderr.splitlines() == [
        "quill: a bug: KeyError: 'lost'; add --debug to see where, and please report it"
    ]
    script = IN_A_PROCESS.format(body="import time; print('ready', flush=True); time.sleep(60)")
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    _, shown = child.communicate(timeout=60)
    assert (child.returncode, shown) == (130, "quill: interrupted\n")
