"""Task scores: found where training and `quill eval` leave them, and beside published ones of the same style."""

from pathlib import Path
from typing import Any

import pytest
from recorded_runs import contents, make_run, metrics

from quillgpt.evaluate.tasks import TASKS
from quillgpt.report.contents import Contents
from quillgpt.report.plot import Plot
from quillgpt.report.scores import GPT2, METRICS, TITLES, all_published, published_for, split_name

COMPLETION, HARNESS = "hellaswag-completion", "hellaswag-harness"


def with_scores(style: str = "completion") -> list[dict[str, Any]]:
    """Metrics with a HellaSwag score on every evaluation."""
    lines = metrics()
    for line in lines:
        if "held_out_loss" in line:
            name = f"hellaswag_{style}_accuracy_norm"
            line |= {name: 0.25 + line["step"] / 1000, f"{name}_standard_error": 0.0045}
    return lines


def evaluation(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"step": step, "tokens": step * 1024},
        "task": {"name": HARNESS, "split": None},
        "scores": {"accuracy_norm": 0.3},
        "standard_errors": {"accuracy_norm": 0.004},
        "items": 10_042,
        **changes,
    }


def score_plot(report: Contents) -> Plot:
    (plot,) = report.score_figures
    return plot


def test_scores_of_training_are_drawn_with_gpt2s_and_gpt3s_published_lines(tmp_path: Path) -> None:
    plot = score_plot(contents(make_run(tmp_path / "a", with_scores())))
    (line,) = plot.lines
    assert line.y.tolist() == pytest.approx([0.26, 0.27, 0.28, 0.29])
    assert line.error.tolist() == [0.0045] * 4
    published = TASKS[COMPLETION].published["gpt2"]["accuracy_norm"][0]
    levels = {level.label: level.value for level in plot.levels}
    assert levels == {"GPT-2 124M": published, "GPT-3 125M": 0.337, "guessing": 0.25}
    assert plot.title == "HellaSwag in completion style: accuracy, by length"
    assert plot.caption.startswith("0.2900 ± 0.0045 at the end. Published, scored in completion style like these: ")


def test_a_score_in_harness_style_never_stands_beside_completion_style(tmp_path: Path) -> None:
    plot = score_plot(contents(make_run(tmp_path / "a", with_scores("harness"))))
    values = {level.label: level.value for level in plot.levels}
    assert values == {"GPT-2 124M": TASKS[HARNESS].published["gpt2"]["accuracy_norm"][0], "guessing": 0.25}
    assert "GPT-3" not in plot.caption


def test_evaluations_join_the_scores_of_training_by_step(tmp_path: Path) -> None:
    files = {
        "step-000040-x": evaluation(40, model={"step": 40, "tokens": None}),
        "step-000020-x": evaluation(20),
        "broken": {"model": 1},
        "other": evaluation(10, scores={"accuracy_norm": "nan"}),
        "nameless": evaluation(30, model={"name": "gpt2", "step": None}),
    }
    report = contents(make_run(tmp_path / "a", with_scores("harness"), evaluations=files))
    (line,) = score_plot(report).lines
    assert line.x.tolist() == [10 * 1024, 20 * 1024, 30 * 1024, 40 * 1024]
    assert line.y.tolist() == pytest.approx([0.26, 0.3, 0.28, 0.3])  # the smaller standard error counts
    name = "HellaSwag in harness style: accuracy, by length"
    assert report.scores.rows == [["a", name, "0.3000 ± 0.0040", "10,042", "40"]]


def test_losses_of_other_text_are_in_the_table_by_data_and_split(tmp_path: Path) -> None:
    entry = evaluation(40, task={"name": "loss", "split": "val"}, data={"name": "novels"}, scores={"loss": 3.25})
    report = contents(make_run(tmp_path / "a", evaluations={"step-000040-loss": entry}))
    assert [row[1:3] for row in report.scores.rows] == [["Loss (novels, val): nats per token", "3.25"]]
    assert report.score_figures == []


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        (120_640, ["GPT-2 124M", "GPT-3 125M"]),
        (800_000_000, ["GPT-2 124M", "GPT-2 774M", "GPT-3 125M", "GPT-3 760M"]),
        (0, ["GPT-2 124M", "GPT-3 125M"]),
    ],
)
def test_published_are_the_smallest_and_the_nearest_in_size(parameters: int, names: list[str]) -> None:
    assert [entry.name for entry in published_for(COMPLETION, "accuracy_norm", parameters)] == names


@pytest.mark.parametrize("task", TASKS)
def test_every_task_of_the_menu_has_a_title_and_its_published_scores(task: str) -> None:
    assert task in TITLES
    for metric in TASKS[task].metrics:
        assert metric in METRICS
        assert split_name(f"{task.replace('-', '_')}_{metric}") == (task, metric)
    for model, scores in TASKS[task].published.items():
        for metric, (value, _) in scores.items():
            if model in GPT2:
                assert value in [entry.value for entry in all_published(task, metric)]
