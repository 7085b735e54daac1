"""The figures of docs/reproduce.md follow from the recipes and from published runs, by one formula."""

import pytest

from quillgpt.cli.arguments import load_settings
from quillgpt.evaluate.tasks import TASKS
from quillgpt.recipes import recipe_config, recipe_path
from reproduce_page import HELLASWAG, PAGE, PLATEAU, RECIPES, RUNS, hours, page, recipe_tokens, time_of


def test_the_page_equals_the_recipes_and_the_formula() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python tests/reproduce_page.py`"


def test_tokens_and_rate_of_a_published_run_give_its_hours() -> None:
    published = {"nanogpt": 96, "llmc-124m-a100": 94 / 60, "llmc-124m-h100": 45 / 60, "llmc-1558m": 24}
    computed = {run: RUNS[run].tokens / RUNS[run].rate / 3600 for run in published}
    assert computed == pytest.approx(published, rel=0.04)


def test_a_recipe_of_a_published_shape_takes_its_hours() -> None:
    """GPT-2 without biases has a thousandth fewer operations."""
    assert hours("gpt2-124m", "nanogpt") == pytest.approx(96, rel=2e-3)
    assert hours("gpt2-1558m", "llmc-1558m", tokens=32e9) == pytest.approx(32e9 / (1_048_576 / 2.8) / 3600, rel=2e-3)
    assert hours("fineweb-edu-124m-3x", "fraserlove", tokens=5e9) == pytest.approx(1.75, rel=1e-3)


def test_hours_equal_the_formula() -> None:
    """6 * (84,953,088 + 50,257 * 768 + norms 19,200) + 12 * 12 * 768 * 1,024 operations, 8 x 312e12 / s, 29.2 %."""
    operations = 6 * (12 * 12 * 768**2 + 50257 * 768 + 25 * 768) + 12 * 12 * 768 * 1024
    share = RUNS["nanogpt"].mfu
    assert share == pytest.approx(0.292, abs=1e-3)
    assert hours("gpt2-124m", "nanogpt") == pytest.approx(600_000 * 491_520 * operations / (8 * 312e12 * share) / 3600)
    assert hours("gpt2-124m", "nanogpt", cards=1) == pytest.approx(8 * hours("gpt2-124m", "nanogpt"))
    times = {0.5: "30 min", 1.99: "119 min", 2: "2.0 h", 47.9: "47.9 h", 48: "2.0 days"}
    assert {value: time_of(value) for value in times} == times


def test_every_size_has_a_recipe_that_says_it_was_not_run_and_has_the_tokens() -> None:
    assert {recipe_config(name).model.n_layer for name in RECIPES} == {12, 24, 36, 48}
    for name in (*RECIPES, *(recipe for recipe, _, _ in PLATEAU.values())):
        assert "Not run here" in recipe_path(name).read_text(encoding="utf-8")
        assert load_settings([name]).config.train.batch_tokens
    for recipe, tokens, _ in PLATEAU.values():
        assert tokens <= 1.001 * recipe_tokens(recipe)


def test_the_published_scores_agree_with_those_of_the_task() -> None:
    """Its two sources, a script and a notebook of one project, differ by an item in a thousand."""
    scores = TASKS["hellaswag-completion"].published
    assert list(HELLASWAG) == ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
    assert {name: HELLASWAG[name] for name in scores} == pytest.approx(
        {name: metrics["accuracy_norm"][0] for name, metrics in scores.items()}, abs=1.1e-3
    )
