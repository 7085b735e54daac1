"""What a report says: the numbers are those of the records, and what is missing is said."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_runs import FINGERPRINT, contents, environment, make_run, metrics

import quillgpt
from quillgpt.data.sources import SOURCES
from quillgpt.errors import CheckpointError, ConfigError
from quillgpt.evaluate.bands import Band, read_band
from quillgpt.recipes import load_recipe
from quillgpt.report import reference, sentences
from quillgpt.report.contents import Contents, chosen_samples
from quillgpt.report.figures import MOST_POINTS
from quillgpt.report.plot import Kind, Plot
from quillgpt.report.subject import distinct_labels
from quillgpt.report.wording import with_error
from quillgpt.tokenizer import TOKENIZERS

BAND = Path(reference.__file__).parents[1] / "evaluate" / "bands" / "debug.json"


def figures(report: Contents) -> dict[str, Plot]:
    return {plot.key: plot for plot in [*report.figures, *report.score_figures, *report.statistics]}


def cell(report: Contents, name: str) -> str:
    return {row[0]: row[1] for row in report.runs[0].overview.rows}[name]


def test_a_trained_run_is_told_in_a_sentence_a_table_and_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("the cat sat on the mat\n" * 300)
    settings = {"source": "text", "path": "text", "steps": 4, "log_every": 1, "eval_every": 2, "n_embd": 16}
    outcome = quillgpt.train(
        load_recipe("debug", **settings, out="runs/first", device="cpu", threads=1, sample_every=2)
    )
    report = contents(Path("runs/first"))
    assert "was trained on a folder of text, read byte by byte, for 4 steps (4,096 tokens" in report.lead
    cards = {card.name: card for card in report.cards}
    held_out = with_error(outcome.held_out.loss, outcome.held_out.standard_error)
    assert f"to {held_out} nats per token" in report.lead
    assert f"{cards['Held-out loss'].value} {cards['Held-out loss'].error}" == held_out
    assert cards["Tokens"].value == "4,096"
    assert cell(report, "licence") == "that of your files"
    assert cell(report, "steps") == "4 of 4"
    assert [sample.step for sample in report.runs[0].samples] == [2, 4]
    assert {"loss", "loss-by-time", "learning-rate", "gradient-norm", "throughput", "peak-memory"} <= set(
        figures(report)
    )


def test_headline_numbers_are_those_of_the_metrics(tmp_path: Path) -> None:
    lines = metrics()
    lines[29]["held_out_loss"] = 1.5  # the best is not the last
    report = contents(make_run(tmp_path / "a", lines))
    last = lines[-1]["held_out_loss"]
    cards = {card.name: (card.value, card.error) for card in report.cards}
    assert cards["Held-out loss"] == (f"{last:.3f}", "± 0.030")
    assert cards["Best held-out loss"] == ("1.500", "± 0.030")
    assert cards["Time"][0] == "0.8 seconds"
    bits_error = 0.03 / last * lines[-1]["held_out_bits_per_byte"]
    assert cards["Bits per byte"] == (f"{lines[-1]['held_out_bits_per_byte']:.3f}", f"± {bits_error:.3f}")
    assert "The best was 1.500 ± 0.030, at step 30." in report.lead
    assert [row[0] for row in report.runs[0].evaluations.rows] == ["10", "20", "30", "40"]


def test_the_loss_figure_holds_the_curve_and_the_evaluations_with_their_errors(tmp_path: Path) -> None:
    plot = figures(contents(make_run(tmp_path / "a")))["loss"]
    held_out = next(line for line in plot.lines if line.kind is Kind.POINTS)
    assert held_out.x.tolist() == [10 * 1024, 20 * 1024, 30 * 1024, 40 * 1024]
    assert held_out.error.tolist() == [0.03] * 4
    raw = next(line for line in plot.lines if line.kind is Kind.FAINT)
    np.testing.assert_allclose(raw.y, [line["loss"] for line in metrics()])
    assert "held out 2.169 ± 0.030" in plot.caption


def test_the_mean_of_all_steps_is_smoothed_where_the_run_has_it(tmp_path: Path) -> None:
    lines = [{**line, "mean_loss": 1.0} for line in metrics()]
    report = contents(make_run(tmp_path / "a", lines))
    strong = next(line for line in figures(report)["loss"].lines if line.kind is Kind.STRONG)
    assert set(strong.y.tolist()) == {1.0}
    assert strong.x.tolist() == [1024 * (step - 0.5) for step in range(1, 41)]  # the middle of what it is the mean of
    assert "training 1, held out" in figures(report)["loss"].caption.lower()


def test_clipping_and_skipped_steps_are_in_the_gradient_figure(tmp_path: Path) -> None:
    lines = metrics()
    lines[10] |= {"skipped": True, "gradient_norm": float("nan"), "loss": float("nan")}
    report = contents(make_run(tmp_path / "a", lines))
    plot = figures(report)["gradient-norm"]
    assert [level.label for level in plot.levels] == ["clipped at 1"]
    assert [marks.x.tolist() for marks in plot.marks] == [[11 * 1024.0]]
    assert "clipped on 8% of the logged steps" in plot.caption
    assert "1 logged updates not applied and 1 logged losses that are no numbers" in report.lead


def test_a_run_that_goes_on_says_how_far_it_is(tmp_path: Path) -> None:
    report = contents(make_run(tmp_path / "a", metrics(25)))
    assert "for 25 of 40 steps so far" in report.lead
    assert cell(report, "steps") == "25 of 40: still running, or stopped"


EMPTY: dict[str, list[dict[str, Any]]] = {
    "no line": [],
    "one line": metrics(1),
    "only NaN": [{"step": step, "tokens": step, "loss": float("nan"), "lr": float("inf")} for step in range(1, 30)],
    "no tokens": [{"step": 1, "loss": 2.0}],
    "other types": [
        {"step": "1", "tokens": [1], "loss": {"a": 1}, "held_out_loss": "x", "held_out_standard_error": []}
    ],
    "a huge number": [{"step": 10**400, "tokens": 10**400, "loss": 10**400, "held_out_loss": 1e300}],
}


@pytest.mark.parametrize("lines", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("record", [{}, {"data": 1, "choices": [], "steps": "x", "command": 3}], ids=["none", "odd"])
def test_a_run_with_little_or_nothing_on_record_is_still_told(
    lines: list[dict[str, Any]], record: dict[str, Any], tmp_path: Path
) -> None:
    report = contents(make_run(tmp_path / "a", lines, record=record))
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
    for report in (contents(runs[0]), contents(*runs)):
        assert max(plot.points for plot in figures(report).values()) <= MOST_POINTS
        assert min(len(line.x) for plot in figures(report).values() for line in plot.lines) >= 1
    first = runs[0]
    assert len(contents(first).runs[0].evaluations.rows) == 60


def test_several_runs_are_overlaid_and_their_differences_listed(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one")
    two = make_run(
        tmp_path / "two", metrics(shift=0.5), lr=1e-2, seed=2, keep_last=9, record=environment(processor="Another")
    )
    report = contents(one, two)
    assert report.differences.rows == [
        ["lr", "0.003", "0.01"],
        ["seed", "1337", "2"],
        ["keep_last", "2", "9"],
        ["processor used", "A Processor", "Another"],
    ]
    assert "They differ in lr, seed and processor used. The least held-out loss at the end: one, 2.169" in report.lead
    assert {line.run for line in figures(report)["loss"].lines} == {0, 1}
    assert figures(report)["loss-by-time"].x_label == "seconds of training"
    rates = figures(report)["learning-rate"].lines
    assert [line.covers for line in rates] == [0, 1]  # the same values: the second is broken, so that both are seen
    assert [row[0] for row in report.headline.rows] == ["one", "two"]


def test_runs_on_other_or_unknown_data_are_not_called_comparable(tmp_path: Path) -> None:
    one, none = make_run(tmp_path / "one"), make_run(tmp_path / "none", record={})
    other = make_run(tmp_path / "two", record=environment(data={**environment()["data"], "fingerprint": "0" * 64}))
    assert "were not trained and evaluated on the same data" in contents(one, other).comparison[0]
    assert "Which data none used is not on record" in contents(one, none).comparison[0]
    assert len(contents(one, make_run(tmp_path / "three")).comparison) == 1


def test_compressors_of_the_same_data_stand_beside_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    data = environment()["data"] | {"directory": str(folder)}
    run = make_run(tmp_path / "a", record=environment(data=data))
    assert "no readable" in contents(run).comparison[0]
    (folder / "compressors.json").write_text(json.dumps({"data": "other", "gzip -9": 1.0}))
    assert "is of other data" in contents(run).comparison[0]
    (folder / "compressors.json").write_text(json.dumps({"data": FINGERPRINT, "gzip -9": 4.0, "xz -9e": 1.5}))
    report = contents(run)
    assert [row[0] for row in report.compressors.rows] == ["gzip -9", "a", "xz -9e"]
    assert report.compressors.rows[1][2] == f"{metrics()[-1]['held_out_bits_per_byte'] / 4:.2f}"
    assert [level.label for level in figures(report)["bits-per-byte"].levels] == ["gzip -9", "xz -9e"]
    assert "where gzip -9 needs 4.000" in report.lead


def small_band() -> Band:
    """A band around the losses of `metrics()`, with a point at every fifth line."""
    tokens = 1024.0 * np.arange(10, 41, 5)
    middle = np.array([np.mean([2 + 3 * 0.9**step for step in range(end - 3, end + 1)]) for end in range(10, 41, 5)])
    columns = {"tokens": tokens, "mean": middle, "low": middle - 0.05, "high": middle + 0.05}
    return replace(read_band(BAND), tokens_per_step=1024, window_tokens=4096, seeds=list(range(8)), **columns)


def test_a_run_is_drawn_and_judged_beside_its_reference_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    band = small_band()
    monkeypatch.setattr(reference, "find_band", lambda config, fingerprint: band)

    def lines(shift: float) -> list[dict[str, Any]]:
        found = metrics()
        for line in found:
            line["mean_loss"] = line["loss"] + (shift if line["step"] > 20 else 0.0)
            line["lr"] = 3e-3 * band.multiplier(line["step"])
        return [*found, {"step": 41, "mean_loss": 2.0}]

    runs = [make_run(tmp_path / "in", lines(0.0)), make_run(tmp_path / "out", lines(0.25)), make_run(tmp_path / "old")]
    plot = figures(contents(*runs))["reference-debug"]
    np.testing.assert_array_equal(plot.areas[0].high, band.high)
    assert plot.lines[0].x[0] == 4096
    at_points = np.interp(band.tokens, plot.lines[0].x, plot.lines[0].y)
    np.testing.assert_allclose(at_points, band.mean)
    assert plot.caption.startswith(
        "in: inside the band at all 7 points. "
        "out: 0.20 above the reference band since step 25; outside at 4 of 7 points "
        "(`quill doctor` lists likely causes). "
        "old: not judged: the run does not log its mean loss where the band has its points."
    )
    assert "8 seeds of the recipe debug" in plot.caption


def test_a_run_without_a_reference_band_gets_the_reason(tmp_path: Path) -> None:
    report = contents(make_run(tmp_path / "a"))
    assert report.bands[0].startswith("Reference band: no band for ")
    assert "reference-debug" not in figures(report)


def test_samples_are_in_the_order_of_their_steps_and_many_are_thinned_out(tmp_path: Path) -> None:
    samples = {step: f"one {step}\n\n----\n\ntwo\n" for step in range(10, 1010, 10)}
    run = make_run(tmp_path / "a", samples=samples)
    (run / "samples" / "step-x.txt").write_text("no step")
    (run / "samples" / "step-002000.txt").write_bytes(b"\xff\x00" + b"long " * 10_000)
    part = contents(run).runs[0]
    steps = [sample.step for sample in part.samples]
    assert (len(steps), steps[0], steps[-1], steps == sorted(steps)) == (24, 10, 2000, True)
    assert part.samples_left_out == 101 - 24
    assert [sample.step for sample in chosen_samples(part.samples)] == [10, steps[11], 2000]
    assert part.samples[0].texts == ["one 10", "two"]
    assert part.samples[-1].texts[0].startswith("\ufffd\\x00long ")
    assert len(part.samples[-1].texts[0]) < 5_000


def test_statistics_of_an_attention_are_drawn_layer_by_layer(tmp_path: Path) -> None:
    lines = [{**line, "kernel_x_max": [float(line["step"]), 3.0, "nan"], "odd<key>": [1.0]} for line in metrics()]
    plots = figures(contents(make_run(tmp_path / "a", lines)))
    assert plots["kernel-x-max"].title == "X, largest"
    assert [line.label for line in plots["kernel-x-max"].lines] == ["a, layer 0", "a, layer 1"]
    assert plots["odd-key"].title == "Odd<key>"


def test_two_figures_never_share_a_key(tmp_path: Path) -> None:
    lines = [{**line, "stat a": [1.0], "stat<a": [2.0], "loss a": [3.0]} for line in metrics(3)]
    report = contents(make_run(tmp_path / "a", lines))
    keys = [plot.key for plot in [*report.figures, *report.statistics]]
    assert {"stat-a", "stat-a-2", "loss-a"} <= set(keys)
    assert len(keys) == len(set(keys))


def test_labels_tell_runs_of_one_name_apart() -> None:
    assert distinct_labels([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]
    assert distinct_labels([Path("/x/one"), Path("/y/two")]) == ["one", "two"]
    long = [Path("/x") / ("n" * 90 + end) for end in "ab"]
    assert len(set(distinct_labels(long))) == 2


def test_what_is_no_run_or_given_twice_is_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    with pytest.raises(ConfigError, match="is given twice; give each run once"):
        contents(run, run.parent / "." / "a")
    with pytest.raises(CheckpointError, match="no run there"):
        contents(tmp_path)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_of_text_has_words(source: str) -> None:
    assert source in sentences.SOURCES


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_every_tokenizer_has_words(tokenizer: str) -> None:
    assert tokenizer in sentences.TOKENIZERS
