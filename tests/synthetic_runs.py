"""Run directories without a training: settings, environment and metrics with losses that a test knows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from quillgpt.config import updated
from quillgpt.recipes import recipe_config
from quillgpt.run_dir import append_metrics, config_toml

NATS_TO_BITS_PER_BYTE = 1.5
TOKENS_PER_STEP = 1000


def write_run(
    path: Path,
    *,
    seed: int = 1,
    validation: float | Sequence[float] = 3.0,
    steps: int = 100,
    until: int = 0,
    seconds_per_step: float = 0.1,
    settings: Mapping[str, object] | None = None,
    environment: Mapping[str, object] | None = None,
    lines: Sequence[Mapping[str, object]] = (),
) -> Path:
    """A run that was evaluated at equal intervals, with these validation losses; one number is that of the last.

    `until` is the step it has come to, 0 for the end; `lines` are appended to its metrics as they are.
    """
    path.mkdir(parents=True)
    changes = {"steps": steps, "seed": seed} | dict(settings or {})
    (path / "config.toml").write_text(config_toml(updated(recipe_config("debug"), changes, where="test")))
    known = {
        "steps": steps,
        "commit": "0123456789ab",
        "data": {"fingerprint": "f" * 64, "tokenizer": "byte", "vocab_size": 257, "val_tokens": 20_000},
        "runtime": {
            "device": "cpu",
            "dtype": "fp32",
            "threads": 1,
            "compile": False,
            "global_batch_size": 16,
            "micro_batch_size": 16,
        },
    }
    (path / "environment.json").write_text(json.dumps(known | dict(environment or {})))
    losses = list(validation) if isinstance(validation, Sequence) else [validation + 2, validation + 0.5, validation]
    for number, loss in enumerate(losses, start=1):
        step = (until or steps) * number // len(losses)
        line = {
            "step": step,
            "tokens": step * TOKENS_PER_STEP,
            "train_loss": loss + 0.25,
            "elapsed_seconds": step * seconds_per_step,
            "val_loss": loss,
            "val_bpb": loss * NATS_TO_BITS_PER_BYTE,
        }
        append_metrics(path / "metrics.jsonl", line)
    for line in lines:
        append_metrics(path / "metrics.jsonl", line)
    return path


def write_group(path: Path, validation: Mapping[int, float], **options: object) -> list[Path]:
    """Runs NAME-seed-SEED with these final validation losses."""
    return [
        write_run(path.with_name(f"{path.name}-seed-{seed}"), seed=seed, validation=loss, **options)
        for seed, loss in validation.items()
    ]
