"""Runs as files, without a model: what a report reads."""

import json
import math
from pathlib import Path
from typing import Any

from quillgpt.recipes import load_recipe
from quillgpt.report.contents import Contents, contents_of
from quillgpt.report.subject import read_subjects
from quillgpt.run_dir import config_toml

Line = dict[str, Any]
FINGERPRINT = "f" * 64


def metrics(steps: int = 40, *, every: int = 10, shift: float = 0.0) -> list[Line]:
    """Lines of a run whose loss falls from 5 towards 2, with an evaluation now and then."""
    lines: list[Line] = []
    for step in range(1, steps + 1):
        loss = 2 + 3 * 0.9**step + shift
        line: Line = {
            "step": step,
            "tokens": 1024 * step,
            "loss": loss,
            "lr": 1e-3 * min(1.0, step / 5),
            "gradient_norm": 0.5 + 2 / step,
            "tokens_per_second": 50_000.0 + step,
            "memory_bytes": 300_000_000 + step,
            "elapsed_seconds": 0.02 * step,
        }
        if step % every == 0:
            line |= {"held_out_loss": loss + 0.125, "held_out_standard_error": 0.03, "held_out_bits_per_byte": loss}
        lines.append(line)
    return lines


def environment(**changes: Any) -> dict[str, Any]:
    """What training keeps of its machine and its data."""
    data = {
        "directory": "data/small",
        "fingerprint": FINGERPRINT,
        "source": "python",
        "licence": "PSF-2.0",
        "tokenizer": "byte",
        "vocab_size": 257,
        "train_tokens": 100_000,
        "held_out_tokens": 20_000,
    }
    choices = {"device": "cpu", "dtype": "fp32", "threads": 1, "rows": 16, "world_size": 1}
    known = {"command": ["quill", "train", "debug"], "commit": "abc", "processor": "A Processor", "parameters": 120_640}
    return {**known, "steps": 40, "choices": choices, "data": data, **changes}


def make_run(
    path: Path,
    lines: list[Line] | None = None,
    *,
    record: dict[str, Any] | None = None,
    samples: dict[int, str] | None = None,
    evaluations: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A run directory: `lines` of metrics, the `record` of environment.json ({}: no file), samples by step."""
    path.mkdir(parents=True)
    (path / "config.toml").write_text(config_toml(load_recipe("debug", **{"steps": 40} | settings)))
    lines = metrics() if lines is None else lines
    (path / "metrics.jsonl").write_text("".join(json.dumps(_as_written(line)) + "\n" for line in lines))
    if record != {}:
        (path / "environment.json").write_text(json.dumps(environment() if record is None else record))
    for step, text in (samples or {}).items():
        (path / "samples").mkdir(exist_ok=True)
        (path / "samples" / f"step-{step:06d}.txt").write_text(text)
    for entry, content in (evaluations or {}).items():
        (path / "evaluations").mkdir(exist_ok=True)
        (path / "evaluations" / f"{entry}.json").write_text(json.dumps(content))
    return path


def _as_written(value: Any) -> Any:
    """Numbers that JSON lacks as strings, as training writes them."""
    if isinstance(value, dict):
        return {key: _as_written(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_as_written(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def contents(*paths: Path) -> Contents:
    """What a report of these runs tells."""
    return contents_of(read_subjects(paths))
