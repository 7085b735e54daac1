"""Export a model: write it, read it back with the format's own library, compare the logits, then make it visible."""

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
from quillgpt.export import EXPORTERS, Format, Origin, Written
from quillgpt.pretrained.source import load_model_from
from quillgpt.tokenizer import Tokenizer

RECORD = "export.json"
"""describes an export; --force replaces only a directory that has it"""

TEXT = "The quick brown fox doesn't jump 1,234 times.\n    def naïve(x): return x ** 2  # 你好 🙂\n"
"""text on which the exported tokenizer is compared"""

LONGEST = 1024
"""maximum number of tokens in a compared sequence; the logits of longer ones take too much memory"""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of an export."""

    path: Path
    dtype: str
    is_a: str
    """what the model has become, in a few words"""
    sizes: dict[str, int]
    """bytes of each file"""
    difference: float
    """largest difference of a logit, as a fraction of the largest logit"""
    tolerance: float
    usage: str
    """a few lines of code that use the export"""


def export(
    where: str,
    name: str,
    *,
    out: str = "auto",
    dtype: str = "auto",
    force: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> Exported:
    """Export the model of a run or checkpoint in the named format; `out` appears complete and compared, or not at all.

    `ConfigError`: a setting the format cannot express, a missing package, a directory in the way.
    `ExportError`: the export, read back, is not the same model.
    """
    exporter = pick(EXPORTERS, name, "format")
    dtype = next(iter(exporter.tolerance)) if dtype == "auto" else dtype
    tolerance = pick(exporter.tolerance, dtype, f"{name} dtype")
    for package in exporter.packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"export to {name} needs the package {package}: pip install 'quillgpt[export]'")
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
    progress(f"writing {path}, then reading it back ...")
    files.make_directory(path.parent)
    files.remove_leftovers(path.parent, of=path.name)
    with files.atomic_directory(path, replaces=force) as folder:
        is_a = form.write(model, tokenizer, folder, dtype, origin)
        del model  # free its memory before the export is loaded
        difference = _compare(form.read(folder), batches, expected, tokenizer, tolerance, name)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        record = {
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
        files.write_json(folder / RECORD, record)
    usage = form.usage(config, dtype, str(path))
    return Exported(
        path=path, dtype=dtype, is_a=is_a, sizes=sizes, difference=difference, tolerance=tolerance, usage=usage
    )


def origin_of(source: str) -> Origin:
    """The model's name and step: runs/NAME/checkpoints/step-000400 is NAME at 400; of other models the last part."""
    path = Path(source).absolute()
    if not (path / MANIFEST).is_file():
        return Origin(name=path.name, step=None)
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    return Origin(name=run.name, step=read_checkpoint(path).step)


def check_place(path: Path, *, may_replace: bool) -> None:
    """Refuse a path that exists and is not an empty directory; `may_replace` permits an earlier export."""
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
    """Batches of tokens (B, T) to compare on: one token, two short sequences, one as long as the context."""
    generator = torch.Generator().manual_seed(1)
    longest = min(config.context_length, LONGEST)
    shapes = {(1, 1), (2, min(7, longest)), (1, longest)}
    batches = [torch.randint(config.vocab_size, shape, generator=generator) for shape in sorted(shapes)]
    batches[0][0, 0] = end_of_text
    return batches


def _compare(
    written: Written, batches: list[Tensor], expected: list[Tensor], tokenizer: Tokenizer, tolerance: float, name: str
) -> float:
    """Return the largest difference of a logit, as a fraction of the largest logit; `ExportError` above tolerance."""
    with torch.no_grad():
        got = [written.logits(tokens) for tokens in batches]
    largest = max(float(logits.abs().max()) for logits in expected)
    difference = max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True)) / max(largest, 1e-30)
    wrong = sorted(map(str, written.ends - {tokenizer.end_of_text}))
    if not difference <= tolerance:
        found = f"a logit differs by {difference:.1e} of the largest (accepted: {tolerance:.0e})"
    elif written.encode(TEXT) != tokenizer.encode(TEXT):
        found = "the tokenizer encodes text differently"
    elif wrong:
        found = f"token {wrong[0]} ends a text (expected {tokenizer.end_of_text})"
    else:
        return difference
    raise ExportError(f"{name}: the export, read back, is not the same model: {found}; nothing was kept")
