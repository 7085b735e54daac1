"""Reference bands: the interval covers what it says, a band is for its own settings and data, its file is current."""

import dataclasses
import importlib.util
import json
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from quillgpt.config import RunConfig, flatten, group_of, updated
from quillgpt.errors import DataError
from quillgpt.evaluate.bands import Band, find_band, read_band, shipped_bands
from quillgpt.evaluate.bands.finding import defining_settings, tokens_per_step
from quillgpt.evaluate.bands.judging import judged
from quillgpt.evaluate.bands.making import (
    effective_degrees,
    make_band,
    points_of,
    prediction_interval,
    scatter,
    smoothed,
    window_lines,
)
from quillgpt.recipes import load_recipe, recipe_names

ROOT = Path(__file__).parents[2]
LINES, LOG_EVERY = 40, 5


def benchmark() -> Any:
    """benchmarks/reference_bands.py as a module."""
    spec = importlib.util.spec_from_file_location("reference_bands", ROOT / "benchmarks" / "reference_bands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECIPES = benchmark().RECIPES
SHIPPED = {band.recipe: band for band in shipped_bands()}
CONFIG = load_recipe("debug", steps=LINES * LOG_EVERY, log_every=LOG_EVERY)


def curve(seed: int = 0, noise: float = 0.02) -> np.ndarray:
    """Mean losses of a run's lines."""
    steps = LOG_EVERY * np.arange(1, LINES + 1)
    return 2.0 + 3.0 * np.exp(-steps / 40) + np.random.default_rng(seed).normal(0.0, noise, LINES)


@pytest.fixture(scope="module")
def band() -> Band:
    """A band of eight made-up runs of the debug recipe."""
    losses = np.array([curve(seed) for seed in range(1, 9)])
    about = {
        "recipe": "debug",
        "settings": defining_settings(CONFIG),
        "fingerprint": "f" * 64,
        "data": "source python, Python 3.11.7",
        "optim": {name: value for name, value in flatten(CONFIG).items() if group_of()[name] == "optim"},
        "schedule_steps": LINES * LOG_EVERY,
        "seeds": list(range(1, 9)),
        "commit": "none",
        "hardware": "none",
        "made_with": {"command": "none"},
    }
    return make_band(losses, np.ones_like(losses), about=about, tokens_per_step=1024, log_every=LOG_EVERY)


def lines_of(losses: np.ndarray, band: Band, every: int = LOG_EVERY) -> list[dict[str, Any]]:
    """Lines of metrics of a run with these mean losses."""
    lr = CONFIG.optim.lr
    return [
        {"step": step, "tokens": 1024 * step, "mean_loss": float(loss), "lr": lr * band.multiplier(step)}
        for step, loss in zip(range(every, every * len(losses) + 1, every), losses, strict=True)
    ]


def white(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return random.normal(size=shape)


def moved_as_a_whole(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return random.normal(size=(shape[0], 1)) * np.ones(shape)


def wandering(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Neighbours correlate by 0.9."""
    values = random.normal(size=shape)
    for point in range(1, shape[1]):
        values[:, point] = 0.9 * values[:, point - 1] + math.sqrt(1 - 0.81) * values[:, point]
    return values


def ever_wider(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return wandering(random, shape) * np.linspace(1.0, 3.0, shape[1])


@pytest.mark.parametrize("kind", [white, moved_as_a_whole, wandering, ever_wider])
@pytest.mark.parametrize("level", [0.95, 0.999])
def test_one_more_run_is_inside_as_often_as_the_level_says(
    kind: Callable[[np.random.Generator, tuple[int, int]], np.ndarray], level: float
) -> None:
    random, outside, anywhere = np.random.default_rng(1), [], []
    for _ in range(250):
        runs = kind(random, (8 + 100, 20))
        interval = prediction_interval(runs[:8], level=level)
        is_outside = (runs[8:] < interval.low) | (runs[8:] > interval.high)
        outside.append(is_outside.mean())
        anywhere.append(is_outside.any(axis=1).mean())
    assert np.mean(outside) < 1.3 * (1 - level)
    assert np.mean(anywhere) < 20 * (1 - level)
    if kind is moved_as_a_whole:  # where neighbours tell nothing new the interval is exact
        assert np.mean(outside) > 0.5 * (1 - level)


def test_the_interval_is_the_textbooks_where_points_are_one() -> None:
    runs = np.random.default_rng(0).normal(size=(8, 1))
    interval = prediction_interval(runs)
    low, high = stats.t.interval(0.999, 7, loc=runs.mean(), scale=runs.std(ddof=1) * math.sqrt(1 + 1 / 8))
    assert interval.low[0] == pytest.approx(low)
    assert interval.high[0] == pytest.approx(high)


def test_degrees_of_freedom_count_what_neighbours_tell() -> None:
    assert effective_degrees(np.ones((5, 5)), runs=8) == 7
    assert effective_degrees(np.eye(5), runs=8) == 35
    assert effective_degrees(np.zeros((5, 5)), runs=8) == 7


def test_points_are_about_forty_at_most_and_end_at_the_last_line() -> None:
    for lines in (4, 20, 25, 60, 200, 1000):
        points = points_of(lines)
        assert len(points) <= 40
        assert points[-1] == lines
        assert points[0] >= max(4, round(lines / 10))


def test_scatter_is_the_noise_about_a_trend_and_not_the_trend() -> None:
    random = np.random.default_rng(0)
    losses = 4.0 - 0.001 * np.arange(2000) + random.normal(0.0, 0.1, 2000)
    losses[1500] += 5.0
    assert scatter(losses) == pytest.approx(0.1, rel=0.05)
    assert scatter(losses[:3]) == 0.0


def test_a_run_like_the_others_is_inside_and_a_worse_one_is_told_since_when(band: Band) -> None:
    judge = judged(band, lines_of(curve(100), band), peak_lr=3e-3)
    assert len(judge.points) == len(band.tokens)
    assert judge.told() == "inside the reference band"
    losses = curve(100)
    losses[20:] += 0.5
    judge = judged(band, lines_of(losses, band), peak_lr=3e-3)
    assert judge.since in range(21 * LOG_EVERY, 25 * LOG_EVERY + 1)
    assert judge.told().endswith(f"above the reference band since step {judge.since:,}")
    assert judge.points[-1].excess == pytest.approx(losses[-4:].mean() - band.high[-1])
    assert judged(band, lines_of(curve(100) - 0.5, band), peak_lr=3e-3).told().startswith("0.4")


def test_a_smoothed_loss_is_of_the_same_steps_however_often_they_are_logged(band: Band) -> None:
    single = np.repeat(curve(100), LOG_EVERY) + np.random.default_rng(5).normal(0.0, 0.1, LINES * LOG_EVERY)
    often = lines_of(single, band, every=1)
    seldom = lines_of(single.reshape(-1, LOG_EVERY).mean(axis=1), band)
    uneven = [
        {**often[last], "mean_loss": float(single[first : last + 1].mean())}
        for first, last in [(0, 3), (4, 4), (5, 9), (10, 14), (15, 17), (18, 19)]
    ]
    reference = judged(band, seldom, peak_lr=3e-3).points
    assert [point.loss for point in judged(band, often, peak_lr=3e-3).points] == pytest.approx(
        [point.loss for point in reference]
    )
    (first,) = judged(band, uneven, peak_lr=3e-3).points
    assert first.loss == pytest.approx(reference[0].loss)


def test_lines_that_do_not_fill_a_window_are_not_judged(band: Band) -> None:
    lines = lines_of(curve(100), band)
    judge = judged(band, lines[2:], peak_lr=3e-3)  # its first line is of 15 steps, no less
    assert judge.points[0].step == 4 * LOG_EVERY
    lines[10]["mean_loss"] = math.nan
    assert {point.step // LOG_EVERY for point in judged(band, lines, peak_lr=3e-3).points}.isdisjoint(range(11, 15))
    torn = judged(band, lines_of(curve(100)[:13], band, every=3), peak_lr=3e-3)
    assert [point.step for point in torn.points] == []  # windows of 20 steps, lines of 3


def test_another_schedule_another_batch_and_the_end_are_told(band: Band) -> None:
    lines = lines_of(curve(100), band)
    for line in lines[20:]:
        line["lr"] /= 2
    judge = judged(band, lines, peak_lr=3e-3)
    assert judge.ended == "from step 105 on no band: the schedule is another"
    assert judge.points[-1].step == 100
    assert judge.told() == "ended inside the reference band (step 100)"
    lines = lines_of(curve(100), band)
    for line in lines[30:]:
        line["tokens"] += 1024
    assert judged(band, lines, peak_lr=3e-3).ended == "from step 155 on no band: the batch is another"
    beyond = {"step": 205, "tokens": 205 * 1024, "mean_loss": 9.0, "lr": 0.0}
    judge = judged(band, [*lines_of(curve(100), band), beyond], peak_lr=3e-3)
    assert judge.told() == "ended inside the reference band (step 200)"


NOT_IN_THE_KEY = {
    "lr": 1e-2,
    "min_lr": 1e-5,
    "weight_decay": 0.0,
    "beta1": 0.8,
    "beta2": 0.9,
    "eps": 1e-6,
    "gradient_clip": 0.0,
    "seed": 5,
    "attention": "explicit",  # computes the same as softmax
    "out": "runs/x",
    "steps": 50,
    "log_every": 7,
    "eval_every": 1,
    "save_every": 1,
    "device": "cpu",
    "dtype": "fp32",
    "threads": 3,
    "compile": "on",
}


@pytest.mark.parametrize("name", NOT_IN_THE_KEY)
def test_a_band_holds_whatever_it_is_there_to_judge(band: Band, name: str) -> None:
    config = updated(CONFIG, {name: NOT_IN_THE_KEY[name]}, where="test")
    assert find_band(config, band.fingerprint, [band]) is band


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_layer", 3), ("context_length", 32), ("dropout", 0.1), ("norm", "rmsnorm"), ("attention", "gaussian")],
)
def test_other_settings_have_no_band_and_are_named(band: Band, name: str, value: Any) -> None:
    config = updated(CONFIG, {name: value}, where="test")
    reason = find_band(config, band.fingerprint, [band])
    assert isinstance(reason, str)
    assert reason.startswith("no band for these settings: ")
    assert f"{name} {value}, not {band.settings[name]}" in reason


def test_a_setting_younger_than_the_band_has_its_default_there(band: Band) -> None:
    older = dataclasses.replace(band, settings={k: v for k, v in band.settings.items() if k not in ("mlp", "qk_norm")})
    assert find_band(CONFIG, band.fingerprint, [older]) is older
    reason = find_band(updated(CONFIG, {"mlp": "relu2"}, where="test"), band.fingerprint, [older])
    assert "mlp relu2, not gelu" in str(reason)


def test_another_batch_other_data_and_another_recipe_have_no_band(band: Band) -> None:
    config = updated(CONFIG, {"batch_size": 4}, where="test")
    assert "tokens_per_step 256, not 1024" in str(find_band(config, band.fingerprint, [band]))
    reason = find_band(CONFIG, "0" * 64, [band])
    theirs = "the band's is ffffffffffff (source python, Python 3.11.7)"
    assert reason == f"no band for this data: its fingerprint is 000000000000, {theirs}"
    assert find_band(load_recipe("gpt2-124m"), band.fingerprint, [band]) == "no band for this recipe"
    assert find_band(CONFIG, band.fingerprint, []) == "no band for this recipe"


def test_tokens_per_step_are_known_where_the_settings_say_them() -> None:
    assert tokens_per_step(load_recipe("debug")) == 1024
    assert tokens_per_step(load_recipe("python")) == 1024
    assert tokens_per_step(updated(RunConfig(), {"gradient_accumulation_steps": 2, "batch_size": 3}, where="t")) == 6144
    assert tokens_per_step(RunConfig()) == 0


def test_a_band_comes_back_from_its_file(band: Band, tmp_path: Path) -> None:
    (tmp_path / "band.json").write_text(json.dumps(band.to_json()))
    again = read_band(tmp_path / "band.json")
    for field in dataclasses.fields(Band):
        ours, theirs = getattr(band, field.name), getattr(again, field.name)
        if isinstance(ours, np.ndarray):
            assert theirs == pytest.approx(ours, abs=1e-5)
        else:
            assert theirs == ours


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "quillgpt reference band", "version": 2}'])
def test_a_damaged_band_is_told_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "band.json").write_text(content)
    with pytest.raises(DataError, match=r"band\.json: not a reference band"):
        read_band(tmp_path / "band.json")
    with pytest.raises(DataError, match=r"other\.json: no band there"):
        read_band(tmp_path / "other.json")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_that_runs_in_minutes_ships_a_band_of_its_settings_now(recipe: str) -> None:
    remedy = f"python benchmarks/reference_bands.py {recipe} makes it"
    assert recipe in SHIPPED, f"no band; {remedy}"
    band, config = SHIPPED[recipe], load_recipe(recipe)
    assert defining_settings(RunConfig()) | band.settings == defining_settings(config), (
        f"{recipe} has changed since its band; {remedy}"
    )
    usual, optim = (benchmark().optim_settings(one) for one in (RunConfig(), config))
    assert usual | band.optim == optim, f"{recipe} has changed since its band; {remedy}"
    assert band.log_every == config.train.log_every, remedy
    assert config.train.minutes or band.schedule_steps == config.train.steps, remedy
    assert len(band.seeds) >= 8
    assert 17 <= len(band.tokens) <= 40
    assert band.level == 0.999


def test_every_shipped_band_is_of_a_recipe() -> None:
    assert SHIPPED.keys() <= set(RECIPES) <= set(recipe_names())


@pytest.mark.parametrize("recipe", SHIPPED)
def test_a_shipped_band_says_what_made_it_and_is_sound(recipe: str) -> None:
    band = SHIPPED[recipe]
    assert f"Python {platform.python_version().split('.')[0]}." in band.data
    assert "dirty" not in band.commit
    assert band.commit
    assert band.hardware
    assert (band.low < band.mean).all()
    assert (band.mean < band.high).all()
    assert (np.diff(band.tokens) > 0).all()
    assert [band.multiplier(int(tokens) // band.tokens_per_step) for tokens in band.tokens] == pytest.approx(
        band.lr_multiplier, abs=1e-5
    )


@pytest.mark.parametrize("recipe", SHIPPED)
def test_a_shipped_band_is_what_its_finished_runs_give(recipe: str) -> None:
    module, band = benchmark(), SHIPPED[recipe]
    rows = module.read_metrics(module.RESULTS / f"{recipe}.jsonl")
    plan = next(row["plan"] for row in rows if row["plan"]["fingerprint"] == band.fingerprint)
    own = [row for row in module.rows(module.RESULTS / f"{recipe}.jsonl", plan) if row["seed"] in band.seeds]
    again = module.made(recipe, plan, own)
    assert again.to_json() == band.to_json()


@pytest.mark.parametrize("recipe", SHIPPED)
def test_a_seed_left_out_is_inside_the_band_of_the_others(recipe: str) -> None:
    module, band = benchmark(), SHIPPED[recipe]
    rows = [row for row in module.read_metrics(module.RESULTS / f"{recipe}.jsonl") if row["seed"] in band.seeds]
    losses = np.array([row["mean_loss"] for row in rows if row["plan"]["fingerprint"] == band.fingerprint])
    places = points_of(losses.shape[1]) - window_lines(losses.shape[1])
    curves = smoothed(losses, window_lines(losses.shape[1]))[:, places]
    outside = 0
    for seed, curve in enumerate(curves):
        interval = prediction_interval(np.delete(curves, seed, axis=0))
        outside += bool(((curve < interval.low) | (curve > interval.high)).any())
    assert outside <= max(1, len(curves) // 20)
