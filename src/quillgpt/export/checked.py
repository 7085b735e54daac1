"""Export a model: write it, read it back with other people's code, compare the logits, and only then let it appear."""

import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from quillgpt import files
from quillgpt.checkpoint import MANIFEST, open_model, read_checkpoint
from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError, ExportError, pick
from quillgpt.export import EXPORTERS, Exporter
from quillgpt.export.format import Format, Origin, Written
from quillgpt.export.tokenizer_files import write_json
from quillgpt.pretrained.source import load_model_from
from quillgpt.tokenizer import Tokenizer

RECORD = "export.json"
"""what an export says of itself; a directory that has it may be replaced"""

TEXT = "The quick brown fox doesn't jump 1,234 times.\n    def naïve(x): return x ** 2  # 你好 🙂\n"
"""what the exported tokenizer is tried on"""

LONGEST = 1024
"""positions compared at most: the logits of a longer row are a lot of memory"""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was made."""

    path: Path
    origin: Origin
    dtype: str
    is_a: str
    """what the model became"""
    sizes: dict[str, int]
    """bytes of each file"""
    difference: float
    """how far a logit is off at most, as a fraction of the largest"""
    tolerance: float
    usage: str


def export(
    where: str,
    name: str,
    *,
    out: str = "auto",
    dtype: str = "auto",
    force: bool = False,
    say: Callable[[str], None] = lambda notice: None,
) -> Exported:
    """Export the model of a run or checkpoint in the format of that name; `out` appears complete and compared, or not.

    `ConfigError`: a setting the format cannot express, a missing package, a directory in the way.
    `ExportError`: what was written, read back, is another model.
    """
    exporter = pick(EXPORTERS, name, "format")
    dtype = (
        exporter.dtypes[0]
        if dtype == "auto"
        else pick({kind: kind for kind in exporter.dtypes}, dtype, f"{name}: dtype")
    )
    _require_packages(name, exporter)
    form: Format = importlib.import_module(exporter.module).FORMAT
    source = open_model(where)
    config, origin, tokenizer = source.config, origin_of(source.name), source.tokenizer()
    form.refuse(config, tokenizer.name, dtype)
    path = Path("exports") / f"{origin.name}-{name}" if out == "auto" else Path(out)
    check_place(path, may_replace=force)
    model, _ = load_model_from(source)
    batches = probes(config, tokenizer.end_of_text)
    with torch.no_grad():
        expected = [model(tokens) for tokens in batches]
    if not all(logits.isfinite().all() for logits in expected):
        raise ExportError(f"{source.name}: its logits are NaN or infinite; export an earlier checkpoint")
    say(f"writing {path}, then reading it back ...")
    files.make_directory(path.parent)
    files.remove_leftovers(path.parent, of=path.name)
    with files.atomic_directory(path, replaces=force) as folder:
        form.write(model, tokenizer, folder, dtype, origin)
        del model  # from here on only what was read back is needed
        difference = _compared(form.read(folder), batches, expected, tokenizer, form.tolerance[dtype], name)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        write_json(folder / RECORD, _record(name, dtype, origin, sizes, difference, form.tolerance[dtype]))
    return Exported(
        path=path,
        origin=origin,
        dtype=dtype,
        is_a=form.describe(config),
        sizes=sizes,
        difference=difference,
        tolerance=form.tolerance[dtype],
        usage=form.usage(config, dtype, str(path)),
    )


def origin_of(source: str) -> Origin:
    """The model's name and step: runs/NAME/checkpoints/step-000400 is NAME at 400; others are their last part."""
    path = Path(source).absolute()
    if not (path / MANIFEST).is_file():
        return Origin(name=path.name, step=None)
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    return Origin(name=run.name, step=read_checkpoint(path).step)


def check_place(path: Path, *, may_replace: bool) -> None:
    """Refuse a place where something is; with `may_replace` only what is not an export."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not may_replace:
        raise ConfigError(f"{path} exists; choose another --out, or --force to replace an export there")
    try:
        is_ours = json.loads((path / RECORD).read_text(encoding="utf-8"))["format"] == "quillgpt export"
    except (OSError, ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise ConfigError(
            f"{path} was not made by `quill export`, so --force does not replace it; choose another --out"
        )


def probes(config: ModelConfig, end_of_text: int) -> list[Tensor]:
    """Batches of tokens (B, T) to compare on: one token, a few short rows, one row as long as the model can see."""
    generator = torch.Generator().manual_seed(1)
    longest = min(config.context_length, LONGEST)
    shapes = {(1, 1), (2, min(7, longest)), (1, longest)}
    batches = [torch.randint(config.vocab_size, shape, generator=generator) for shape in sorted(shapes)]
    batches[0][0, 0] = end_of_text
    return batches


def _compared(
    written: Written, batches: list[Tensor], expected: list[Tensor], tokenizer: Tokenizer, tolerance: float, name: str
) -> float:
    """The largest difference of a logit, as a fraction of the largest logit; an `ExportError` above the tolerance."""
    with torch.no_grad():
        got = [written.logits(tokens) for tokens in batches]
    largest = max(float(logits.abs().max()) for logits in expected)
    difference = max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True)) / max(largest, 1e-30)
    if not difference <= tolerance:
        found = f"a logit is off by {difference:.1e} of the largest, more than {tolerance:.0e}"
        raise ExportError(f"{name}: read back, it is not the same model: {found}; nothing was left there")
    if written.encode(TEXT) != tokenizer.encode(TEXT):
        raise ExportError(f"{name}: read back, its tokenizer cuts text differently; nothing was left there")
    wrong = written.ends - {tokenizer.end_of_text}
    if wrong:
        found = f"token {min(map(str, wrong))} ends a text; expected {tokenizer.end_of_text}"
        raise ExportError(f"{name}: read back, {found}; nothing was left there")
    return difference


def _record(
    name: str, dtype: str, origin: Origin, sizes: dict[str, int], difference: float, tolerance: float
) -> dict[str, object]:
    return {
        "format": "quillgpt export",
        "exporter": name,
        "dtype": dtype,
        "run": origin.name,
        "step": origin.step,
        "quillgpt": version("quillgpt"),
        "largest_difference_of_a_logit": difference,
        "tolerance": tolerance,
        "bytes": sizes,
    }


def _require_packages(name: str, exporter: Exporter) -> None:
    for package in exporter.packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"export to {name} needs the package {package}: pip install 'quillgpt[export]'")
