"""Reference bands: intervals have the stated coverage, a band applies to its own settings and data."""

import dataclasses
import importlib.util
import json
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from quillgpt.config import RunConfig, updated
from quillgpt.errors import DataError
from quillgpt.lab.bands.band import (
    Band,
    defining_settings,
    effective_degrees,
    find_band,
    points_of,
    prediction_interval,
    read_band,
    scatter,
    shipped_bands,
    smoothed,
    tokens_per_step,
    window_lines,
)
from quillgpt.lab.bands.judge import BandWatch, judged
from quillgpt.recipes import recipe_config, recipe_names
from quillgpt.run_dir import append_metrics, config_toml
from synthetic_bands import band_of

ROOT = Path(__file__).parents[2]
LINES, LOG_EVERY = 40, 5
CONFIG = recipe_config("debug", steps=LINES * LOG_EVERY, log_every=LOG_EVERY)


def benchmark() -> Any:
    """benchmarks/reference_bands.py as a module."""
    spec = importlib.util.spec_from_file_location("reference_bands", ROOT / "benchmarks" / "reference_bands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def curve(seed: int = 0, noise: float = 0.02) -> np.ndarray:
    """Mean losses of a run's lines."""
    steps = LOG_EVERY * np.arange(1, LINES + 1)
    return 2.0 + 3.0 * np.exp(-steps / 40) + np.random.default_rng(seed).normal(0.0, noise, LINES)


@pytest.fixture(scope="module")
def band() -> Band:
    """A band of eight synthetic runs of the debug recipe."""
    return band_of(CONFIG, np.array([curve(seed) for seed in range(1, 9)]), tokens_per_step=1024)


def lines_of(losses: np.ndarray, band: Band, every: int = LOG_EVERY) -> list[dict[str, Any]]:
    """Lines of metrics of a run with these mean losses."""
    steps = range(every, every * len(losses) + 1, every)
    return [
        {
            "step": step,
            "tokens": 1024 * step,
            "train_loss_mean": float(loss),
            "lr": CONFIG.optim.lr * band.multiplier(step),
        }
        for step, loss in zip(steps, losses, strict=True)
    ]


def judge_of(lines: list[dict[str, Any]], band: Band) -> Any:
    return judged(band, lines, peak_lr=CONFIG.optim.lr)


def autocorrelated(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Neighbours correlate by 0.9."""
    values = random.normal(size=shape)
    for point in range(1, shape[1]):
        values[:, point] = 0.9 * values[:, point - 1] + math.sqrt(1 - 0.81) * values[:, point]
    return values


def test_one_more_run_is_inside_as_often_as_the_level_says() -> None:
    shape = (8 + 100, 20)
    kinds = {
        "independent": lambda random: random.normal(size=shape),
        "constant": lambda random: random.normal(size=(shape[0], 1)) * np.ones(shape),
        "autocorrelated": lambda random: autocorrelated(random, shape),
        "widening": lambda random: autocorrelated(random, shape) * np.linspace(1.0, 3.0, shape[1]),
    }
    for kind, draw in kinds.items():
        for level in (0.95, 0.999):
            random, outside = np.random.default_rng(1), []
            for _ in range(250):
                runs = draw(random)
                _, _, low, high = prediction_interval(runs[:8], level=level)
                outside.append((runs[8:] < low) | (runs[8:] > high))
            assert np.mean(outside) < 1.3 * (1 - level), (kind, level)
            assert np.mean([one.any(axis=1).mean() for one in outside]) < 20 * (1 - level), (kind, level)
            if kind == "constant":  # neighbours add no information: the interval is exact
                assert np.mean(outside) > 0.5 * (1 - level), level


def test_the_interval_of_a_single_point_is_the_textbooks() -> None:
    runs = np.random.default_rng(0).normal(size=(8, 1))
    _, _, low, high = prediction_interval(runs)
    expected = stats.t.interval(0.999, 7, loc=runs.mean(), scale=runs.std(ddof=1) * math.sqrt(1 + 1 / 8))
    assert (low[0], high[0]) == pytest.approx(expected)


def test_degrees_of_freedom_count_independent_neighbours() -> None:
    assert effective_degrees(np.ones((5, 5)), runs=8) == 7
    assert effective_degrees(np.eye(5), runs=8) == 35
    assert effective_degrees(np.zeros((5, 5)), runs=8) == 7


def test_there_are_at_most_forty_points_and_the_last_line_is_one() -> None:
    for lines in (4, 20, 25, 60, 200, 1000):
        points = points_of(lines)
        assert len(points) <= 40
        assert points[-1] == lines
        assert points[0] >= max(4, round(lines / 10))


def test_scatter_measures_noise_without_trend_and_spikes() -> None:
    losses = 4.0 - 0.001 * np.arange(2000) + np.random.default_rng(0).normal(0.0, 0.1, 2000)
    losses[1500] += 5.0
    assert scatter(losses) == pytest.approx(0.1, rel=0.05)
    assert scatter(losses[:3]) == 0.0


def test_a_run_like_the_others_is_inside_and_a_worse_one_outside_since_its_step(band: Band) -> None:
    judge = judge_of(lines_of(curve(100), band), band)
    assert len(judge.points) == len(band.tokens)
    assert judge.text() == "inside the reference band"
    losses = curve(100)
    losses[20:] += 0.5
    judge = judge_of(lines_of(losses, band), band)
    assert judge.since in range(21 * LOG_EVERY, 25 * LOG_EVERY + 1)
    assert judge.text().endswith(f"above the reference band since step {judge.since:,}")
    assert judge.points[-1].excess == pytest.approx(losses[-4:].mean() - band.high[-1])
    below = judge_of(lines_of(curve(100) - 0.5, band), band).text()
    assert below.startswith("0.4")
    assert "below the reference band since step 20" in below


def test_a_smoothed_loss_is_of_the_same_steps_however_often_they_are_logged(band: Band) -> None:
    single = np.repeat(curve(100), LOG_EVERY) + np.random.default_rng(5).normal(0.0, 0.1, LINES * LOG_EVERY)
    often = lines_of(single, band, every=1)
    reference = judge_of(lines_of(single.reshape(-1, LOG_EVERY).mean(axis=1), band), band).points
    losses = [point.loss for point in judge_of(often, band).points]
    assert losses == pytest.approx([point.loss for point in reference])
    uneven = [
        {**often[last], "train_loss_mean": float(single[first : last + 1].mean())}
        for first, last in [(0, 3), (4, 4), (5, 9), (10, 14), (15, 17), (18, 19)]
    ]
    (first,) = judge_of(uneven, band).points
    assert first.loss == pytest.approx(reference[0].loss)


def test_windows_that_the_lines_do_not_fill_are_not_judged(band: Band) -> None:
    lines = lines_of(curve(100), band)
    assert judge_of(lines[2:], band).points[0].step == 4 * LOG_EVERY  # the first line is of 15 steps
    lines[10]["train_loss_mean"] = math.nan
    judge = judge_of(lines, band)
    assert {point.step // LOG_EVERY for point in judge.points}.isdisjoint(range(11, 15))
    assert judge.points[-1].step == LINES * LOG_EVERY
    assert judge_of(lines_of(curve(100)[:13], band, every=3), band).points == []  # windows of 20 steps, lines of 3


def test_another_schedule_another_batch_and_the_end_of_the_band_end_the_judging(band: Band) -> None:
    lines = lines_of(curve(100), band)
    for line in lines[20:]:
        line["lr"] /= 2
    judge = judge_of(lines, band)
    assert judge.ended == "no band from step 105 on: the schedule differs"
    assert judge.points[-1].step == 100
    assert judge.text() == "ended inside the reference band (step 100)"
    lines = lines_of(curve(100), band)
    for line in lines[30:]:
        line["tokens"] += 1024
    assert judge_of(lines, band).ended == "no band from step 155 on: the batch size differs"
    beyond = {"step": 205, "tokens": 205 * 1024, "train_loss_mean": 9.0, "lr": 0.0}
    judge = judge_of([*lines_of(curve(100), band), beyond], band)
    assert judge.text() == "ended inside the reference band (step 200)"


def test_a_watch_judges_a_run_from_its_directory_and_continues_after_a_resume(band: Band, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(config_toml(CONFIG))
    (tmp_path / "environment.json").write_text(json.dumps({"data": {"fingerprint": band.fingerprint}}))
    losses = curve(100)
    losses[20:] += 0.5
    added: list[dict[str, float]] = []
    texts: list[str] = []
    for number, line in enumerate(lines_of(losses, band)):
        if number in (0, 7, 30):  # a new process: what it knows is in the metrics
            watch = BandWatch([band])
            assert watch.start(tmp_path) == ""
        added.append(watch.judge(line))
        append_metrics(tmp_path / "metrics.jsonl", line | added[-1])
        if number in (10, 39):
            texts.append(watch.text())
    points = judge_of(lines_of(losses, band), band).points
    assert [entry["band_excess"] for entry in added if entry] == pytest.approx([point.excess for point in points])
    assert texts[0] == "inside the reference band"
    assert f"above the reference band since step 105: check `quill doctor {tmp_path}`" in texts[1]


def test_a_watch_without_a_band_says_why_and_adds_nothing(band: Band, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(config_toml(updated(CONFIG, {"n_layer": 1}, where="test")))
    watch = BandWatch([band])
    assert watch.start(tmp_path) == "no band for these settings: n_layer 1, not 2 (of the recipe debug)"
    assert [watch.judge(line) for line in lines_of(curve(100), band)] == [{}] * LINES
    assert watch.text() == ""


def test_a_band_applies_whatever_the_settings_it_judges_and_those_without_effect(band: Band) -> None:
    free = {"lr": 1e-2, "min_lr": 1e-5, "weight_decay": 0.0, "beta1": 0.8, "beta2": 0.9, "eps": 1e-6}
    free |= {"gradient_clip": 0.0, "seed": 5, "out": "runs/x", "steps": 50, "log_every": 7, "eval_every": 1}
    free |= {"save_every": 1, "device": "cpu", "dtype": "fp32", "threads": 3, "compile": "on"}
    free |= {"attention": "explicit"}  # computes the same as softmax
    for name, value in free.items():
        assert find_band(updated(CONFIG, {name: value}, where="test"), band.fingerprint, [band]) is band, name


def test_another_shape_batch_data_or_recipe_has_no_band_and_the_reason_names_it(band: Band) -> None:
    other = {"n_layer": 3, "context_length": 32, "dropout": 0.1, "norm": "rmsnorm", "attention": "gaussian"}
    for name, value in other.items():
        reason = str(find_band(updated(CONFIG, {name: value}, where="test"), band.fingerprint, [band]))
        assert reason.startswith("no band for these settings: "), name
        assert f"{name} {value}, not {band.settings[name]}" in reason
    config = updated(CONFIG, {"batch_size": 4}, where="test")
    assert "tokens_per_step 256, not 1024" in str(find_band(config, band.fingerprint, [band]))
    reason = find_band(CONFIG, "0" * 64, [band])
    assert reason == "no band for this data: its fingerprint is 000000000000, the band's is ffffffffffff (synthetic)"
    assert find_band(recipe_config("gpt2-124m"), band.fingerprint, [band]) == "no band for this recipe"
    assert find_band(CONFIG, band.fingerprint, []) == "no band for this recipe"


def test_a_setting_newer_than_the_band_had_its_default(band: Band) -> None:
    older = dataclasses.replace(band, settings={k: v for k, v in band.settings.items() if k not in ("mlp", "qk_norm")})
    assert find_band(CONFIG, band.fingerprint, [older]) is older
    reason = find_band(updated(CONFIG, {"mlp": "relu2"}, where="test"), band.fingerprint, [older])
    assert "mlp relu2, not gelu" in str(reason)


def test_tokens_per_step_are_known_if_the_settings_say_them() -> None:
    assert tokens_per_step(recipe_config("debug")) == 1024
    assert tokens_per_step(recipe_config("python")) == 1024
    assert tokens_per_step(updated(RunConfig(), {"gradient_accumulation_steps": 2, "batch_size": 3}, where="t")) == 6144
    assert tokens_per_step(RunConfig()) == 0


def test_a_band_is_read_back_from_its_file_and_a_damaged_file_is_one_line(band: Band, tmp_path: Path) -> None:
    path = tmp_path / "band.json"
    path.write_text(json.dumps(band.to_json()))
    again = read_band(path)
    for field in dataclasses.fields(Band):
        own, read = getattr(band, field.name), getattr(again, field.name)
        assert (read == pytest.approx(own, abs=1e-5)) if isinstance(own, np.ndarray) else read == own, field.name
    shorter = band.to_json() | {"low": [1.0]}
    for content in ("", "[]", "{}", '{"format": "quillgpt reference band", "version": 2}', json.dumps(shorter)):
        path.write_text(content)
        with pytest.raises(DataError, match=r"band\.json: not a reference band"):
            read_band(path)
    with pytest.raises(DataError, match=r"other\.json: no such band"):
        read_band(tmp_path / "other.json")


def test_every_recipe_of_minutes_ships_a_sound_band_of_its_current_settings() -> None:
    module, shipped = benchmark(), {band.recipe: band for band in shipped_bands()}
    defaults = RunConfig()
    assert shipped.keys() == set(module.RECIPES)
    assert set(module.RECIPES) <= set(recipe_names())
    stale = []
    for recipe, band in shipped.items():
        config = recipe_config(recipe)
        stated = defining_settings(defaults) | band.settings, module.optim_settings(defaults) | band.optim
        multipliers = [band.multiplier(int(tokens) // band.tokens_per_step) for tokens in band.tokens]
        claims = {
            "settings": stated == (defining_settings(config), module.optim_settings(config)),
            "length": bool(config.train.minutes) or band.schedule_steps == config.train.steps,
            "log_every": band.log_every == config.train.log_every,
            "seeds": len(band.seeds) >= 8,
            "points": 17 <= len(band.tokens) <= 40 and bool((np.diff(band.tokens) > 0).all()),
            "interval": band.level == 0.999 and bool(((band.low < band.mean) & (band.mean < band.high)).all()),
            "python": f"Python {platform.python_version().split('.')[0]}." in band.data,
            "provenance": bool(band.commit and band.hardware) and "dirty" not in band.commit,
            "schedule": multipliers == pytest.approx(band.lr_multiplier, abs=1e-5),
        }
        stale += [f"{recipe}: {claim}" for claim, holds in claims.items() if not holds]
    assert not stale, "python benchmarks/reference_bands.py RECIPE makes a band"


def test_shipped_bands_follow_from_their_finished_runs_and_contain_each_seed_left_out() -> None:
    module = benchmark()
    for band in shipped_bands():
        results = module.RESULTS / f"{band.recipe}.jsonl"
        plan = next(
            row["plan"] for row in module.measuring.rows_in(results) if row["plan"]["fingerprint"] == band.fingerprint
        )
        own = [row for row in module.rows(results, plan) if row["seed"] in band.seeds]
        assert module.made(band.recipe, plan, own).to_json() == band.to_json(), band.recipe
        losses = np.array([row["train_loss_mean"] for row in own])
        window = window_lines(losses.shape[1])
        curves = smoothed(losses, window)[:, points_of(losses.shape[1]) - window]
        outside = 0
        for seed, one in enumerate(curves):
            _, _, low, high = prediction_interval(np.delete(curves, seed, axis=0))
            outside += bool(((one < low) | (one > high)).any())
        assert outside <= max(1, len(curves) // 20), band.recipe
