"""The `quill` command: finds the sub-command, and turns every error into one line and a documented exit code."""

import contextlib
import errno
import importlib
import os
import sys
import traceback
from types import TracebackType
from typing import NoReturn, TextIO

from quillgpt.cli import COMMANDS
from quillgpt.cli.console import escaped, messages
from quillgpt.errors import EXIT_CODES, ConfigError, QuillError, nearest, shown
from quillgpt.openmp import spin_briefly

DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EFBIG)


def main() -> NoReturn:
    """Run `quill` with the process's arguments and exit with its code."""
    arguments = sys.argv[1:]
    is_debugging = "--debug" in arguments
    if is_debugging:
        arguments.remove("--debug")
    else:
        sys.excepthook = _report_bug
    _prepare_streams()
    spin_briefly()
    try:
        code, message = run(arguments), ""
    except (QuillError, KeyboardInterrupt, SystemExit, MemoryError, RuntimeError, OSError) as error:
        code, message = explained(error)
        if is_debugging and message:
            traceback.print_exc()
    code, message = _with_output_flushed(code, message)
    if message:
        with contextlib.suppress(OSError):  # standard error is closed
            print(f"quill: {escaped(message)}", file=sys.stderr, flush=True)
    _discard_unwritable(sys.stderr)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run a command line without its first word, `quill`; return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"quillgpt {version('quillgpt')}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        raise ConfigError(f"no command {shown(command)}{nearest(command, COMMANDS)}; `quill --help` lists all")
    with messages():
        return importlib.import_module(COMMANDS[command][0]).main(arguments[1:])


def overview() -> str:
    """Return the text of `quill --help`."""
    commands = "\n".join(f"  {name:<13} {meaning}" for name, (_, meaning) in COMMANDS.items())
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    return (
        "quill: train, resume, evaluate and sample GPT-2-class language models\n\n"
        f"usage: quill COMMAND ...      (see quill COMMAND --help; --debug shows tracebacks)\n\n"
        f"commands\n{commands}\n\nexit codes\n{codes}"
    )


def explained(error: BaseException) -> tuple[int, str]:
    """Return exit code and message for an error that ended a command; a bug is raised again."""
    match error:
        case QuillError():
            return error.exit_code, str(error)
        case KeyboardInterrupt():
            return 130, "interrupted"
        case BrokenPipeError():  # `quill ... | head`
            return 0, ""
        case SystemExit():  # after --help; or rich's answer to a broken pipe
            is_pipe = isinstance(error.__context__, BrokenPipeError)
            return (0 if is_pipe or not error.code else 1), ""
        case MemoryError():
            return 71, "out of memory; use a smaller model, --batch-size or --context-length"
        case OSError():
            code = 71 if error.errno == errno.ENOMEM else 74 if error.errno in DISK_ERRORS else 65
            place = f"{error.filename}: " if error.filename else ""
            return code, f"{place}{error.strerror or error}"
    if "out of memory" in str(error).lower() or "can't allocate memory" in str(error):
        return explained(MemoryError())
    raise error


def _prepare_streams() -> None:
    """Replace closed streams (`quill ... >&-`) by /dev/null, and escape characters that a terminal cannot show."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, os.fdopen(number, "w"))
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _with_output_flushed(code: int, message: str) -> tuple[int, str]:
    """Flush standard output; return the exit code and message, or those of the failure."""
    error = _discard_unwritable(sys.stdout)
    if error is None or isinstance(error, BrokenPipeError):
        return code, message
    return code or 74, f"standard output: cannot write: {error.strerror}"


def _discard_unwritable(stream: TextIO) -> OSError | None:
    """Flush a stream; if that fails, redirect it to /dev/null, because Python would fail on it again at exit."""
    try:
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    what = escaped(f"{kind.__name__}: {error}")
    print(f"quill: a bug: {what}; add --debug to see where, and please report it", file=sys.stderr)


if __name__ == "__main__":
    main()
