"""`quill export RUN FORMAT`: a trained model in the formats of other projects, read back and compared."""

import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import tyro

from quillgpt.cli.arguments import parse
from quillgpt.errors import ConfigError, pick
from quillgpt.export import EXPORTERS

if TYPE_CHECKING:
    from quillgpt.export.export import Exported

DTYPES = dict.fromkeys(dtype for exporter in EXPORTERS.values() for dtype in exporter.tolerance)
DESCRIPTION = "Export a trained model, read it back with the format's own library, and compare.\n\n" + "\n\n".join(
    f"{name}: {exporter.meaning} ({', '.join(exporter.tolerance)})" for name, exporter in EXPORTERS.items()
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The help is `DESCRIPTION`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")] = ""
    """run or checkpoint to export"""
    format: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="|".join(EXPORTERS))] = ""
    """format of the export"""
    out: Annotated[str, tyro.conf.arg(metavar="DIR")] = "auto"
    """directory to create; auto: exports/RUN-FORMAT"""
    dtype: Annotated[str, tyro.conf.arg(metavar="|".join(DTYPES))] = "auto"
    """number format of the weights; auto: f32. f16 and q8_0 are for gguf"""
    force: bool = False
    """replace an existing export when the new one is complete"""


def main(arguments: list[str]) -> int:
    """Export, and print the files, the largest difference, and code that loads the export."""
    options, _ = parse(ExportOptions, arguments, prog="quill export", description=DESCRIPTION)
    if not options.format or options.run in EXPORTERS:
        example = f"quill export RUN {'|'.join(EXPORTERS)}"
        raise ConfigError(f"export needs a run and a format, in this order: `{example}`")
    pick(EXPORTERS, options.format, "format")

    from quillgpt.export.export import export

    report = partial(print, file=sys.stderr, flush=True)
    out, dtype, force = options.out, options.dtype, options.force
    print(summary(export(options.run, options.format, out=out, dtype=dtype, force=force, progress=report)))
    return 0


def summary(done: "Exported") -> str:
    """Return the result of an export as text."""
    width = max(map(len, done.sizes))
    files = "\n".join(f"  {name:<{width}}  {readable(size):>8}" for name, size in done.sizes.items())
    accepted = f"{done.tolerance:.0e}".replace("e-0", "e-")
    return (
        f"{done.path}: {done.is_a}, {done.dtype}\n{files}\n"
        f"read back and compared: logits differ by at most {done.difference:.1e} of the largest "
        f"(accepted: {accepted})\n\n{done.usage}"
    )


def readable(size: int) -> str:
    """Return a number of bytes with a unit: 1234567 -> 1.2 MB."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if size >= 10**power:
            return f"{size / 10**power:.1f} {unit}"
    return f"{size} B"
