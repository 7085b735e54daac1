"""Run directories without a training: settings, environment and metrics with losses that a test knows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from quillgpt.config import updated
from quillgpt.recipes import load_recipe
from quillgpt.run_dir import append_metrics, config_toml

NATS_TO_BITS_PER_BYTE = 1.5
TOKENS_PER_STEP = 1000


def write_run(
    path: Path,
    *,
    seed: int = 1,
    held_out: float | Sequence[float] = 3.0,
    steps: int = 100,
    until: int = 0,
    seconds_per_step: float = 0.1,
    settings: Mapping[str, object] | None = None,
    environment: Mapping[str, object] | None = None,
    lines: Sequence[Mapping[str, object]] = (),
) -> Path:
    """A run that was evaluated at equal intervals, with these held-out losses; one number is that of the last.

    `until` is the step it has come to, 0 for the end; `lines` are appended to its metrics as they are.
    """
    path.mkdir(parents=True)
    asked = {"steps": steps, "seed": seed} | dict(settings or {})
    (path / "config.toml").write_text(config_toml(updated(load_recipe("debug"), asked, where="test")))
    known = {
        "steps": steps,
        "commit": "0123456789ab",
        "data": {"fingerprint": "f" * 64, "tokenizer": "byte", "vocab_size": 257, "held_out_tokens": 20_000},
        "choices": {"device": "cpu", "dtype": "fp32", "threads": 1, "compile": False, "rows": 16, "batch_size": 16},
    }
    (path / "environment.json").write_text(json.dumps(known | dict(environment or {})))
    losses = list(held_out) if isinstance(held_out, Sequence) else [held_out + 2, held_out + 0.5, held_out]
    for number, loss in enumerate(losses, start=1):
        step = (until or steps) * number // len(losses)
        line = {
            "step": step,
            "tokens": step * TOKENS_PER_STEP,
            "loss": loss + 0.25,
            "elapsed_seconds": step * seconds_per_step,
            "held_out_loss": loss,
            "held_out_bits_per_byte": loss * NATS_TO_BITS_PER_BYTE,
        }
        append_metrics(path / "metrics.jsonl", line)
    for line in lines:
        append_metrics(path / "metrics.jsonl", line)
    return path


def write_group(path: Path, held_out: Mapping[int, float], **options: object) -> list[Path]:
    """Runs NAME-seed-SEED with these final held-out losses."""
    return [
        write_run(path.with_name(f"{path.name}-seed-{seed}"), seed=seed, held_out=loss, **options)
        for seed, loss in held_out.items()
    ]
