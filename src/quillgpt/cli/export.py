"""`quill export RUN FORMAT`: a trained model in other people's formats, read back and compared before it appears."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from quillgpt.cli.arguments import parse
from quillgpt.errors import ConfigError, pick
from quillgpt.export import EXPORTERS

if TYPE_CHECKING:
    from quillgpt.export.checked import Exported

DTYPES = dict.fromkeys(dtype for exporter in EXPORTERS.values() for dtype in exporter.dtypes)
DESCRIPTION = "Export a trained model, read it back with other people's code, and compare.\n\n" + "\n\n".join(
    f"{name}: {exporter.meaning} ({', '.join(exporter.dtypes)})" for name, exporter in EXPORTERS.items()
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The help is `DESCRIPTION`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")] = ""
    """run or checkpoint to export"""
    format: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="|".join(EXPORTERS))] = ""
    """what for"""
    out: Annotated[str, tyro.conf.arg(metavar="DIR")] = "auto"
    """directory to make; auto: exports/RUN-FORMAT"""
    dtype: Annotated[str, tyro.conf.arg(metavar="|".join(DTYPES))] = "auto"
    """number format of the weights; auto: f32. f16 and q8_0 are for gguf"""
    force: bool = False
    """replace an export that is there, once the new one is complete"""


def main(arguments: list[str]) -> int:
    """Export, and print what was written, how far it is off, and how to load it."""
    options, _ = parse(ExportOptions, arguments, prog="quill export", description=DESCRIPTION)
    if not options.format or options.run in EXPORTERS:
        example = f"quill export RUN {'|'.join(EXPORTERS)}"
        raise ConfigError(f"say which run and which format, in this order: `{example}`")
    pick(EXPORTERS, options.format, "format")

    from quillgpt.export.checked import export

    done = export(options.run, options.format, out=options.out, dtype=options.dtype, force=options.force, say=_say)
    print(summary(done))
    return 0


def _say(notice: str) -> None:
    print(notice, file=sys.stderr, flush=True)


def summary(done: "Exported") -> str:
    """What was made, as text."""
    width = max(map(len, done.sizes))
    files = "\n".join(f"  {name:<{width}}  {readable(size):>8}" for name, size in done.sizes.items())
    accepted = f"{done.tolerance:.0e}".replace("e-0", "e-")
    return (
        f"{done.path}: {done.is_a}, {done.dtype}\n{files}\n"
        f"read back and compared: no logit is off by more than {done.difference:.1e} of the largest "
        f"(accepted: {accepted})\n\n{done.usage}"
    )


def readable(size: int) -> str:
    """A number of bytes in the unit that fits: 1234567 -> 1.2 MB."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if size >= 10**power:
            return f"{size / 10**power:.1f} {unit}"
    return f"{size} B"
