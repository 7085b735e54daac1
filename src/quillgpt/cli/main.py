"""The `quill` command: finds the sub-command, and turns every error into one line and a documented exit code."""

import errno
import importlib
import os
import sys
from types import TracebackType
from typing import NoReturn

from quillgpt.cli import COMMANDS
from quillgpt.errors import EXIT_CODES, QuillError, nearest


def main() -> NoReturn:
    """Run `quill` with the process's arguments and exit with its code."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments.remove("--debug")
    else:
        sys.excepthook = _one_line
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character gets an escape, not a crash
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run(arguments)
        sys.stdout.flush()
    except QuillError as error:
        print(f"quill: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("quill: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `quill ... | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except MemoryError:
        print("quill: out of memory; use a smaller model, --batch-size or --context-length", file=sys.stderr)
        code = 71
    except OSError as error:
        code = _operating_system_error(error)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line without its first word and return the exit code; errors are raised."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"quillgpt {version('quillgpt')}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        print(f"quill: no command {command!r}{nearest(command, COMMANDS)}; `quill --help` lists all", file=sys.stderr)
        return 2
    return importlib.import_module(COMMANDS[command][0]).main(arguments[1:])


def overview() -> str:
    """The text of `quill --help`."""
    commands = "\n".join(f"  {name:<10} {meaning}" for name, (_, meaning) in COMMANDS.items())
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    return (
        "quill: train, resume, evaluate and sample GPT-2-class language models\n\n"
        f"usage: quill COMMAND ...      (quill COMMAND --help tells more; --debug shows tracebacks)\n\n"
        f"commands\n{commands}\n\nexit codes\n{codes}"
    )


def _operating_system_error(error: OSError) -> int:
    place = f"{error.filename}: " if error.filename else ""
    print(f"quill: {place}{error.strerror or error}", file=sys.stderr)
    return 74 if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO) else 65


def _one_line(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if "out of memory" in str(error).lower() or "can't allocate memory" in str(error):
        print("quill: out of memory; use a smaller --batch-size, --context-length or model", file=sys.stderr)
        os._exit(71)
    print(f"quill: a bug: {kind.__name__}: {error}; add --debug to see where, and please report it", file=sys.stderr)


if __name__ == "__main__":
    main()
