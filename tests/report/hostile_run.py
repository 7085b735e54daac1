"""A page of two runs that holds everything a report can show, and much that a browser must not obey."""

from pathlib import Path
from typing import Any

from recorded_runs import contents, make_run, metrics

from quillgpt.report.contents import Contents

SCRIPT = "<script>document.title='taken'</script>"
NAME = "a<img src=x onerror=alert(1)>&'\"$x^2$日本" + "w" * 120
SAMPLE = f"{SCRIPT}\n</pre></details>\x1b[31mred\x00 \u202e" + "long" * 300 + "\n\n----\n\n{{ 7 * 7 }} {% raw %}\n"


def lines() -> list[dict[str, Any]]:
    """Metrics with scores, statistics, a skipped step and names that are markup."""
    found = metrics()
    for line in found:
        line |= {"kernel_x_max": [1.0, 2.0], f"stat {SCRIPT}": [3.0]}
        if "held_out_loss" in line:
            name = "hellaswag_completion_accuracy_norm"
            line |= {name: 0.25 + line["step"] / 1000, f"{name}_standard_error": 0.0045}
            line |= {f"{SCRIPT}_accuracy": 0.5, f"{SCRIPT}_accuracy_standard_error": 0.1}
    found[7] |= {"skipped": True, "loss": float("nan"), "gradient_norm": float("inf")}
    return found


def hostile_contents(folder: Path) -> Contents:
    """The two runs, one of them with nothing but a hostile name, samples and settings."""
    record = {
        "command": ["quill", SCRIPT],
        "processor": SCRIPT + "p" * 200,
        "data": {"source": SCRIPT, "licence": SCRIPT},
    }
    harness = {
        "model": {"step": 40, "tokens": None},
        "task": {"name": SCRIPT, "split": SCRIPT},
        "scores": {SCRIPT: 0.5, "accuracy": 0.5},
    }
    hostile = make_run(
        folder / NAME.replace("/", ""),
        lines(),
        record=record,
        samples={10: SAMPLE, 20: "", 40: SAMPLE},
        evaluations={"step-000040-x": harness},
        track_name=SCRIPT,
        lr=1e-2,
    )
    return contents(hostile, make_run(folder / "plain"))
