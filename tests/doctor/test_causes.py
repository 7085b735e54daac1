"""Each cause on made-up records: evidence that is there is found with its numbers, and what is harmless is not."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quillgpt.doctor.causes import CAUSES, data, evaluation, optimizer, outcome
from quillgpt.doctor.finding import CERTAINTIES, Finding
from quillgpt.doctor.observed import Observed
from quillgpt.doctor.probe import Batches, Frequencies, HeldOut, Probe
from quillgpt.evaluate.bands import shipped_bands
from quillgpt.evaluate.bands.judging import Judge, Point
from quillgpt.recipes import load_recipe
from quillgpt.run_record import RunRecord

LINES = 60
STEPS = 10 * np.arange(1, LINES + 1)
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.normal(0.0, 0.05, LINES)
CALM = 2.0 + 2.0 * np.exp(-STEPS / 80) + NOISE

BATCHES = Batches(
    steps=STEPS[-20:],
    logged=CALM[-20:],
    expected=CALM[-20:] - 0.1,
    in_order=2.0 + RANDOM.normal(0.0, 0.05, 20),
    first=2.0,
)
HELD_OUT = HeldOut(
    loss=2.2,
    standard_error=0.02,
    tokens=20_000,
    is_whole=True,
    with_dropout=None,
    by_offset={-2: 5.0, -1: 4.0, 0: 2.2, 1: 4.5, 2: 5.0},
    repeats=True,
)
PROBE = Probe(
    step=600,
    recorded=2.2,
    held_out=HELD_OUT,
    frequencies=Frequencies(unigram_loss=3.2, distance=0.1, distance_within=0.08),
    batches=BATCHES,
)


def observed(
    *,
    probe: Probe | None = PROBE,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    **columns: Any,
) -> Observed:
    """A calm run, with columns of its metrics replaced."""
    usual = {
        "step": STEPS.tolist(),
        "tokens": (1024 * STEPS).tolist(),
        "loss": CALM,
        "mean_loss": CALM,
        "lr": np.full(LINES, 1e-3),
        "gradient_norm": 0.6 + NOISE,
        "tokens_per_second": 1e4 + 1e3 * NOISE,
        "elapsed_seconds": STEPS / 2,
    }
    table = usual | columns
    lines = [
        {name: column[line] for name, column in table.items() if column[line] is not None} for line in range(LINES)
    ]
    record = RunRecord(
        path=Path("runs/x"),
        config=load_recipe("debug", **(settings or {})),
        environment=environment or {"data": {"train_tokens": 100_000}},
        lines=lines,
        evaluations=[],
    )
    return Observed(record=record, judge=None, at_equal_steps=None, probe=probe, has_other_tokenizer=False, missing={})


def at(places: Mapping[int, Any]) -> list[Any]:
    """A column that is there at some lines only."""
    return [places.get(line) for line in range(LINES)]


def evaluated(losses: list[float]) -> dict[str, list[Any]]:
    """Held-out losses at evenly spaced lines, the last among them."""
    places = np.linspace(LINES / len(losses) - 1, LINES - 1, len(losses)).astype(int)
    return {
        "held_out_loss": at(dict(zip(places, losses, strict=True))),
        "held_out_standard_error": at(dict.fromkeys(places, 0.01)),
    }


def with_spikes(*places: int, height: float = 1.5) -> np.ndarray:
    losses = CALM.copy()
    losses[list(places)] += height
    return losses


def probe_with(**changes: Any) -> Probe:
    """The probe with changes in itself or in the looks it is made of."""
    held_out = {name: value for name, value in changes.items() if hasattr(HELD_OUT, name)}
    counted = {name: value for name, value in changes.items() if hasattr(PROBE.frequencies, name)}
    fed = {name: value for name, value in changes.items() if hasattr(BATCHES, name)}
    rest = {name: value for name, value in changes.items() if name == "recorded"}
    return replace(
        PROBE,
        held_out=replace(HELD_OUT, **held_out),
        frequencies=replace(PROBE.frequencies, **counted),
        batches=replace(BATCHES, **fed),
        **rest,
    )


RISING = np.concatenate([CALM[:40], CALM[40:] + np.linspace(0.0, 2.0, 20)])
SLOWER = np.where(STEPS > 400, 3e3, 1e4)
OTHERS = 2.0 + RANDOM.normal(0.0, 0.05, 20)

FOUND: list[tuple[Callable[[Observed], Finding | None], dict[str, Any], str]] = [
    (optimizer.spikes, {"loss": with_spikes(30, 44)}, "2 of 60 logged steps .*step 310, 450"),
    (optimizer.spikes, {"loss": with_spikes(30, height=3.0)}, r"1 of 60 .*the highest, step 310, by 2\.9"),
    (optimizer.skipped, {"skipped": at({7: True, 9: True})}, "2 of 60 logged steps were not applied: step 80, 100"),
    (optimizer.clipped, {"gradient_norm": 30.0 + NOISE}, "clipped at 100% .*median is 30.0., the clip 1"),
    (optimizer.rate_zero, {"lr": np.where(STEPS > 300, 0.0, 1e-3)}, "0 at 29 of 59 logged steps, first at step 310"),
    (optimizer.rate_too_high, {"mean_loss": RISING}, "the smoothed loss rose from 2.0.* to 3"),
    (outcome.over_fitting, evaluated([2.5, 2.2, 2.4, 2.8]), "held-out loss 2.200 at step 300, now 2.800; training"),
    (outcome.over_fitting, evaluated([2.5, 2.2, 2.4, 2.8]), "every training token was seen 6.1 times"),
    (outcome.slower, {"tokens_per_second": SLOWER}, "3,000 tokens/s from step 460 on, 10,000"),
    (outcome.no_context, {"probe": probe_with(loss=3.3)}, "held-out loss 3.300 after 600 steps; .* 3.200"),
    (data.wrong_tokenizer, {"probe": probe_with(loss=6.0, distance=0.7)}, "differ in 70% of their frequencies"),
    (
        data.targets_shifted,
        {"probe": probe_with(by_offset={-1: 1.0, 0: 6.0, 1: 6.0}, expected=OTHERS + 4)},
        "offset -1",
    ),
    (
        data.repeated_batch,
        {"probe": probe_with(expected=CALM[-20:] + 3.0, first=0.1)},
        "first batch .* 0.100",
    ),
    (data.not_shuffled, {"probe": probe_with(expected=OTHERS, in_order=CALM[-20:])}, "correlation 1.00"),
    (data.other_batches, {"probe": probe_with(expected=OTHERS)}, "do not go with those of the batches"),
    (evaluation.not_repeatable, {"probe": probe_with(repeats=False)}, "scored twice"),
    (evaluation.other_weights, {"probe": probe_with(recorded=2.5)}, "recorded a held-out loss of 2.5000.* 2.2000"),
    (evaluation.other_weights, {"probe": probe_with(recorded=1.9)}, "recorded a held-out loss of 1.9000"),
    (evaluation.dropout_left_on, {"probe": probe_with(recorded=2.5, with_dropout=2.49)}, "2.2000 .* off and 2.4900"),
    (evaluation.other_tokens, {"probe": probe_with(recorded=7.0)}, r"recorded .* 7.000, .* \(3.200\)"),
]


@pytest.mark.parametrize(("look", "changes", "evidence"), FOUND, ids=lambda value: getattr(value, "__name__", ""))
def test_a_cause_is_found_with_its_numbers(
    look: Callable[[Observed], Finding | None], changes: dict[str, Any], evidence: str
) -> None:
    found = look(observed(**changes))
    assert found is not None
    assert found.certainty in CERTAINTIES
    assert found.remedy
    assert re.search(evidence, "; ".join(found.evidence)), found.evidence


HARMLESS: list[tuple[str, dict[str, Any]]] = [
    ("a calm run", {}),
    ("one spike that is not high", {"loss": with_spikes(30, height=0.8)}),
    ("a few skipped steps of fp16", {"skipped": at({3: True}), "environment": {"choices": {"dtype": "fp16"}}}),
    ("gradients longer than the clip, as ever", {"gradient_norm": 2.0 + NOISE}),
    ("no clip", {"gradient_norm": 30.0 + NOISE, "settings": {"gradient_clip": 0.0}}),
    ("a rate of 0 at the last step", {"lr": np.where(STEPS == 600, 0.0, 1e-3)}),
    ("held-out losses that waver", evaluated([2.5, 2.19, 2.22, 2.2])),
    ("a held-out loss above the training loss", evaluated([3.0, 2.6, 2.5, 2.45])),
    ("a slow moment", {"tokens_per_second": np.where(STEPS == 300, 1e3, 1e4)}),
    (
        "slower for less than a minute",
        {"tokens_per_second": SLOWER, "elapsed_seconds": STEPS / 50},
    ),
    ("a part scored, within its error", {"probe": probe_with(recorded=2.29, is_whole=False)}),
    ("other digits of another machine", {"probe": probe_with(recorded=2.205)}),
    ("a model that knows its input better than the next token", {"probe": probe_with(by_offset={-1: 1.0, 0: 2.2})}),
    ("batches that are all alike", {"probe": probe_with(expected=np.full(20, 2.0), in_order=np.full(20, 2.0))}),
    ("no losses at all", {"mean_loss": [None] * LINES, "loss": np.full(LINES, np.nan)}),
]


@pytest.mark.parametrize(("what", "changes"), HARMLESS, ids=[what for what, _ in HARMLESS])
def test_what_is_harmless_is_no_cause(what: str, changes: dict[str, Any]) -> None:
    seen = observed(**changes)
    found = {name for name, cause in CAUSES.items() if "band" not in cause.needs and cause.look(seen) is not None}
    assert found == set()


def test_without_a_checkpoint_a_batch_known_by_heart_shows_in_the_records() -> None:
    run = observed(probe=None, **evaluated([3.0, 4.0]))
    assert data.repeated_batch(run) is None
    band = next(iter(shipped_bands()))
    judge = Judge(band=band, peak_lr=1e-3, points=[Point(step=600, loss=1.0, low=1.5, high=2.0)])
    found = data.repeated_batch(replace(run, judge=judge))
    assert found is not None
    assert found.evidence[1] == "0.50 below the reference band since step 600"


def test_causes_that_explain_others_name_causes_of_the_menu() -> None:
    for name, cause in CAUSES.items():
        assert set(cause.explains) <= CAUSES.keys() - {name}
        assert set(cause.needs) <= {"lines", "band", "checkpoint", "tokenizer", "batches", "recorded"}
