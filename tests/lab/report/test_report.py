"""What a report says: its numbers are those of the records, and what is missing is reported."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_runs import FINGERPRINT, Line, environment, make_run, metrics, report_of

import quillgpt
from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.lab.bands.band import Band, shipped_bands
from quillgpt.lab.report import figures
from quillgpt.lab.report.figures import MOST_POINTS
from quillgpt.lab.report.page import Report, chosen_samples
from quillgpt.lab.report.plot import Kind, Plot
from quillgpt.lab.report.runs import distinct_labels
from quillgpt.lab.report.tables import overview, validations_table
from quillgpt.lab.report.text import with_error
from quillgpt.recipes import recipe_config


def plots(report: Report) -> dict[str, Plot]:
    return {plot.key: plot for plot in report.plots}


def cell(report: Report, name: str) -> str:
    return {row[0]: row[1] for row in overview(report.runs[0]).rows}[name]


def cards(report: Report) -> dict[str, str]:
    return {card.name: f"{card.value} {card.error}".strip() for card in report.cards}


def test_a_trained_run_has_a_sentence_a_table_and_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("the cat sat on the mat\n" * 300)
    settings = {"source": "text", "path": "text", "steps": 4, "log_every": 1, "eval_every": 2, "n_embd": 16}
    outcome = quillgpt.train(
        recipe_config("debug", **settings, out="runs/first", device="cpu", threads=1, sample_every=2)
    )
    report = report_of(Path("runs/first"))
    assert "was trained on a folder of text, tokenized into bytes, for 4 steps (4,096 tokens" in report.lead
    loss = with_error(outcome.validation.loss, outcome.validation.standard_error)
    assert f"to {loss} nats per token" in report.lead
    assert (cards(report)["Validation loss"], cards(report)["Tokens"]) == (loss, "4,096")
    assert (cell(report, "licence"), cell(report, "steps")) == ("that of your files", "4 of 4")
    assert [sample.step for sample in report.runs[0].samples] == [2, 4]
    expected = {"loss", "loss-by-time", "learning-rate", "gradient-norm", "throughput", "peak-memory", "bits-per-byte"}
    assert expected <= set(plots(report))


def test_headline_numbers_are_those_of_the_metrics(tmp_path: Path) -> None:
    lines = metrics()
    lines[29]["val_loss"] = 1.5  # the best is not the last
    report = report_of(make_run(tmp_path / "a", lines))
    loss, bits = lines[-1]["val_loss"], lines[-1]["val_bpb"]
    assert cards(report)["Validation loss"] == f"{loss:.3f} ± 0.030"
    assert cards(report)["Best validation loss"] == "1.500 ± 0.030"
    assert cards(report)["Time"] == "0.8 seconds"
    assert cards(report)["Bits per byte"] == f"{bits:.3f} ± {0.03 / loss * bits:.3f}"
    assert "The best was 1.500 ± 0.030, at step 30." in report.lead
    assert [row[0] for row in validations_table(report.runs[0]).rows] == ["10", "20", "30", "40"]


def test_the_loss_figure_has_the_logged_lines_and_the_evaluations_with_errors(tmp_path: Path) -> None:
    plot = plots(report_of(make_run(tmp_path / "a")))["loss"]
    lines = {line.kind: line for line in plot.lines}
    assert lines[Kind.POINTS].x.tolist() == [10 * 1024, 20 * 1024, 30 * 1024, 40 * 1024]
    assert lines[Kind.POINTS].error.tolist() == [0.03] * 4
    np.testing.assert_allclose(lines[Kind.FAINT].y, [line["train_loss"] for line in metrics()])
    assert "validation 2.169 ± 0.030" in plot.caption


def test_the_mean_of_all_steps_is_smoothed_if_the_run_has_it(tmp_path: Path) -> None:
    plot = plots(report_of(make_run(tmp_path / "a", [{**line, "train_loss_mean": 1.0} for line in metrics()])))["loss"]
    strong = next(line for line in plot.lines if line.kind is Kind.STRONG)
    assert set(strong.y.tolist()) == {1.0}
    assert strong.x.tolist() == [1024 * (step - 0.5) for step in range(1, 41)]  # the middle of what it is the mean of
    assert "Training 1, validation" in plot.caption


def test_clipping_and_skipped_steps_are_in_the_gradient_figure(tmp_path: Path) -> None:
    lines = metrics()
    lines[10] |= {"skipped": True, "grad_norm": float("nan"), "train_loss": float("nan")}
    report = report_of(make_run(tmp_path / "a", lines))
    plot = plots(report)["gradient-norm"]
    assert plot.levels == {"clipped at 1": 1.0}
    assert {run: x.tolist() for run, x in plot.marks.items()} == {0: [11 * 1024.0]}
    assert "clipped on 8% of the logged steps" in plot.caption
    assert "1 logged updates not applied and 1 logged losses not finite" in report.lead


def test_a_run_that_is_still_training_says_how_far_it_is(tmp_path: Path) -> None:
    report = report_of(make_run(tmp_path / "a", metrics(25)))
    assert "for 25 of 40 steps so far" in report.lead
    assert cell(report, "steps") == "25 of 40: still training, or stopped"


def test_a_run_with_few_or_odd_records_still_has_a_report(tmp_path: Path) -> None:
    odd = {"step": "1", "tokens": [1], "train_loss": {"a": 1}, "val_loss": "x", "val_loss_stderr": []}
    records: list[list[Line]] = [
        [],
        metrics(1),
        [{"step": step, "tokens": step, "train_loss": float("nan"), "lr": float("inf")} for step in range(1, 30)],
        [{"step": 1, "train_loss": 2.0}],
        [odd],
        [{"step": 10**400, "tokens": 10**400, "train_loss": 10**400, "val_loss": 1e300}],
    ]
    for number, lines in enumerate(records):
        for name, record in (("none", {}), ("odd", {"data": 1, "runtime": [], "steps": "x", "command": 3})):
            report = report_of(make_run(tmp_path / f"{name}-{number}", lines, record=record))
            assert report.lead.startswith("A GPT (2 layers, 64 wide) was trained on Python's standard library, ")
            assert cell(report, "model") == "2 layers, 64 wide, 2 heads, context 64"
            assert all(np.isfinite(line.y).all() for plot in report.figures for line in plot.lines)


def test_the_points_of_a_figure_are_bounded_however_long_the_runs(tmp_path: Path) -> None:
    lines = [{**line, "kernel_x_max": [float(step % 7)] * 30} for step, line in enumerate(metrics(10, every=2) * 200)]
    for step, line in enumerate(lines, start=1):
        line |= {"step": step, "tokens": step * 1024, "skipped": True}
    runs = [make_run(tmp_path / "0", lines)]
    runs += [shutil.copytree(runs[0], tmp_path / str(number)) for number in range(1, 5)]
    runs += [make_run(tmp_path / str(number), metrics()) for number in range(5, 28)]
    for report in (report_of(runs[0]), report_of(*runs)):
        assert max(plot.points for plot in report.plots) <= MOST_POINTS
        assert min(len(line.x) for plot in report.plots for line in plot.lines) >= 1
        assert len(validations_table(report.runs[0]).rows) == 60


def test_several_runs_share_figures_and_their_differences_are_listed(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one")
    record = environment(processor="Another")
    two = make_run(tmp_path / "two", metrics(shift=0.5), lr=1e-2, seed=2, keep_last=9, record=record)
    report = report_of(one, two)
    assert report.differences.rows == [
        ["lr", "0.003", "0.01"],
        ["seed", "1337", "2"],
        ["keep_last", "2", "9"],
        ["processor used", "A Processor", "Another"],
    ]
    assert (
        "They differ in lr, seed and processor used. The lowest validation loss at the end: one, 2.169" in report.lead
    )
    assert {line.run for line in plots(report)["loss"].lines} == {0, 1}
    assert plots(report)["loss-by-time"].x_label == "seconds of training"
    assert [line.covers for line in plots(report)["learning-rate"].lines] == [0, 1]  # the second has the same values
    assert [row[0] for row in report.headline.rows] == ["one", "two"]


def test_runs_on_other_or_unknown_data_are_not_called_comparable(tmp_path: Path) -> None:
    one, none = make_run(tmp_path / "one"), make_run(tmp_path / "none", record={})
    other = make_run(tmp_path / "two", record=environment(data={**environment()["data"], "fingerprint": "0" * 64}))
    assert "were not trained and evaluated on the same data" in report_of(one, other).comparison[0]
    assert "The data of none is not recorded" in report_of(one, none).comparison[0]
    assert len(report_of(one, make_run(tmp_path / "three")).comparison) == 1


def test_compressors_of_the_same_data_are_compared_with_the_model(tmp_path: Path) -> None:
    measured = tmp_path / "compressors.json"
    run = make_run(tmp_path / "a", record=environment(data=environment()["data"] | {"directory": str(tmp_path)}))
    assert "no readable" in report_of(run).comparison[0]
    measured.write_text(json.dumps({"data": "other", "gzip -9": 1.0}))
    assert "is of other data" in report_of(run).comparison[0]
    measured.write_text(json.dumps({"data": FINGERPRINT, "gzip -9": 4.0, "xz -9e": 1.5}))
    report = report_of(run)
    assert [row[0] for row in report.compressors.rows] == ["gzip -9", "a", "xz -9e"]
    assert report.compressors.rows[1][2] == f"{metrics()[-1]['val_bpb'] / 4:.2f}"
    assert plots(report)["bits-per-byte"].levels == {"gzip -9": 4.0, "xz -9e": 1.5}
    assert "where gzip -9 needs 4.000" in report.lead


def small_band() -> Band:
    """A band around the losses of `metrics()`, with a point at every fifth line."""
    middle = np.array([np.mean([2 + 3 * 0.9**step for step in range(end - 3, end + 1)]) for end in range(10, 41, 5)])
    columns = {"tokens": 1024.0 * np.arange(10, 41, 5), "mean": middle, "low": middle - 0.05, "high": middle + 0.05}
    debug = next(band for band in shipped_bands() if band.recipe == "debug")
    return replace(debug, tokens_per_step=1024, window_tokens=4096, seeds=list(range(8)), **columns)


def test_a_run_is_drawn_with_its_reference_band_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert report_of(make_run(tmp_path / "none")).bands[0].startswith("Reference band: no band for ")
    band = small_band()
    monkeypatch.setattr(figures, "find_band", lambda config, fingerprint: band)

    def lines(shift: float) -> list[dict[str, Any]]:
        found = metrics()
        for line in found:
            line["train_loss_mean"] = line["train_loss"] + (shift if line["step"] > 20 else 0.0)
            line["lr"] = 3e-3 * band.multiplier(line["step"])
        return [*found, {"step": 41, "train_loss_mean": 2.0}]

    runs = [make_run(tmp_path / "in", lines(0.0)), make_run(tmp_path / "out", lines(0.25)), make_run(tmp_path / "old")]
    plot = plots(report_of(*runs))["reference-debug"]
    np.testing.assert_array_equal(plot.areas[0].high, band.high)
    assert plot.lines[0].x[0] == 4096
    np.testing.assert_allclose(np.interp(band.tokens, plot.lines[0].x, plot.lines[0].y), band.mean)
    assert plot.caption.startswith(
        "in: inside the band at all 7 points. "
        "out: 0.20 above the reference band since step 25; outside at 4 of 7 points "
        "(`quill doctor` lists likely causes). "
        "old: not judged: the run does not log its mean loss at the points of the band."
    )
    assert "8 seeds of the recipe debug" in plot.caption


def test_samples_are_in_the_order_of_their_steps_and_many_are_thinned(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", samples={step: f"one {step}\n\n----\n\ntwo\n" for step in range(10, 1010, 10)})
    (run / "samples" / "step-x.txt").write_text("no step")
    (run / "samples" / "step-002000.txt").write_bytes(b"\xff\x00" + b"long " * 10_000)
    read = report_of(run).runs[0]
    steps = [sample.step for sample in read.samples]
    assert (len(steps), steps[0], steps[-1], steps == sorted(steps)) == (24, 10, 2000, True)
    assert read.samples_left_out == 101 - 24
    assert [sample.step for sample in chosen_samples(read.samples)] == [10, steps[11], 2000]
    assert read.samples[0].texts == ["one 10", "two"]
    assert read.samples[-1].texts[0].startswith("\ufffd\\x00long ")
    assert len(read.samples[-1].texts[0]) < 5_000


def test_statistics_of_an_attention_are_drawn_by_layer_and_keys_are_unique(tmp_path: Path) -> None:
    changes = {"odd<key>": [1.0], "stat a": [1.0], "stat<a": [2.0], "train_loss": 1.0}
    lines = [{**line, **changes, "kernel_x_max": [float(line["step"]), 3.0, "nan"]} for line in metrics()]
    report = report_of(make_run(tmp_path / "a", lines))
    found = plots(report)
    assert found["kernel-x-max"].title == "X, largest"
    assert [line.label for line in found["kernel-x-max"].lines] == ["a, layer 0", "a, layer 1"]
    assert found["odd-key"].title == "Odd<key>"
    assert {"stat-a", "stat-a-2"} <= set(found)
    assert len(found) == len(report.plots)


def test_runs_of_one_name_have_distinct_labels() -> None:
    assert distinct_labels([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]
    assert distinct_labels([Path("/x/one"), Path("/y/two")]) == ["one", "two"]
    assert len(set(distinct_labels([Path("/x") / ("n" * 90 + end) for end in "ab"]))) == 2


def test_a_directory_without_a_run_or_given_twice_is_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    with pytest.raises(ConfigError, match="is given twice; give each run once"):
        report_of(run, run.parent / "." / "a")
    with pytest.raises(CheckpointError, match="no run there"):
        report_of(tmp_path)
