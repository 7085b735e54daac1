"""Each cause on synthetic records: it is found with its evidence, and harmless records give no finding."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quillgpt.lab.bands.band import shipped_bands
from quillgpt.lab.bands.judge import Judge, Point
from quillgpt.lab.doctor.causes import CAUSES, batches
from quillgpt.lab.doctor.observe import CERTAINTIES, Observed
from quillgpt.lab.doctor.probe import Batches, Frequencies, Probe, ValidationScores
from quillgpt.lab.run_record import RunRecord
from quillgpt.recipes import recipe_config

LINES = 60
STEPS = 10 * np.arange(1, LINES + 1)
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.normal(0.0, 0.05, LINES)
CALM = 2.0 + 2.0 * np.exp(-STEPS / 80) + NOISE
UNRELATED = 2.0 + RANDOM.normal(0.0, 0.05, 20)
PROBE = Probe(
    step=600,
    recorded=2.2,
    validation=ValidationScores(
        loss=2.2,
        standard_error=0.02,
        tokens=20_000,
        is_full=True,
        with_dropout=None,
        by_offset={-2: 5.0, -1: 4.0, 0: 2.2, 1: 4.5, 2: 5.0},
        repeats=True,
    ),
    frequencies=Frequencies(unigram_loss=3.2, distance=0.1, distance_within=0.08),
    batches=Batches(
        steps=STEPS[-20:],
        logged=CALM[-20:],
        expected=CALM[-20:] - 0.1,
        in_order=2.0 + RANDOM.normal(0.0, 0.05, 20),
        first=2.0,
    ),
)


def observed(
    *,
    probe: Probe | None = PROBE,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    **columns: Any,
) -> Observed:
    """A calm run, with columns of its metrics replaced; None is an entry that is missing."""
    table = {
        "step": STEPS.tolist(),
        "tokens": (1024 * STEPS).tolist(),
        "train_loss": CALM,
        "train_loss_mean": CALM,
        "lr": np.full(LINES, 1e-3),
        "grad_norm": 0.6 + NOISE,
        "tokens_per_second": 1e4 + 1e3 * NOISE,
        "elapsed_seconds": STEPS / 2,
    } | columns
    lines = [{name: column[i] for name, column in table.items() if column[i] is not None} for i in range(LINES)]
    record = RunRecord(
        path=Path("runs/x"),
        config=recipe_config("debug", **(settings or {})),
        environment=environment or {"data": {"train_tokens": 100_000}},
        lines=lines,
        evaluations=[],
    )
    return Observed(record=record, probe=probe, missing={})


def at(places: Mapping[int, Any]) -> list[Any]:
    """A column with entries at some lines only."""
    return [places.get(line) for line in range(LINES)]


def evaluated(*losses: float) -> dict[str, list[Any]]:
    """Validation losses at evenly spaced lines, the last among them."""
    places = np.linspace(LINES / len(losses) - 1, LINES - 1, len(losses)).astype(int)
    return {
        "val_loss": at(dict(zip(places, losses, strict=True))),
        "val_loss_stderr": at(dict.fromkeys(places, 0.01)),
    }


def spikes(*places: int, height: float = 1.5) -> dict[str, np.ndarray]:
    losses = CALM.copy()
    losses[list(places)] += height
    return {"train_loss": losses}


def probe(*, without_batches: bool = False, **changes: Any) -> dict[str, Probe]:
    """The probe with fields of it or of its parts replaced."""
    parts = {}
    for name in ("validation", "frequencies", "batches"):
        part = getattr(PROBE, name)
        parts[name] = replace(part, **{key: value for key, value in changes.items() if hasattr(part, key)})
    recorded = changes.get("recorded", PROBE.recorded)
    return {"probe": replace(PROBE, **parts | ({"batches": None} if without_batches else {}), recorded=recorded)}


SLOWER = {"tokens_per_second": np.where(STEPS > 400, 3e3, 1e4)}
RISING = np.concatenate([CALM[:40], CALM[40:] + np.linspace(0.0, 2.0, 20)])
SHIFTED = {"by_offset": {-1: 1.0, 0: 6.0, 1: 6.0}, "expected": UNRELATED + 4}

FOUND: list[tuple[str, dict[str, Any], str]] = [
    ("loss spikes", spikes(30, 44), "2 of 60 logged steps .*step 310, 450"),
    ("loss spikes", spikes(30, height=3.0), r"1 of 60 .*the highest, step 310, by 2\.9"),
    ("steps skipped", {"skipped": at({7: True, 9: True})}, "2 of 60 logged steps were skipped: step 80, 100"),
    ("clipped every step", {"grad_norm": 30.0 + NOISE}, "clipped at 100% .*median norm is 30.0., the clip 1"),
    ("learning rate zero", {"lr": np.where(STEPS > 300, 0.0, 1e-3)}, "0 at 29 of 59 logged steps, first at step 310"),
    ("learning rate too high", {"train_loss_mean": RISING}, "the smoothed loss rose from 2.0.* to 3"),
    ("overfitting", evaluated(2.5, 2.2, 2.4, 2.8), "validation loss 2.200 at step 300, now 2.800; training"),
    ("overfitting", evaluated(2.5, 2.2, 2.4, 2.8), "every training token was seen 6.1 times"),
    ("throughput fell", SLOWER, "3,000 tokens/s from step 460 on, 10,000"),
    ("no context learnt", probe(loss=3.3), "validation loss 3.300 after 600 steps; .* 3.200"),
    ("wrong tokenizer", probe(loss=6.0, distance=0.7), "differ in 70% of their frequencies"),
    ("targets shifted", probe(**SHIFTED), "offset -1"),
    ("repeated batch", probe(expected=CALM[-20:] + 3.0, first=0.1), "first batch it gives 0.100"),
    ("data not shuffled", probe(expected=UNRELATED, in_order=CALM[-20:]), r"file order \(1.00\)"),
    ("other batches", probe(expected=UNRELATED), "do not correlate with those of the batches"),
    ("evaluation not repeatable", probe(repeats=False), "scored twice"),
    ("evaluated with another model", probe(recorded=2.5), "recorded a validation loss of 2.5000.* 2.2000"),
    ("evaluated with another model", probe(recorded=1.9), "recorded a validation loss of 1.9000"),
    ("dropout left on in evaluation", probe(recorded=2.5, with_dropout=2.49), "2.2000 .* off and 2.4900"),
    ("wrong tokenizer in evaluation", probe(recorded=7.0), r"recorded .* 7.000, .* \(3.200\)"),
]
HARMLESS: list[tuple[str, dict[str, Any]]] = [
    ("a calm run", {}),
    ("one low spike", spikes(30, height=0.8)),
    ("noisy losses", {"train_loss": CALM + 10 * NOISE}),
    ("a few skipped steps of fp16", {"skipped": at({3: True}), "environment": {"runtime": {"dtype": "fp16"}}}),
    ("gradients longer than the clip, as usual", {"grad_norm": 2.0 + NOISE}),
    ("no clip", {"grad_norm": 30.0 + NOISE, "settings": {"gradient_clip": 0.0}}),
    ("a rate of 0 at the last step", {"lr": np.where(STEPS == 600, 0.0, 1e-3)}),
    ("validation losses that fluctuate", evaluated(2.5, 2.19, 2.22, 2.2)),
    ("a validation loss above the training loss", evaluated(3.0, 2.6, 2.5, 2.45)),
    ("a slow moment", {"tokens_per_second": np.where(STEPS == 300, 1e3, 1e4)}),
    ("slower for less than a minute", SLOWER | {"elapsed_seconds": STEPS / 50}),
    ("a part scored, within its error", probe(recorded=2.29, is_full=False)),
    ("other digits of another machine", probe(recorded=2.205)),
    ("a model that predicts its input better than the next token", probe(by_offset={-1: 1.0, 0: 2.2})),
    ("another offset hardly better", probe(by_offset={-1: 2.15, 0: 2.2}, expected=CALM[-20:] + 0.3)),
    ("the same after few steps", probe(without_batches=True, by_offset={-1: 1.0, 0: 2.2})),
    (
        "a hardly trained model",
        probe(without_batches=True, by_offset={-1: 1.0, 0: 2.4}) | {"train_loss_mean": CALM + 3},
    ),
    ("batches that are all alike", probe(expected=np.full(20, 2.0), in_order=np.full(20, 2.0))),
    ("no losses at all", {"train_loss_mean": [None] * LINES, "train_loss": np.full(LINES, np.nan)}),
]


def test_a_cause_is_found_with_its_numbers() -> None:
    wrong = []
    for name, changes, evidence in FOUND:
        found = CAUSES[name].find(observed(**changes))
        if not (found and found.remedy and found.certainty in CERTAINTIES):
            wrong.append((name, found))
        elif not re.search(evidence, "; ".join(found.evidence)):
            wrong.append((name, found.evidence))
    assert not wrong
    without_records = {"learning rate too low", "batch too small"}  # they need a band: test_doctor.py
    assert {name for name, _, _ in FOUND} | without_records == CAUSES.keys()


def test_harmless_records_give_no_finding() -> None:
    wrong = {}
    for what, changes in HARMLESS:
        seen = observed(**changes)
        missing = {"band"} | ({"batches"} if seen.probe and seen.probe.batches is None else set())
        found = [name for name, cause in CAUSES.items() if cause.needs not in missing and cause.find(seen) is not None]
        if found:
            wrong[what] = found
    assert not wrong


def test_without_a_checkpoint_a_memorised_batch_shows_in_the_records() -> None:
    run = observed(probe=None, **evaluated(3.0, 4.0))
    assert batches.repeated_batch(run) is None
    judge = Judge(band=shipped_bands()[0], peak_lr=1e-3, points=[Point(step=600, loss=1.0, low=1.5, high=2.0)])
    found = batches.repeated_batch(replace(run, judge=judge))
    assert found is not None
    assert found.evidence[1] == "0.50 below the reference band since step 600"


def test_causes_explain_causes_of_the_menu() -> None:
    for name, cause in CAUSES.items():
        assert set(cause.explains) <= CAUSES.keys() - {name}
        assert cause.needs in {"lines", "band", "checkpoint", "tokenizer", "batches", "recorded"}
