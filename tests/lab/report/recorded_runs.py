"""Runs as files, without a model: what a report reads."""

import json
import math
from pathlib import Path
from typing import Any

from quillgpt.lab.report.page import Report
from quillgpt.lab.report.runs import read_runs
from quillgpt.recipes import recipe_config
from quillgpt.run_dir import config_toml

Line = dict[str, Any]
FINGERPRINT = "f" * 64
SCRIPT = "<script>document.title='taken'</script>"
HOSTILE_NAME = "a<img src=x onerror=alert(1)>&'\"$x^2$日本" + "w" * 120
HOSTILE_TEXT = (
    f"{SCRIPT}\n</pre></details>\x1b[31mred\x00 \u202e" + "long" * 300 + "\n\n----\n\n{{ 7 * 7 }} {% raw %}\n"
)


def metrics(steps: int = 40, *, every: int = 10, shift: float = 0.0) -> list[Line]:
    """Lines of a run whose loss falls from 5 towards 2, with an evaluation now and then."""
    lines: list[Line] = []
    for step in range(1, steps + 1):
        loss = 2 + 3 * 0.9**step + shift
        line: Line = {
            "step": step,
            "tokens": 1024 * step,
            "train_loss": loss,
            "lr": 1e-3 * min(1.0, step / 5),
            "grad_norm": 0.5 + 2 / step,
            "tokens_per_second": 50_000.0 + step,
            "memory_bytes": 300_000_000 + step,
            "elapsed_seconds": 0.02 * step,
        }
        if step % every == 0:
            line |= {"val_loss": loss + 0.125, "val_loss_stderr": 0.03, "val_bpb": loss}
        lines.append(line)
    return lines


def with_scores(style: str = "completion", **changes: Any) -> list[Line]:
    """The same with a HellaSwag score at every evaluation."""
    name = f"hellaswag_{style}_accuracy_norm"
    lines = metrics()
    for line in lines:
        line |= changes
        if "val_loss" in line:
            line |= {name: 0.25 + line["step"] / 1000, f"{name}_standard_error": 0.0045}
    return lines


def environment(**changes: Any) -> dict[str, Any]:
    """What training records of its machine and its data."""
    data = {
        "directory": "data/small",
        "fingerprint": FINGERPRINT,
        "source": "python",
        "licence": "PSF-2.0",
        "tokenizer": "byte",
        "vocab_size": 257,
        "train_tokens": 100_000,
        "val_tokens": 20_000,
    }
    runtime = {"device": "cpu", "dtype": "fp32", "threads": 1, "global_batch_size": 16, "world_size": 1}
    known = {"command": ["quill", "train", "debug"], "commit": "abc", "processor": "A Processor", "parameters": 120_640}
    return {**known, "steps": 40, "runtime": runtime, "data": data, **changes}


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
    (path / "config.toml").write_text(config_toml(recipe_config("debug", **{"steps": 40} | settings)))
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


def report_of(*paths: Path) -> Report:
    """The report on these runs."""
    return Report(read_runs(paths))


def hostile_report(folder: Path) -> Report:
    """Two runs with everything that a report can show, and names and texts that a browser must not obey."""
    lines = with_scores(kernel_x_max=[1.0, 2.0], **{f"stat {SCRIPT}": [3.0]})
    for line in lines[9::10]:
        line |= {f"{SCRIPT}_accuracy": 0.5, f"{SCRIPT}_accuracy_standard_error": 0.1}
    lines[7] |= {"skipped": True, "train_loss": float("nan"), "grad_norm": float("inf")}
    hostile = make_run(
        folder / HOSTILE_NAME,
        lines,
        record={
            "command": ["quill", SCRIPT],
            "processor": SCRIPT + "p" * 200,
            "data": {"source": SCRIPT, "licence": SCRIPT},
        },
        samples={10: HOSTILE_TEXT, 20: "", 40: HOSTILE_TEXT},
        evaluations={
            "step-000040-x": {
                "model": {"step": 40, "tokens": None},
                "task": {"name": SCRIPT, "split": SCRIPT},
                "scores": {SCRIPT: 0.5, "accuracy": 0.5},
            }
        },
        track_name=SCRIPT,
        lr=1e-2,
    )
    return report_of(hostile, make_run(folder / "plain"))
