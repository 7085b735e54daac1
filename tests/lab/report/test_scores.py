"""Task scores: read from metrics and evaluations, and drawn with published ones of the same style."""

from pathlib import Path
from typing import Any

import pytest
from recorded_runs import make_run, report_of, with_scores

from quillgpt.evaluate.tasks import TASKS
from quillgpt.lab.report.scores import GPT2, METRICS, TITLES, all_published, published_for, split_name

COMPLETION, HARNESS = "hellaswag-completion", "hellaswag-harness"


def evaluation(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"step": step, "tokens": step * 1024},
        "task": {"name": HARNESS, "split": None},
        "scores": {"accuracy_norm": 0.3},
        "standard_errors": {"accuracy_norm": 0.004},
        "items": 10_042,
        **changes,
    }


def test_scores_of_training_are_drawn_with_published_ones_of_their_style(tmp_path: Path) -> None:
    (plot,) = report_of(make_run(tmp_path / "a", with_scores())).score_figures
    (line,) = plot.lines
    assert line.y.tolist() == pytest.approx([0.26, 0.27, 0.28, 0.29])
    assert line.error.tolist() == [0.0045] * 4
    gpt2 = TASKS[COMPLETION].published["gpt2"]["accuracy_norm"][0]
    assert plot.levels == {"GPT-2 124M": gpt2, "GPT-3 125M": 0.337, "guessing": 0.25}
    assert plot.title == "HellaSwag in completion style: accuracy, by length"
    assert plot.caption.startswith("0.2900 ± 0.0045 at the end. Published, scored in the same completion style: ")

    (harness,) = report_of(make_run(tmp_path / "b", with_scores("harness"))).score_figures
    gpt2 = TASKS[HARNESS].published["gpt2"]["accuracy_norm"][0]
    assert harness.levels == {"GPT-2 124M": gpt2, "guessing": 0.25}
    assert "GPT-3" not in harness.caption


def test_evaluations_join_the_scores_of_training_by_step(tmp_path: Path) -> None:
    files = {
        "step-000040-x": evaluation(40, model={"step": 40, "tokens": None}),
        "step-000020-x": evaluation(20),
        "broken": {"model": 1},
        "other": evaluation(10, scores={"accuracy_norm": "nan"}),
        "nameless": evaluation(30, model={"name": "gpt2", "step": None}),
    }
    report = report_of(make_run(tmp_path / "a", with_scores("harness"), evaluations=files))
    (line,) = report.score_figures[0].lines
    assert line.x.tolist() == [10 * 1024, 20 * 1024, 30 * 1024, 40 * 1024]
    assert line.y.tolist() == pytest.approx([0.26, 0.3, 0.28, 0.3])  # the smaller standard error counts
    name = "HellaSwag in harness style: accuracy, by length"
    assert report.scores.rows == [["a", name, "0.3000 ± 0.0040", "10,042", "40"]]


def test_losses_of_other_text_are_in_the_table_by_data_and_split(tmp_path: Path) -> None:
    entry = evaluation(40, task={"name": "loss", "split": "val"}, data={"name": "novels"}, scores={"loss": 3.25})
    report = report_of(make_run(tmp_path / "a", evaluations={"step-000040-loss": entry}))
    assert [row[1:3] for row in report.scores.rows] == [["Loss (novels, val): nats per token", "3.25"]]
    assert report.score_figures == []


def test_published_are_the_smallest_and_the_nearest_in_size() -> None:
    smallest = ["GPT-2 124M", "GPT-3 125M"]
    nearest = ["GPT-2 124M", "GPT-2 774M", "GPT-3 125M", "GPT-3 760M"]
    for parameters, names in ((120_640, smallest), (800_000_000, nearest), (0, smallest)):
        assert [entry.name for entry in published_for(COMPLETION, "accuracy_norm", parameters)] == names


def test_every_task_of_the_menu_has_a_title_and_its_published_scores() -> None:
    assert set(TASKS) <= set(TITLES)
    for name, task in TASKS.items():
        for metric in task.metrics:
            assert metric in METRICS
            assert split_name(f"{name.replace('-', '_')}_{metric}") == (name, metric)
        for model, scores in task.published.items():
            for metric, (value, _) in scores.items():
                assert model not in GPT2 or value in [entry.value for entry in all_published(name, metric)]
