"""docs/reproduce.md: its figures follow from the recipes and from what was published, by one formula."""

import pytest

from quillgpt.cli.settings import load_settings
from quillgpt.recipes import load_recipe, recipe_path
from reproduce_page import HELLASWAG, PAGE, PLATEAU, RECIPES, RUNS, hours, page, recipe_tokens, time_of


def test_the_page_is_what_the_recipes_and_the_formula_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python tests/reproduce_page.py`"


PUBLISHED_HOURS = {"nanogpt": 96, "llmc-124m-a100": 94 / 60, "llmc-124m-h100": 45 / 60, "llmc-1558m": 24}


@pytest.mark.parametrize("run", PUBLISHED_HOURS)
def test_a_runs_tokens_at_its_rate_take_the_hours_it_says(run: str) -> None:
    assert RUNS[run].tokens / RUNS[run].rate / 3600 == pytest.approx(PUBLISHED_HOURS[run], rel=0.04)


def test_the_same_net_as_the_published_one_takes_its_hours() -> None:
    """GPT-2 without biases has a thousandth fewer operations."""
    assert hours("gpt2-124m", "nanogpt") == pytest.approx(96, rel=2e-3)
    assert hours("gpt2-1558m", "llmc-1558m", tokens=32e9) == pytest.approx(32e9 / (1_048_576 / 2.8) / 3600, rel=2e-3)
    assert hours("fineweb-edu-124m-3x", "fraserlove", tokens=5e9) == pytest.approx(1.75, rel=1e-3)


def test_hours_by_hand() -> None:
    """6 * (84,953,088 + 50,257 * 768 + norms 19,200) + 12 * 12 * 768 * 1,024 operations, 8 x 312e12 / s, 29.2 %."""
    operations = 6 * (12 * 12 * 768**2 + 50257 * 768 + 25 * 768) + 12 * 12 * 768 * 1024
    share = RUNS["nanogpt"].mfu
    assert share == pytest.approx(0.292, abs=1e-3)
    assert hours("gpt2-124m", "nanogpt") == pytest.approx(600_000 * 491_520 * operations / (8 * 312e12 * share) / 3600)
    assert hours("gpt2-124m", "nanogpt", cards=1) == pytest.approx(8 * hours("gpt2-124m", "nanogpt"))


def test_every_size_and_headline_has_a_recipe_that_says_it_was_not_run() -> None:
    sizes = {load_recipe(name).model.n_layer for name in RECIPES}
    assert sizes == {12, 24, 36, 48}
    for name in (*RECIPES, *(recipe for recipe, _, _ in PLATEAU.values())):
        assert "Not run here" in recipe_path(name).read_text(encoding="utf-8")
        assert load_settings([name]).config.train.batch_tokens


def test_a_headlines_tokens_are_within_its_recipe() -> None:
    for recipe, tokens, _ in PLATEAU.values():
        assert tokens <= 1.001 * recipe_tokens(recipe)


def test_the_times_read_as_people_say_them() -> None:
    assert [time_of(value) for value in (0.5, 1.99, 2, 47.9, 48)] == [
        "30 min",
        "119 min",
        "2.0 h",
        "47.9 h",
        "2.0 days",
    ]


def test_the_scores_are_those_that_a_task_reports() -> None:
    from quillgpt.evaluate.tasks import chosen_tasks

    assert list(HELLASWAG) == ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
    assert chosen_tasks("hellaswag:200")
